package main

import (
	"fmt"
	"io"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/weftmesh/weft/agent/httpapi"
	"github.com/weftmesh/weft/cmd/weft/config"
)

// docsCommand prints the pages of the reference that are made from the code.
func docsCommand(streams) *cli.Command {
	return spec{
		name: "docs", usage: "Print a reference page as Markdown", args: "config | cli | http", min: 1, max: 1, hidden: true,
		about: "config is the table of configuration keys, cli the help of every command, http the routes of\nthe HTTP API.",
		action: func(c *cli.Context) error {
			switch page := c.Args().First(); page {
			case "config":
				return config.Reference(c.App.Writer)
			case "http":
				return httpapi.Reference(c.App.Writer)
			case "cli":
				return cliReference(c.App.Writer, c.App)
			default:
				return usagef(c, "there is no page %q", page)
			}
		},
	}.build()
}

func cliReference(w io.Writer, app *cli.App) error {
	return eachCommand(app.Commands, "weft", func(path string, cmd *cli.Command) error {
		if cmd.Hidden || len(cmd.Subcommands) > 0 {
			return nil
		}
		_, err := fmt.Fprintf(w, "## %s\n\n```text\n%s```\n\n", path, helpText(path, cmd))
		return err
	})
}

// eachCommand calls do for every command, depth first, in order.
func eachCommand(cmds []*cli.Command, parent string, do func(path string, cmd *cli.Command) error) error {
	for _, cmd := range cmds {
		path := parent + " " + cmd.Name
		if err := do(path, cmd); err != nil {
			return err
		}
		if err := eachCommand(cmd.Subcommands, path, do); err != nil {
			return err
		}
	}
	return nil
}

// helpText is what -help prints.
func helpText(path string, cmd *cli.Command) string {
	var b strings.Builder
	copied := *cmd
	copied.HelpName = path
	template := copied.CustomHelpTemplate
	cli.HelpPrinter(&b, template, &copied)
	return b.String()
}
