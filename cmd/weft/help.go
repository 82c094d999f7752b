package main

import (
	"fmt"
	"strings"

	"github.com/urfave/cli/v2"
)

const appHelp = `weft: {{.Usage}}

Usage: {{.UsageText}}

Commands:
{{range .VisibleCommands}}  {{printf "%-12s" .Name}} {{.Usage}}
{{end}}
Try it:
  weft agent -dev                 Run a server and an agent on this host, in memory.
  weft intention create web db    Let web reach db.
  weft COMMAND -help              Say more about a command.

Flags may be written with one dash or two. Commands talk to the agent at
127.0.0.1:8500; -http-addr or WEFT_HTTP_ADDR names another.
`

const groupHelp = `{{.HelpName}}: {{.Usage}}

Usage: {{.HelpName}} COMMAND [flags] [arguments]
{{if .Description}}
{{.Description}}
{{end}}
Commands:
{{range .VisibleCommands}}  {{printf "%-16s" .Name}} {{.Usage}}
{{end}}
Say more about one: {{.HelpName}} COMMAND -help
`

const commandHelp = `{{.HelpName}}: {{.Usage}}

Usage: {{.HelpName}}{{if .VisibleFlags}} [flags]{{end}}{{if .ArgsUsage}} {{.ArgsUsage}}{{end}}
{{if .Description}}
{{.Description}}
{{end}}{{if .VisibleCommands}}
Commands:
{{range .VisibleCommands}}  {{printf "%-16s" .Name}} {{.Usage}}
{{end}}{{end}}{{range .VisibleFlagCategories}}
{{if .Name}}{{.Name}}{{else}}Flags{{end}}:
{{range .Flags}}{{.}}
{{end}}{{else}}{{if .VisibleFlags}}
Flags:
{{range .VisibleFlags}}{{.}}
{{end}}{{end}}{{end}}`

// Column widths of the help of flags.
const (
	flagColumn = 28
	helpWidth  = 100
)

// flagLine writes a flag as "  -name VALUE     What it does." with wrapped lines
// below the text.
func flagLine(f cli.Flag) string {
	name := "  -" + f.Names()[0]
	usage := ""
	if d, ok := f.(cli.DocGenerationFlag); ok {
		usage = d.GetUsage()
		if d.TakesValue() {
			name += " " + placeholder(f)
		}
	}
	gap := flagColumn - len(name)
	if gap < 2 {
		return name + "\n" + strings.Repeat(" ", flagColumn) + wrap(usage, flagColumn)
	}
	return name + strings.Repeat(" ", gap) + wrap(usage, flagColumn)
}

func placeholder(f cli.Flag) string {
	switch f.(type) {
	case *cli.IntFlag:
		return "N"
	case *cli.DurationFlag:
		return "DURATION"
	}
	switch name := f.Names()[0]; {
	case strings.HasSuffix(name, "meta"), name == "tagged-address":
		return "KEY=VALUE"
	case strings.HasSuffix(name, "file"), strings.HasSuffix(name, "cert"), strings.HasSuffix(name, "key"), name == "snapshot":
		return "FILE"
	case strings.HasSuffix(name, "dir"), strings.HasSuffix(name, "path"):
		return "DIR"
	case strings.HasSuffix(name, "addr"):
		return "ADDR"
	default:
		return "VALUE"
	}
}

// wrap breaks text into lines that begin at column indent, the first excepted.
func wrap(text string, indent int) string {
	var b strings.Builder
	width := 0
	for _, word := range strings.Fields(text) {
		switch {
		case width == 0:
		case indent+width+1+len(word) > helpWidth:
			fmt.Fprintf(&b, "\n%s", strings.Repeat(" ", indent))
			width = 0
		default:
			b.WriteByte(' ')
			width++
		}
		b.WriteString(word)
		width += len(word)
	}
	return b.String()
}

// description joins what a command does and its examples.
func description(about string, examples []string) string {
	about = strings.TrimSpace(about)
	if len(examples) == 0 {
		return about
	}
	if about != "" {
		about += "\n\n"
	}
	return about + "Examples:\n  " + strings.Join(examples, "\n  ")
}
