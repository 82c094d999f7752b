package main

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/urfave/cli/v2"
)

// table writes rows in aligned columns; the first row is the head.
func table(w io.Writer, rows ...[]string) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, r := range rows {
		if _, err := fmt.Fprintln(tw, strings.Join(r, "\t")); err != nil {
			return err
		}
	}
	return tw.Flush()
}

// facts writes "Name:  value" lines, leaving out those without a value.
func facts(w io.Writer, pairs ...[2]string) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, p := range pairs {
		if p[1] == "" {
			continue
		}
		if _, err := fmt.Fprintf(tw, "%s:\t%s\n", p[0], p[1]); err != nil {
			return err
		}
	}
	return tw.Flush()
}

func printJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "    ")
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

// formatFlag chooses between what people and what programs read.
func formatFlag() cli.Flag {
	return &cli.StringFlag{Name: "format", Value: "pretty", Usage: "The form of the output: pretty or json."}
}

// formatted writes v as JSON when -format=json, else calls pretty.
func formatted(c *cli.Context, v any, pretty func() error) error {
	switch f := c.String("format"); f {
	case "json":
		return printJSON(c.App.Writer, v)
	case "pretty":
		return pretty()
	default:
		return &usageError{command: c.Command.HelpName, err: fmt.Errorf("-format %q is neither pretty nor json", f)}
	}
}

// pairs parses the values of a repeated key=value flag.
func pairs(c *cli.Context, flag string) (map[string]string, error) {
	values := c.StringSlice(flag)
	out := make(map[string]string, len(values))
	for _, v := range values {
		key, value, ok := strings.Cut(v, "=")
		if !ok || key == "" {
			return nil, &usageError{command: c.Command.HelpName, err: fmt.Errorf("-%s %q is not key=value", flag, v)}
		}
		out[key] = value
	}
	return out, nil
}

// joined writes a map as k=v,k=v in the order of its keys.
func joined(m map[string]string) string {
	parts := make([]string, 0, len(m))
	for k, v := range m {
		parts = append(parts, k+"="+v)
	}
	slices.Sort(parts)
	return strings.Join(parts, ",")
}

// usagef makes a usage error of the running command.
func usagef(c *cli.Context, format string, args ...any) error {
	return &usageError{command: c.Command.HelpName, err: fmt.Errorf(format, args...)}
}
