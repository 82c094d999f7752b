package main

import (
	"fmt"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/weftmesh/weft/cmd/weft/config"
)

// Set by the linker: -X main.version=…, -X main.revision=…, -X main.buildDate=….
var (
	version   = ""
	revision  = ""
	buildDate = ""
)

// unreleased is the version of a binary that nobody gave one.
const unreleased = "0.1.0-dev"

// build says what this binary is.
type build struct {
	Version   string
	Revision  string
	BuildDate time.Time
}

var buildInfo = sync.OnceValue(func() build {
	b := build{Version: strings.TrimPrefix(version, "v"), Revision: revision}
	if t, err := time.Parse(time.RFC3339, buildDate); err == nil {
		b.BuildDate = t
	}
	if info, ok := debug.ReadBuildInfo(); ok {
		b.fromModule(info)
	}
	if b.Version == "" {
		b.Version = unreleased
	}
	return b
})

// fromModule fills in what the linker was not told.
func (b *build) fromModule(info *debug.BuildInfo) {
	if v := info.Main.Version; b.Version == "" && strings.HasPrefix(v, "v") && !strings.HasPrefix(v, "v0.0.0-") {
		b.Version = strings.TrimPrefix(v, "v")
	}
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			if b.Revision == "" {
				b.Revision = s.Value
			}
		case "vcs.time":
			if t, err := time.Parse(time.RFC3339, s.Value); err == nil && b.BuildDate.IsZero() {
				b.BuildDate = t
			}
		}
	}
}

func (b build) text() string {
	lines := []string{"weft v" + b.Version}
	if b.Revision != "" {
		lines = append(lines, "Revision "+b.Revision)
	}
	if !b.BuildDate.IsZero() {
		lines = append(lines, "Build date "+b.BuildDate.UTC().Format(time.RFC3339))
	}
	lines = append(lines, fmt.Sprintf("Built with %s for %s/%s", runtime.Version(), runtime.GOOS, runtime.GOARCH))
	return strings.Join(lines, "\n")
}

func versionCommand(streams) *cli.Command {
	return spec{
		name: "version", usage: "Show the version",
		flags: []cli.Flag{formatFlag()},
		action: func(c *cli.Context) error {
			b := buildInfo()
			return formatted(c, b, func() error {
				fmt.Fprintln(c.App.Writer, b.text())
				return nil
			})
		},
	}.build()
}

func validateCommand(streams) *cli.Command {
	return spec{
		name: "validate", usage: "Check configuration files", args: "PATH…", min: 1, max: -1,
		about: "Reads files and folders as the agent would, and says what is wrong with them, with file and\nline. Nothing is started. A configuration that is only complete together with flags of the\nagent needs -dev, or those flags' keys in -hcl.",
		examples: []string{
			"weft validate /etc/weft.d",
			"weft validate -dev web.hcl",
		},
		flags: []cli.Flag{
			&cli.BoolFlag{Name: "dev", Usage: "Check as the agent with -dev would."},
			&cli.StringFlag{Name: "config-format", Usage: "The form of files whose names do not say: hcl or json."},
			&cli.StringSliceFlag{Name: "hcl", Usage: "A piece of configuration. May be given many times."},
			&cli.BoolFlag{Name: "quiet", Usage: "Print nothing but mistakes."},
		},
		action: func(c *cli.Context) error {
			cfg, err := config.Load(config.Options{
				Dev: c.Bool("dev"), Paths: c.Args().Slice(), Format: c.String("config-format"), Fragments: c.StringSlice("hcl"),
			})
			var odd []string
			if err == nil {
				odd, err = checkParts(cfg)
			}
			if err != nil {
				return withCode(exitFailure, fmt.Errorf("configuration is not valid: %w", err))
			}
			if c.Bool("quiet") {
				return nil
			}
			for _, w := range append(cfg.Warnings, odd...) {
				fmt.Fprintf(c.App.ErrWriter, "Warning: %s\n", w)
			}
			fmt.Fprintln(c.App.Writer, "Configuration is valid!")
			return nil
		},
	}.build()
}
