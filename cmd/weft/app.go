package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"

	"github.com/urfave/cli/v2"
)

// streams are what a command reads, writes and knows of its environment.
type streams struct {
	in  io.Reader
	out io.Writer
	err io.Writer
	env func(string) string
}

func stdio() streams {
	return streams{in: os.Stdin, out: os.Stdout, err: os.Stderr, env: os.Getenv}
}

// run is the program: it parses args, runs a command and gives the exit code.
func run(ctx context.Context, args []string, s streams) int {
	if len(args) > 1 && args[1] == "help" { // as git has it: weft help intention create
		args = append(append(args[:1:1], args[2:]...), "-help")
	}
	return exitCode(s.err, newApp(s).RunContext(ctx, args))
}

// The library keeps these in variables of its own.
var setupHelp = sync.OnceFunc(func() {
	cli.FlagStringer = flagLine
	cli.HelpFlag = &cli.BoolFlag{Name: "help", Aliases: []string{"h"}, Usage: "Show this help."}
	cli.VersionFlag = &cli.BoolFlag{Name: "version", Aliases: []string{"v"}, Usage: "Show the version."}
	cli.VersionPrinter = func(c *cli.Context) { fmt.Fprintln(c.App.Writer, buildInfo().text()) }
})

func newApp(s streams) *cli.App {
	setupHelp()
	app := &cli.App{
		Name:            "weft",
		HelpName:        "weft",
		Usage:           "a service mesh for hosts",
		UsageText:       "weft COMMAND [flags] [arguments]",
		Version:         buildInfo().Version,
		HideHelpCommand: true,
		Reader:          s.in,
		Writer:          s.out,
		ErrWriter:       s.err,
		ExitErrHandler:  func(*cli.Context, error) {}, // codes are exitCode's business
		Commands:        commands(s),

		Flags:                     completionFlags(),
		EnableBashCompletion:      true,
		CustomAppHelpTemplate:     appHelp,
		DisableSliceFlagSeparator: true,
		OnUsageError:              onUsageError,
		Action: func(c *cli.Context) error {
			if c.Bool("autocomplete-install") || c.Bool("autocomplete-uninstall") {
				return installCompletion(c, s.env, c.Bool("autocomplete-install"))
			}
			if c.NArg() > 0 {
				return unknownCommand(c.App.Commands, "weft", c.Args().First())
			}
			return cli.ShowAppHelp(c)
		},
	}
	return app
}

func commands(s streams) []*cli.Command {
	return []*cli.Command{
		agentCommand(s),
		catalogCommand(s),
		certCommand(s),
		completionCommand(),
		configCommand(s),
		connectCommand(s),
		debugCommand(s),
		demoCommand(s),
		docsCommand(s),
		eventCommand(s),
		forceLeaveCommand(s),
		infoCommand(s),
		intentionCommand(s),
		joinCommand(s),
		joinTokenCommand(s),
		keygenCommand(),
		keyringCommand(s),
		kvCommand(s),
		leaveCommand(s),
		lockCommand(s),
		maintCommand(s),
		membersCommand(s),
		monitorCommand(s),
		nodeCommand(s),
		operatorCommand(s),
		reloadCommand(s),
		rttCommand(s),
		secretCommand(s),
		servicesCommand(s),
		snapshotCommand(s),
		tlsCommand(),
		troubleshootCommand(s),
		validateCommand(s),
		versionCommand(s),
		watchCommand(s),
	}
}

// spec describes one command; build makes the rest the same for all.
type spec struct {
	name     string
	usage    string // one line, for the list of commands
	about    string // what it does, for its own help
	examples []string
	args     string // "SOURCE DESTINATION", for the usage line
	min, max int    // how many arguments; max < 0 is no bound
	anyArgs  bool   // arguments may look like flags
	flags    []cli.Flag
	hidden   bool
	action   func(*cli.Context) error
}

func (sp spec) build() *cli.Command {
	return &cli.Command{
		Name:               sp.name,
		Usage:              sp.usage,
		Description:        description(sp.about, sp.examples),
		ArgsUsage:          sp.args,
		Flags:              sp.flags,
		Hidden:             sp.hidden,
		HideHelpCommand:    true,
		CustomHelpTemplate: commandHelp,
		OnUsageError:       onUsageError,
		Action: func(c *cli.Context) error {
			if err := sp.checkArgs(c); err != nil {
				return &usageError{command: c.Command.HelpName, err: err}
			}
			return sp.action(c)
		},
	}
}

func (sp spec) checkArgs(c *cli.Context) error {
	args := c.Args().Slice()
	for _, a := range args {
		if len(a) > 1 && a[0] == '-' && !sp.anyArgs {
			return fmt.Errorf("flags come before arguments: move %s in front of %s", a, args[0])
		}
	}
	switch {
	case len(args) < sp.min:
		return fmt.Errorf("needs %s, got %d of them", sp.args, len(args))
	case sp.max == 0 && len(args) > 0:
		return fmt.Errorf("takes no arguments, but got %q", args[0])
	case sp.max > 0 && len(args) > sp.max:
		return fmt.Errorf("one argument too many: %q", args[sp.max])
	}
	return nil
}

// group is a command that only holds others.
func group(name, usage, about string, subs ...*cli.Command) *cli.Command {
	return &cli.Command{
		Name:               name,
		Usage:              usage,
		Description:        about,
		Subcommands:        subs,
		HideHelpCommand:    true,
		CustomHelpTemplate: groupHelp,
		OnUsageError:       onUsageError,
		Action: func(c *cli.Context) error {
			if c.NArg() > 0 {
				return unknownCommand(c.Command.Subcommands, c.Command.HelpName, c.Args().First())
			}
			return cli.ShowSubcommandHelp(c)
		},
	}
}

func onUsageError(c *cli.Context, err error, _ bool) error {
	name := "weft"
	if c.Command != nil && c.Command.HelpName != "" {
		name = c.Command.HelpName
	}
	msg := strings.Replace(err.Error(), "flag provided but not defined: ", "there is no flag ", 1)
	return &usageError{command: name, err: errors.New(msg)}
}

func unknownCommand(known []*cli.Command, parent, name string) error {
	err := fmt.Errorf("%s has no command %q", parent, name)
	best := ""
	for _, c := range known {
		if !c.Hidden && (strings.HasPrefix(c.Name, name) || strings.HasPrefix(name, c.Name)) {
			best = c.Name
		}
	}
	if best != "" {
		err = fmt.Errorf("%w; did you mean %q?", err, best)
	}
	return &usageError{command: parent, err: err}
}
