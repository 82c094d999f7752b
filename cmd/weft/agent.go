package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/weftmesh/weft/cmd/weft/config"
)

func agentCommand(s streams) *cli.Command {
	paths := new(pathList)
	return spec{
		name: "agent", usage: "Run the agent of this host, and a server beside it",
		about: "Runs until it is interrupted. The log goes to standard output, mistakes of the start to\n" +
			"standard error. SIGHUP reads the files again; SIGINT and SIGTERM end the agent gracefully, a\nsecond one at once. SIGUSR2 starts the program that lies at this one's path now, which takes over\nwithout a connection refused or cut.\n\n" +
			"Flags override fragments (-hcl), which override files, in the order in which they are given.",
		examples: []string{
			"weft agent -dev                       A server and an agent in memory, on loopback.",
			"weft agent -config-dir /etc/weft.d    As the files of a folder say.",
			"weft agent -server -bootstrap-expect 1 -data-dir /var/lib/weft",
		},
		flags: agentFlagsOf(paths),
		action: func(c *cli.Context) error {
			opt, err := agentOptions(c, paths)
			if err != nil {
				return err
			}
			return runAgent(c.Context, opt, s)
		},
	}.build()
}

// pathList collects -config-file and -config-dir in the order in which they stand.
type pathList struct{ paths []string }

// Set implements flag.Value.
func (p *pathList) Set(v string) error {
	if v == "" {
		return errors.New("the path is empty")
	}
	p.paths = append(p.paths, v)
	return nil
}

// String implements flag.Value.
func (p *pathList) String() string {
	if p == nil {
		return ""
	}
	return strings.Join(p.paths, ",")
}

const (
	keyFlags   = "Configuration"
	laterFlags = "Taken for the sake of existing scripts, without effect"
)

// agentFlagsOf makes a flag of every key that has one.
func agentFlagsOf(paths *pathList) []cli.Flag {
	flags := []cli.Flag{
		&cli.BoolFlag{Name: "dev", Usage: "Run a server and an agent in memory, on loopback: to try things out, and for tests."},
		&cli.GenericFlag{Name: "config-file", Value: paths, Usage: "A configuration file. May be given many times."},
		&cli.GenericFlag{Name: "config-dir", Value: paths, Usage: "A folder whose *.hcl and *.json are read in lexical order. May be given many times."},
		&cli.StringFlag{Name: "config-format", Usage: "The form of files whose names do not say: hcl or json."},
		&cli.StringSliceFlag{Name: "hcl", Usage: "A piece of configuration. May be given many times."},
	}
	for _, k := range config.Keys() {
		if k.Flag == "" {
			continue
		}
		category, usage := keyFlags, k.Doc
		if k.Status != config.Effective {
			category = laterFlags
		} else if k.Default != "" && k.Default != "false" {
			usage += " Default: " + k.Default + "."
		}
		switch k.Type {
		case config.Bool:
			flags = append(flags, &cli.BoolFlag{Name: k.Flag, Usage: usage, Category: category})
		case config.Int:
			flags = append(flags, &cli.IntFlag{Name: k.Flag, Usage: usage, Category: category})
		case config.StringList, config.StringMap:
			flags = append(flags, &cli.StringSliceFlag{Name: k.Flag, Usage: usage, Category: category})
		default:
			flags = append(flags, &cli.StringFlag{Name: k.Flag, Usage: usage, Category: category})
		}
	}
	return flags
}

func agentOptions(c *cli.Context, paths *pathList) (config.Options, error) {
	opt := config.Options{
		Dev: c.Bool("dev"), Paths: paths.paths,
		Format: c.String("config-format"), Fragments: c.StringSlice("hcl"),
	}
	switch opt.Format {
	case "", "hcl", "json":
	default:
		return opt, usagef(c, "-config-format %q is neither hcl nor json", opt.Format)
	}
	for _, k := range config.Keys() {
		if k.Flag == "" || !c.IsSet(k.Flag) {
			continue
		}
		v, err := flagValue(c, k)
		if err != nil {
			return opt, err
		}
		opt.Flags = append(opt.Flags, config.FlagValue{Flag: "-" + k.Flag, Key: k.Name, Value: v})
	}
	return opt, nil
}

func flagValue(c *cli.Context, k config.Key) (any, error) {
	switch k.Type {
	case config.Bool:
		return c.Bool(k.Flag), nil
	case config.Int:
		return c.Int(k.Flag), nil
	case config.StringList:
		return c.StringSlice(k.Flag), nil
	case config.StringMap:
		m := map[string]string{}
		for _, kv := range c.StringSlice(k.Flag) {
			i := strings.IndexAny(kv, ":=")
			if i < 1 {
				return nil, usagef(c, "-%s %q is not key:value", k.Flag, kv)
			}
			m[kv[:i]] = kv[i+1:]
		}
		return m, nil
	default:
		return c.String(k.Flag), nil
	}
}

// prepareDataDir makes the data directory and tries to write in it.
func prepareDataDir(dir string) error {
	if dir == "" {
		return nil
	}
	err := os.MkdirAll(dir, 0o700)
	if info, serr := os.Stat(dir); serr == nil && info.Mode().Perm()&0o002 != 0 && runtime.GOOS != "windows" {
		return withCode(exitDataDir, fmt.Errorf("data directory %s has mode %#o: every user of this host could put keys and registrations there; chmod o-w %s",
			dir, info.Mode().Perm(), dir))
	}
	if err == nil {
		var f *os.File
		if f, err = os.CreateTemp(dir, ".probe-"); err == nil {
			err = errors.Join(f.Close(), os.Remove(f.Name()))
		}
	}
	if err != nil {
		hint := ""
		if errors.Is(err, os.ErrPermission) {
			hint = fmt.Sprintf("; the user with the ID %d must own it and may write in it", os.Getuid())
		}
		return withCode(exitDataDir, fmt.Errorf("data directory %s cannot be used: %w%s", dir, err, hint))
	}
	return nil
}

// writePIDFile writes the process ID and gives what removes the file again.
func writePIDFile(path string) (func(), error) {
	if path == "" {
		return func() {}, nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
		return nil, fmt.Errorf("pid_file: %w", err)
	}
	if err := os.WriteFile(path, []byte(strconv.Itoa(os.Getpid())), 0o644); err != nil {
		return nil, fmt.Errorf("pid_file: %w", err)
	}
	return func() { _ = os.Remove(path) }, nil // a stale file says nothing worse than none
}
