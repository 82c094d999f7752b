package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strconv"

	"github.com/urfave/cli/v2"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/cmd/weft/config"
)

func configCommand(s streams) *cli.Command {
	return group("config", "Read and write config entries",
		"Config entries are the central configuration, replicated to every server.",
		configWrite(s), configRead(s), configList(s), configDelete(s))
}

func entryFlags(own ...cli.Flag) []cli.Flag {
	return append([]cli.Flag{
		&cli.StringFlag{Name: "kind", Usage: "The kind of the entry, such as service-intentions."},
		&cli.StringFlag{Name: "name", Usage: "The name of the entry."},
	}, own...)
}

func casFlags() []cli.Flag {
	return []cli.Flag{
		&cli.BoolFlag{Name: "cas", Usage: "Change only what still has -modify-index."},
		&cli.IntFlag{Name: "modify-index", Usage: "The index at which the entry was read; 0 stands for none."},
	}
}

// cas gives the index of a check-and-set.
func cas(c *cli.Context) (uint64, bool, error) {
	if !c.Bool("cas") {
		if c.IsSet("modify-index") {
			return 0, false, usagef(c, "-modify-index needs -cas")
		}
		return 0, false, nil
	}
	if !c.IsSet("modify-index") || c.Int("modify-index") < 0 {
		return 0, false, usagef(c, "-cas needs -modify-index, 0 or above")
	}
	return uint64(c.Int("modify-index")), true, nil
}

func configWrite(s streams) *cli.Command {
	return spec{
		name: "write", usage: "Create or replace a config entry", args: "FILE", min: 1, max: 1,
		about:    "Writes the entry of a file in HCL or JSON; - stands for standard input.",
		examples: []string{"weft config write db-intentions.hcl"},
		flags:    clientFlags(casFlags()...),
		action: withClient(s, func(c *cli.Context, cl *client) error {
			index, useCAS, err := cas(c)
			if err != nil {
				return err
			}
			path := c.Args().First()
			b, err := readInput(path, c.App.Reader)
			if err != nil {
				return err
			}
			entry, err := config.Entry(path, b)
			if err != nil {
				return err
			}
			params := url.Values{}
			if useCAS {
				params.Set("cas", strconv.FormatUint(index, 10))
			}
			body, err := entryBody(entry)
			if err != nil {
				return err
			}
			var done bool
			head, err := cl.call(c.Context, http.MethodPut, "/v1/config", params, body, &done)
			if err != nil {
				return err
			}
			if !done {
				return fmt.Errorf("%s/%s was changed by another: its index is not %d", entry.EntryKind(), entry.EntryName(), index)
			}
			for _, w := range head.Values("X-Weft-Warning") {
				if text, err := strconv.Unquote(w); err == nil {
					fmt.Fprintf(c.App.ErrWriter, "Warning: %s\n", text)
				}
			}
			fmt.Fprintf(c.App.Writer, "Config entry written: %s/%s\n", entry.EntryKind(), entry.EntryName())
			return nil
		}),
	}.build()
}

func needEntry(c *cli.Context) error {
	if c.String("kind") == "" || c.String("name") == "" {
		return usagef(c, "-kind and -name are both needed")
	}
	return nil
}

func configRead(s streams) *cli.Command {
	return spec{
		name: "read", usage: "Show a config entry as JSON", flags: clientFlags(entryFlags()...),
		examples: []string{"weft config read -kind service-intentions -name db"},
		action: withClient(s, func(c *cli.Context, cl *client) error {
			if err := needEntry(c); err != nil {
				return err
			}
			entry, _, err := cl.ConfigEntries().Get(c.String("kind"), c.String("name"), cl.read(c.Context))
			if err != nil {
				return err
			}
			return printJSON(c.App.Writer, entry)
		}),
	}.build()
}

func configList(s streams) *cli.Command {
	return spec{
		name: "list", usage: "List the names of the config entries of a kind",
		flags: clientFlags(
			&cli.StringFlag{Name: "kind", Usage: "The kind of the entries, such as service-intentions."},
			&cli.StringFlag{Name: "filter", Usage: "An expression that chooses."},
		),
		examples: []string{"weft config list -kind service-intentions"},
		action: withClient(s, func(c *cli.Context, cl *client) error {
			if c.String("kind") == "" {
				return usagef(c, "-kind is needed")
			}
			opt := cl.read(c.Context)
			opt.Filter = c.String("filter")
			entries, _, err := cl.ConfigEntries().List(c.String("kind"), opt)
			if err != nil {
				return err
			}
			for _, e := range entries {
				fmt.Fprintln(c.App.Writer, e.GetName())
			}
			return nil
		}),
	}.build()
}

func configDelete(s streams) *cli.Command {
	own := append(entryFlags(&cli.StringFlag{Name: "filename", Usage: "A file that holds the entry, instead of -kind and -name."}), casFlags()...)
	return spec{
		name: "delete", usage: "Delete a config entry", flags: clientFlags(own...),
		examples: []string{"weft config delete -kind service-intentions -name db"},
		action: withClient(s, func(c *cli.Context, cl *client) error {
			index, useCAS, err := cas(c)
			if err != nil {
				return err
			}
			kind, name, err := entryToDelete(c)
			if err != nil {
				return err
			}
			done := true
			if useCAS {
				done, _, err = cl.ConfigEntries().DeleteCAS(kind, name, index, cl.write(c.Context))
			} else {
				_, err = cl.ConfigEntries().Delete(kind, name, cl.write(c.Context))
			}
			if err != nil {
				return err
			}
			if !done {
				return fmt.Errorf("%s/%s was changed by another: its index is not %s", kind, name, strconv.FormatUint(index, 10))
			}
			fmt.Fprintf(c.App.Writer, "Config entry deleted: %s/%s\n", kind, name)
			return nil
		}),
	}.build()
}

func entryToDelete(c *cli.Context) (kind, name string, err error) {
	path := c.String("filename")
	if path == "" {
		return c.String("kind"), c.String("name"), needEntry(c)
	}
	if c.IsSet("kind") || c.IsSet("name") {
		return "", "", usagef(c, "-filename excludes -kind and -name")
	}
	b, err := readInput(path, c.App.Reader)
	if err != nil {
		return "", "", err
	}
	entry, err := config.Entry(path, b)
	if err != nil {
		return "", "", err
	}
	return entry.EntryKind(), entry.EntryName(), nil
}

// entryBody is an entry as the API takes it: its fields, and its kind beside them.
func entryBody(e catalog.ConfigEntry) (map[string]any, error) {
	b, err := json.Marshal(e)
	if err != nil {
		return nil, err
	}
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.UseNumber()
	body := map[string]any{}
	if err := dec.Decode(&body); err != nil {
		return nil, err
	}
	body["Kind"] = e.EntryKind()
	return body, nil
}
