package main

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/hashicorp/consul/api"
	"github.com/urfave/cli/v2"
)

func kvCommand(s streams) *cli.Command {
	return group("kv", "Read and write the key/value store",
		"Keys are paths such as app/config/level; values are any bytes, up to 512 KiB.",
		kvGet(s), kvPut(s), kvDelete(s), kvExport(s), kvImport(s))
}

// keyArg is the key that a command names, without the slash that people like to
// put in front of it.
func keyArg(c *cli.Context) string { return strings.TrimPrefix(c.Args().First(), "/") }

func kvGet(s streams) *cli.Command {
	return spec{
		name: "get", usage: "Show a value, or keys and values with a prefix", args: "[KEY_OR_PREFIX]", max: 1,
		flags: clientFlags(
			&cli.BoolFlag{Name: "base64", Usage: "Show values in base64."},
			&cli.BoolFlag{Name: "detailed", Usage: "Show indexes, flags and the session too."},
			&cli.BoolFlag{Name: "keys", Usage: "Show the names of the keys with the prefix, no values."},
			&cli.BoolFlag{Name: "recurse", Usage: "Show every key with the prefix, as key:value."},
			&cli.StringFlag{Name: "separator", Value: "/", Usage: "With -keys: cut names after the next of these; empty: do not."},
		),
		examples: []string{"weft kv get app/config/level", "weft kv get -recurse app/", "weft kv get -keys"},
		action: withClient(s, func(c *cli.Context, cl *client) error {
			key := keyArg(c)
			switch {
			case c.Bool("keys") && c.Bool("recurse"):
				return usagef(c, "-keys and -recurse exclude each other")
			case c.Bool("keys"):
				names, _, err := cl.KV().Keys(key, c.String("separator"), cl.read(c.Context))
				if err != nil {
					return err
				}
				for _, n := range names {
					fmt.Fprintln(c.App.Writer, n)
				}
				return nil
			case c.Bool("recurse"):
				pairs, _, err := cl.KV().List(key, cl.read(c.Context))
				if err != nil {
					return err
				}
				return showPairs(c, pairs)
			case key == "":
				return usagef(c, "a key is needed, or -recurse, or -keys")
			}
			p, _, err := cl.KV().Get(key, cl.read(c.Context))
			if err != nil {
				return err
			}
			if p == nil {
				return fmt.Errorf("no key exists at: %s", key)
			}
			if c.Bool("detailed") {
				return showPair(c, p)
			}
			fmt.Fprintln(c.App.Writer, shownValue(c, p))
			return nil
		}),
	}.build()
}

func shownValue(c *cli.Context, p *api.KVPair) string {
	if c.Bool("base64") {
		return base64.StdEncoding.EncodeToString(p.Value)
	}
	return string(p.Value)
}

func showPairs(c *cli.Context, pairs api.KVPairs) error {
	for i, p := range pairs {
		if !c.Bool("detailed") {
			fmt.Fprintf(c.App.Writer, "%s:%s\n", p.Key, shownValue(c, p))
			continue
		}
		if i > 0 {
			fmt.Fprintln(c.App.Writer)
		}
		if err := showPair(c, p); err != nil {
			return err
		}
	}
	return nil
}

// showPair writes the columns that scripts for Consul cut apart.
func showPair(c *cli.Context, p *api.KVPair) error {
	session := p.Session
	if session == "" {
		session = "-"
	}
	tw := tabwriter.NewWriter(c.App.Writer, 0, 2, 6, ' ', 0)
	fmt.Fprintf(tw, "CreateIndex\t%d\nFlags\t%d\nKey\t%s\nLockIndex\t%d\nModifyIndex\t%d\nSession\t%s\nValue\t%s\n",
		p.CreateIndex, p.Flags, p.Key, p.LockIndex, p.ModifyIndex, session, shownValue(c, p))
	return tw.Flush()
}

func kvPut(s streams) *cli.Command {
	return spec{
		name: "put", usage: "Write a value, lock or unlock a key", args: "KEY [DATA]", min: 1, max: 2, anyArgs: true,
		about: "DATA is the value itself, @FILE for that of a file, or - for standard input; without it the value is empty.",
		flags: clientFlags(append(casFlags(),
			&cli.BoolFlag{Name: "acquire", Usage: "Make -session the holder of the key."},
			&cli.BoolFlag{Name: "base64", Usage: "DATA is in base64."},
			&cli.Uint64Flag{Name: "flags", Usage: "A number that is kept with the value."},
			&cli.BoolFlag{Name: "release", Usage: "Let the key go, which -session holds."},
			&cli.StringFlag{Name: "session", Usage: "The session of -acquire and -release."},
		)...),
		examples: []string{"weft kv put app/config/level debug", "weft kv put -cas -modify-index=844 app/config/level info", "weft kv put app/key @key.pem"},
		action: withClient(s, func(c *cli.Context, cl *client) error {
			p, err := pairToPut(c)
			if err != nil {
				return err
			}
			return putPair(c, cl, p)
		}),
	}.build()
}

func pairToPut(c *cli.Context) (*api.KVPair, error) {
	p := &api.KVPair{Key: keyArg(c), Flags: c.Uint64("flags"), Session: c.String("session")}
	if p.Key == "" {
		return nil, usagef(c, "the key is empty")
	}
	index, useCAS, err := cas(c)
	if err != nil {
		return nil, err
	}
	p.ModifyIndex = index
	locking := c.Bool("acquire") || c.Bool("release")
	switch {
	case c.Bool("acquire") && c.Bool("release"), locking && useCAS:
		return nil, usagef(c, "-acquire, -release and -cas exclude each other")
	case locking && p.Session == "":
		return nil, usagef(c, "-acquire and -release need -session")
	}
	p.Value, err = dataArg(c, 1)
	if err != nil || !c.Bool("base64") {
		return p, err
	}
	if p.Value, err = base64.StdEncoding.DecodeString(strings.TrimSpace(string(p.Value))); err != nil {
		return nil, fmt.Errorf("-base64: %w", err)
	}
	return p, nil
}

// dataArg is what an argument says, or the file or input that it names.
func dataArg(c *cli.Context, i int) ([]byte, error) {
	arg := c.Args().Get(i)
	switch {
	case c.NArg() <= i:
		return nil, nil
	case arg == "-":
		return readInput("-", c.App.Reader)
	case strings.HasPrefix(arg, "@"):
		return readInput(arg[1:], c.App.Reader)
	default:
		return []byte(arg), nil
	}
}

func putPair(c *cli.Context, cl *client, p *api.KVPair) error {
	opt := cl.write(c.Context)
	kv, out := cl.KV(), c.App.Writer
	switch {
	case c.Bool("cas"):
		ok, _, err := kv.CAS(p, opt)
		return done(out, ok, err, "Success! Data written to: "+p.Key, fmt.Sprintf("did not write to %s: CAS failed", p.Key))
	case c.Bool("acquire"):
		ok, _, err := kv.Acquire(p, opt)
		return done(out, ok, err, "Success! Lock acquired on: "+p.Key, fmt.Sprintf("did not acquire lock on %s", p.Key))
	case c.Bool("release"):
		ok, _, err := kv.Release(p, opt)
		return done(out, ok, err, "Success! Lock released on: "+p.Key, fmt.Sprintf("did not release lock on %s", p.Key))
	default:
		_, err := kv.Put(p, opt)
		return done(out, true, err, "Success! Data written to: "+p.Key, "")
	}
}

// done says how a change that may be refused went.
func done(w io.Writer, ok bool, err error, success, failure string) error {
	if err != nil {
		return err
	}
	if !ok {
		return errors.New(failure)
	}
	fmt.Fprintln(w, success)
	return nil
}

func kvDelete(s streams) *cli.Command {
	return spec{
		name: "delete", usage: "Delete a key, or all with a prefix", args: "[KEY_OR_PREFIX]", max: 1,
		flags: clientFlags(append(casFlags(),
			&cli.BoolFlag{Name: "recurse", Usage: "Delete every key with the prefix."})...),
		examples: []string{"weft kv delete app/config/level", "weft kv delete -recurse app/"},
		action: withClient(s, func(c *cli.Context, cl *client) error {
			key := keyArg(c)
			index, useCAS, err := cas(c)
			switch {
			case err != nil:
				return err
			case useCAS && c.Bool("recurse"):
				return usagef(c, "-cas and -recurse exclude each other")
			case key == "" && !c.Bool("recurse"):
				return usagef(c, "a key is needed, or -recurse")
			}
			opt := cl.write(c.Context)
			if c.Bool("recurse") {
				_, err := cl.KV().DeleteTree(key, opt)
				return done(c.App.Writer, true, err, "Success! Deleted keys with prefix: "+key, "")
			}
			if useCAS {
				ok, _, err := cl.KV().DeleteCAS(&api.KVPair{Key: key, ModifyIndex: index}, opt)
				return done(c.App.Writer, ok, err, "Success! Deleted key: "+key, fmt.Sprintf("did not delete key %s: CAS failed", key))
			}
			_, err = cl.KV().Delete(key, opt)
			return done(c.App.Writer, true, err, "Success! Deleted key: "+key, "")
		}),
	}.build()
}

// exported is a key in the files of export and import.
type exported struct {
	Key   string `json:"key"`
	Flags uint64 `json:"flags"`
	Value string `json:"value"` // base64
}

func kvExport(s streams) *cli.Command {
	return spec{
		name: "export", usage: "Write keys with a prefix as JSON", args: "[PREFIX]", max: 1, flags: clientFlags(),
		about:    "Sessions and indexes are left out: they mean nothing elsewhere.",
		examples: []string{"weft kv export app/ > app.json"},
		action: withClient(s, func(c *cli.Context, cl *client) error {
			pairs, _, err := cl.KV().List(keyArg(c), cl.read(c.Context))
			if err != nil {
				return err
			}
			out := make([]exported, 0, len(pairs))
			for _, p := range pairs {
				out = append(out, exported{p.Key, p.Flags, base64.StdEncoding.EncodeToString(p.Value)})
			}
			b, err := json.MarshalIndent(out, "", "\t")
			if err != nil {
				return err
			}
			fmt.Fprintf(c.App.Writer, "%s\n", b)
			return nil
		}),
	}.build()
}

func kvImport(s streams) *cli.Command {
	return spec{
		name: "import", usage: "Write the keys of an export", args: "DATA", min: 1, max: 1, anyArgs: true,
		about: "DATA is the JSON itself, @FILE, or - for standard input.",
		flags: clientFlags(&cli.StringFlag{Name: "prefix", Usage: "What to put in front of every key."}),
		examples: []string{
			"weft kv import @app.json", "weft kv export app/ | weft kv import -prefix=copy/ -",
		},
		action: withClient(s, func(c *cli.Context, cl *client) error {
			b, err := dataArg(c, 0)
			if err != nil {
				return err
			}
			var entries []exported
			if err := json.Unmarshal(b, &entries); err != nil {
				return fmt.Errorf("DATA is no export: %w", err)
			}
			pairs := make([]*api.KVPair, 0, len(entries))
			for _, e := range entries {
				v, err := base64.StdEncoding.DecodeString(e.Value)
				if err != nil {
					return fmt.Errorf("the value of key %s: %w", e.Key, err)
				}
				pairs = append(pairs, &api.KVPair{Key: c.String("prefix") + e.Key, Flags: e.Flags, Value: v})
			}
			for _, p := range pairs {
				if _, err := cl.KV().Put(p, cl.write(c.Context)); err != nil {
					return fmt.Errorf("key %s: %w", p.Key, cl.explain(err))
				}
				fmt.Fprintln(c.App.Writer, "Imported: "+p.Key)
			}
			return nil
		}),
	}.build()
}
