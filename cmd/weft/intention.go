package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strconv"
	"time"

	"github.com/hashicorp/consul/api"
	"github.com/urfave/cli/v2"
)

func intentionCommand(s streams) *cli.Command {
	return group("intention", "Say which service may reach which",
		"An intention allows or denies connections from a source to a destination. The most\n"+
			"specific one decides; where none matches, the default does, which is deny.",
		intentionCreate(s), intentionCheck(s), intentionMatch(s), intentionGet(s), intentionList(s), intentionDelete(s))
}

func intentionCreate(s streams) *cli.Command {
	return spec{
		name: "create", usage: "Create an intention", args: "SOURCE DESTINATION", min: 0, max: -1,
		about: "Allows (or, with -deny, denies) connections from SOURCE to DESTINATION. \"*\" stands\nfor any service, \"job-*\" for those whose name begins so. A deny closes the\nconnections that it forbids.",
		examples: []string{
			"weft intention create web db              Let web reach db.",
			"weft intention create -deny '*' db        Let nobody else.",
			"weft intention create 'job-*' db          Let every job-… reach db.",
			"weft intention create -replace -deny web db",
			"weft intention create -file rules.json    Create those of a file.",
			"weft intention create -deny -wait 5s web db",
		},
		flags: clientFlags(
			&cli.BoolFlag{Name: "allow", Usage: "Allow. This is the default."},
			&cli.BoolFlag{Name: "deny", Usage: "Deny."},
			&cli.BoolFlag{Name: "replace", Usage: "Replace an intention of the same source and destination."},
			&cli.StringSliceFlag{Name: "meta", Usage: "Metadata. May be given many times."},
			&cli.BoolFlag{Name: "file", Usage: "The arguments are JSON files, each one intention or a list of them."},
			waitFlag(),
		),
		action: withClient(s, func(c *cli.Context, cl *client) error {
			list, err := intentionsFromArgs(c)
			if err != nil {
				return err
			}
			for _, in := range list {
				if err := cl.createIntention(c.Context, in, c.Bool("replace")); err != nil {
					return fmt.Errorf("intention %s: %w", arrow(in), cl.explain(err))
				}
				fmt.Fprintf(c.App.Writer, "Created: %s\n", in)
			}
			return cl.waitIntentions(c, list)
		}),
	}.build()
}

func arrow(in *api.Intention) string { return sourceOf(in) + " => " + in.DestinationName }

// sourceOf is a source as it is printed: of two that share a name the peer tells.
func sourceOf(in *api.Intention) string {
	if in.SourcePeer == "" {
		return in.SourceName
	}
	return "peer:" + in.SourcePeer + "/" + in.SourceName
}

func intentionsFromArgs(c *cli.Context) ([]*api.Intention, error) {
	meta, err := pairs(c, "meta")
	if err != nil {
		return nil, err
	}
	if c.Bool("allow") && c.Bool("deny") {
		return nil, usagef(c, "-allow and -deny exclude each other")
	}
	if c.Bool("file") {
		if c.NArg() == 0 {
			return nil, usagef(c, "name at least one file")
		}
		return intentionFiles(c.Args().Slice())
	}
	if c.NArg() != 2 {
		return nil, usagef(c, "needs SOURCE DESTINATION, got %d of them", c.NArg())
	}
	action := api.IntentionActionAllow
	if c.Bool("deny") {
		action = api.IntentionActionDeny
	}
	if len(meta) == 0 {
		meta = nil
	}
	return []*api.Intention{{
		SourceName: c.Args().Get(0), DestinationName: c.Args().Get(1),
		SourceType: api.IntentionSourceConsul, Action: action, Meta: meta,
	}}, nil
}

const maxInputFile = 4 << 20

func readInput(path string, stdin io.Reader) ([]byte, error) {
	r := stdin
	if path != "-" {
		f, err := os.Open(path)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		r = f
	}
	b, err := io.ReadAll(io.LimitReader(r, maxInputFile+1))
	if err == nil && len(b) > maxInputFile {
		err = fmt.Errorf("%s is larger than %d MiB", path, maxInputFile>>20)
	}
	return b, err
}

func intentionFiles(paths []string) ([]*api.Intention, error) {
	var out []*api.Intention
	for _, path := range paths {
		b, err := readInput(path, nil)
		if err != nil {
			return nil, err
		}
		var list []*api.Intention
		if err := json.Unmarshal(b, &list); err != nil {
			one := new(api.Intention)
			if err := json.Unmarshal(b, one); err != nil {
				return nil, fmt.Errorf("%s: not an intention, nor a list of them, in JSON: %w", path, err)
			}
			list = []*api.Intention{one}
		}
		for i, in := range list {
			if in == nil || in.SourceName == "" || in.DestinationName == "" {
				return nil, fmt.Errorf("%s: intention %d needs SourceName and DestinationName", path, i+1)
			}
			if in.SourceType == "" {
				in.SourceType = api.IntentionSourceConsul
			}
		}
		out = append(out, list...)
	}
	return out, nil
}

// createIntention writes by name; only metadata needs the older way by ID.
func (c *client) createIntention(ctx context.Context, in *api.Intention, replace bool) error {
	old, _, err := c.Connect().IntentionGetExact(in.SourceName, in.DestinationName, c.read(ctx))
	if err != nil {
		return err
	}
	switch {
	case old != nil && !replace:
		return fmt.Errorf("it exists already (%s); -replace changes it", old.Action)
	case len(in.Meta) == 0:
		_, err = c.Connect().IntentionUpsert(in, c.write(ctx))
	case old == nil:
		_, _, err = c.Connect().IntentionCreate(in, c.write(ctx)) //nolint:staticcheck // the one way to set metadata
	case old.ID == "":
		return errors.New("it was made without metadata, which cannot be added: delete it first")
	default:
		in.ID = old.ID
		_, err = c.Connect().IntentionUpdate(in, c.write(ctx)) //nolint:staticcheck // as above
	}
	return err
}

func intentionCheck(s streams) *cli.Command {
	sp := spec{
		name: "check", usage: "Say whether a connection would be allowed", args: "SOURCE DESTINATION", min: 2, max: 2,
		about: "Prints Allowed or Denied, and on standard error which intention decided. Exits with 0\nwhen allowed, 1 when denied, 2 when it could not be asked.",
		examples: []string{
			"weft intention check web db && echo may connect",
		},
		flags: clientFlags(),
	}
	sp.action = func(c *cli.Context) error {
		err := withClient(s, checkIntention)(c)
		var exit *exitError
		if err != nil && !errors.As(err, &exit) {
			return withCode(exitUsage, err)
		}
		return err
	}
	return sp.build()
}

func checkIntention(c *cli.Context, cl *client) error {
	var answer struct {
		Allowed bool
		Reason  string // not in Consul's answer
	}
	params := url.Values{"source": {c.Args().Get(0)}, "destination": {c.Args().Get(1)}, "source-type": {"consul"}}
	if _, err := cl.call(c.Context, http.MethodGet, "/v1/connect/intentions/check", params, nil, &answer); err != nil {
		return err
	}
	if answer.Reason != "" {
		fmt.Fprintln(c.App.ErrWriter, answer.Reason)
	}
	if answer.Allowed {
		fmt.Fprintln(c.App.Writer, "Allowed")
		return nil
	}
	fmt.Fprintln(c.App.Writer, "Denied")
	return &exitError{code: exitFailure, quiet: true}
}

func intentionMatch(s streams) *cli.Command {
	return spec{
		name: "match", usage: "Show the intentions that can decide for a service", args: "SERVICE", min: 1, max: 1,
		about:    "Lists the intentions with SERVICE as destination (or, with -source, as source), the most\nspecific first.",
		examples: []string{"weft intention match db", "weft intention match -source web"},
		flags: clientFlags(
			&cli.BoolFlag{Name: "source", Usage: "Match by source."},
			&cli.BoolFlag{Name: "destination", Usage: "Match by destination. This is the default."},
			formatFlag(),
		),
		action: withClient(s, func(c *cli.Context, cl *client) error {
			if c.Bool("source") && c.Bool("destination") {
				return usagef(c, "-source and -destination exclude each other")
			}
			by := api.IntentionMatchDestination
			if c.Bool("source") {
				by = api.IntentionMatchSource
			}
			name := c.Args().First()
			got, _, err := cl.Connect().IntentionMatch(&api.IntentionMatch{By: by, Names: []string{name}}, cl.read(c.Context))
			if err != nil {
				return err
			}
			return formatted(c, got[name], func() error {
				for _, in := range got[name] {
					shown := *in
					shown.SourceName = sourceOf(in)
					fmt.Fprintln(c.App.Writer, &shown)
				}
				return nil
			})
		}),
	}.build()
}

// findIntention takes SOURCE DESTINATION, or an ID.
func findIntention(c *cli.Context, cl *client) (*api.Intention, error) {
	var in *api.Intention
	var err error
	what := c.Args().First()
	if c.NArg() == 1 {
		in, _, err = cl.Connect().IntentionGet(what, cl.read(c.Context)) //nolint:staticcheck // IDs live there only
	} else {
		what += " => " + c.Args().Get(1)
		in, _, err = cl.Connect().IntentionGetExact(c.Args().Get(0), c.Args().Get(1), cl.read(c.Context))
	}
	if err != nil {
		return nil, err
	}
	if in == nil {
		return nil, fmt.Errorf("there is no intention %s", what)
	}
	return in, nil
}

func intentionGet(s streams) *cli.Command {
	return spec{
		name: "get", usage: "Show one intention", args: "SOURCE DESTINATION | ID", min: 1, max: 2,
		about:    "Shows an intention by its source and destination, or by its ID where it has one.",
		examples: []string{"weft intention get web db"},
		flags:    clientFlags(formatFlag()),
		action: withClient(s, func(c *cli.Context, cl *client) error {
			in, err := findIntention(c, cl)
			if err != nil {
				return err
			}
			return formatted(c, in, func() error { return showIntention(c.App.Writer, in) })
		}),
	}.build()
}

func showIntention(w io.Writer, in *api.Intention) error {
	action := string(in.Action)
	if len(in.Permissions) > 0 {
		action = fmt.Sprintf("%d permissions", len(in.Permissions))
	}
	when := func(t time.Time) string {
		if t.IsZero() || t.Unix() <= 0 {
			return ""
		}
		return t.Local().Format(time.RFC850)
	}
	lines := [][2]string{
		{"Source", in.SourceName},
		{"Destination", in.DestinationName},
		{"Action", action},
		{"Precedence", strconv.Itoa(in.Precedence)},
		{"ID", in.ID},
		{"Description", in.Description},
		{"Source Peer", in.SourcePeer},
		{"Meta", joined(in.Meta)},
		{"Created At", when(in.CreatedAt)},
		{"Updated At", when(in.UpdatedAt)},
	}
	return facts(w, lines...)
}

func intentionList(s streams) *cli.Command {
	return spec{
		name: "list", usage: "List all intentions",
		about: "Lists every intention, the most specific first.",
		flags: clientFlags(
			&cli.StringFlag{Name: "filter", Usage: "An expression that chooses, such as 'SourceName == \"web\"'."},
			formatFlag(),
		),
		action: withClient(s, func(c *cli.Context, cl *client) error {
			opt := cl.read(c.Context)
			opt.Filter = c.String("filter")
			list, _, err := cl.Connect().Intentions(opt)
			if err != nil {
				return err
			}
			return formatted(c, list, func() error {
				if len(list) == 0 {
					fmt.Fprintln(c.App.ErrWriter, "There are no intentions.")
					return nil
				}
				return table(c.App.Writer, intentionRows(list)...)
			})
		}),
	}.build()
}

// intentionRows is the table of a list. The column of peers is there when a source has one.
func intentionRows(list []*api.Intention) [][]string {
	head := []string{"ID", "Source", "Action", "Destination", "Precedence"}
	peers := slices.ContainsFunc(list, func(in *api.Intention) bool { return in.SourcePeer != "" })
	if peers {
		head = slices.Insert(head, 1, "Source Peer")
	}
	rows := [][]string{head}
	for _, in := range list {
		action := string(in.Action)
		if len(in.Permissions) > 0 {
			action = "<permissions>"
		}
		row := []string{in.ID, in.SourceName, action, in.DestinationName, strconv.Itoa(in.Precedence)}
		if peers {
			row = slices.Insert(row, 1, in.SourcePeer)
		}
		rows = append(rows, row)
	}
	return rows
}

func intentionDelete(s streams) *cli.Command {
	return spec{
		name: "delete", usage: "Delete an intention", args: "SOURCE DESTINATION | ID", min: 1, max: 2,
		about:    "Deletes an intention by its source and destination, or by its ID where it has one. What\nthe remaining intentions do not allow is denied, and its connections are closed.",
		examples: []string{"weft intention delete web db", "weft intention delete -wait 5s web db"},
		flags:    clientFlags(waitFlag()),
		action: withClient(s, func(c *cli.Context, cl *client) error {
			in, err := findIntention(c, cl)
			if err != nil {
				return err
			}
			if c.NArg() == 1 {
				_, err = cl.Connect().IntentionDelete(c.Args().First(), cl.write(c.Context)) //nolint:staticcheck // IDs live there only
			} else {
				_, err = cl.Connect().IntentionDeleteExact(c.Args().Get(0), c.Args().Get(1), cl.write(c.Context))
			}
			if err != nil {
				return err
			}
			fmt.Fprintln(c.App.Writer, "Intention deleted.")
			return cl.waitIntentions(c, []*api.Intention{in})
		}),
	}.build()
}
