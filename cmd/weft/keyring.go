package main

import (
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"

	"github.com/hashicorp/consul/api"
	"github.com/urfave/cli/v2"
)

func keygenCommand() *cli.Command {
	return spec{
		name: "keygen", usage: "Make a key that encrypts gossip",
		about: "The key is for the configuration key encrypt, the same on all hosts, or for `weft keyring -install`.",
		action: func(c *cli.Context) error {
			key := make([]byte, 32)
			_, _ = rand.Read(key) // never fails
			fmt.Fprintln(c.App.Writer, base64.StdEncoding.EncodeToString(key))
			return nil
		},
	}.build()
}

func keyringCommand(s streams) *cli.Command {
	return spec{
		name: "keyring", usage: "Change the keys that encrypt gossip",
		flags: clientFlags(
			&cli.BoolFlag{Name: "list", Usage: "List the keys, and on how many members each is."},
			&cli.BoolFlag{Name: "list-primary", Usage: "List the keys that members encrypt with."},
			&cli.StringFlag{Name: "install", Usage: "Install a key on all members."},
			&cli.StringFlag{Name: "use", Usage: "Encrypt with a key that is installed."},
			&cli.StringFlag{Name: "remove", Usage: "Remove a key that is not in use."},
			&cli.IntFlag{Name: "relay-factor", Usage: "Accepted, 0 to 5."},
			&cli.BoolFlag{Name: "local-only", Usage: "With -list: only the members of this datacenter."},
		),
		about:    "To replace a key: install the new one, use it, remove the old one, each on all members before the next.",
		examples: []string{"weft keyring -install=\"$(weft keygen)\"", "weft keyring -list"},
		action:   withClient(s, changeKeyring),
	}.build()
}

func changeKeyring(c *cli.Context, cl *client) error {
	type step struct{ flag, method, says string }
	steps := []step{
		{"install", http.MethodPost, "Installing new gossip encryption key..."},
		{"use", http.MethodPut, "Changing primary gossip encryption key..."},
		{"remove", http.MethodDelete, "Removing gossip encryption key..."},
	}
	asked := 0
	for _, f := range []string{"list", "list-primary", "install", "use", "remove"} {
		if c.IsSet(f) {
			asked++
		}
	}
	if asked != 1 {
		return usagef(c, "name exactly one of -list, -list-primary, -install, -use and -remove")
	}
	if n := c.Int("relay-factor"); n < 0 || n > 5 {
		return usagef(c, "-relay-factor %d is not in 0 to 5", n)
	}
	params := url.Values{}
	if c.IsSet("relay-factor") {
		params.Set("relay-factor", strconv.Itoa(c.Int("relay-factor")))
	}
	for _, st := range steps {
		if !c.IsSet(st.flag) {
			continue
		}
		fmt.Fprintln(c.App.Writer, "==> "+st.says)
		_, err := cl.call(c.Context, st.method, "/v1/operator/keyring", params, map[string]string{"Key": c.String(st.flag)}, nil)
		return err
	}
	fmt.Fprintln(c.App.Writer, "==> Gathering installed encryption keys...")
	if c.Bool("local-only") {
		params.Set("local-only", "true")
	}
	var rings []*api.KeyringResponse
	if _, err := cl.call(c.Context, http.MethodGet, "/v1/operator/keyring", params, nil, &rings); err != nil {
		return err
	}
	return showKeyrings(c, rings)
}

func showKeyrings(c *cli.Context, rings []*api.KeyringResponse) error {
	failed := false
	for _, r := range rings {
		pool := r.Datacenter + " (LAN)"
		if r.WAN {
			pool = "WAN"
		}
		fmt.Fprintf(c.App.Writer, "\n%s:\n", pool)
		keys := r.Keys
		if c.Bool("list-primary") {
			keys = r.PrimaryKeys
		}
		for _, k := range slices.Sorted(maps.Keys(keys)) {
			fmt.Fprintf(c.App.Writer, "  %s [%d/%d]\n", k, keys[k], r.NumNodes)
		}
		for _, node := range slices.Sorted(maps.Keys(r.Messages)) {
			failed = true
			fmt.Fprintf(c.App.ErrWriter, "%s: %s\n", node, r.Messages[node])
		}
	}
	if failed {
		return errors.New("not every member told its keys")
	}
	return nil
}
