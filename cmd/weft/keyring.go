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
			fmt.Fprintln(c.App.Writer, gossipKey())
			return nil
		},
	}.build()
}

// gossipKey makes a key, in base64.
func gossipKey() string {
	key := make([]byte, 32)
	_, _ = rand.Read(key) // never fails
	return base64.StdEncoding.EncodeToString(key)
}

func keyringCommand(s streams) *cli.Command {
	return spec{
		name: "keyring", usage: "Change the keys that encrypt gossip",
		flags: clientFlags(
			&cli.BoolFlag{Name: "list", Usage: "List the keys, and on how many members each is; where no server runs, those of this host alone."},
			&cli.BoolFlag{Name: "list-primary", Usage: "List the keys that members encrypt with."},
			&cli.BoolFlag{Name: "rotate", Usage: "Replace the key: make a new one, install it, use it, and remove all former ones."},
			&cli.StringFlag{Name: "install", Usage: "Install a key on all members."},
			&cli.StringFlag{Name: "use", Usage: "Encrypt with a key that is installed."},
			&cli.StringFlag{Name: "remove", Usage: "Remove a key that is not in use."},
			&cli.IntFlag{Name: "relay-factor", Usage: "Accepted, 0 to 5."},
			&cli.BoolFlag{Name: "local-only", Usage: "With -list: only the members of this datacenter."},
		),
		about: "With -rotate the key is replaced in one go: each step is done by all members before the next, and the\n" +
			"first that fails ends it. By hand that is: install a new key, use it, remove the old one. Keys change\n" +
			"when this command says so and not by themselves. It changes them on a server's host only; members\n" +
			"that are down take the new key over when they come back.",
		examples: []string{"weft keyring -rotate", "weft keyring -install=\"$(weft keygen)\"", "weft keyring -list"},
		action:   withClient(s, changeKeyring),
	}.build()
}

// keyringStep is a change of the keys of all members.
type keyringStep struct{ flag, method, says string }

var (
	keyringInstall = keyringStep{"install", http.MethodPost, "Installing new gossip encryption key..."}
	keyringUse     = keyringStep{"use", http.MethodPut, "Changing primary gossip encryption key..."}
	keyringRemove  = keyringStep{"remove", http.MethodDelete, "Removing gossip encryption key..."}
)

func (st keyringStep) do(c *cli.Context, cl *client, params url.Values, key string) error {
	fmt.Fprintln(c.App.Writer, "==> "+st.says)
	_, err := cl.call(c.Context, st.method, keyringPath, params, map[string]string{"Key": key}, nil)
	return err
}

const keyringPath = "/v1/operator/keyring"

func changeKeyring(c *cli.Context, cl *client) error {
	asked := 0
	for _, f := range []string{"list", "list-primary", "rotate"} {
		if c.Bool(f) {
			asked++
		}
	}
	for _, f := range []string{"install", "use", "remove"} {
		if c.IsSet(f) {
			asked++
		}
	}
	if asked != 1 {
		return usagef(c, "name exactly one of -list, -list-primary, -rotate, -install, -use and -remove")
	}
	if n := c.Int("relay-factor"); n < 0 || n > 5 {
		return usagef(c, "-relay-factor %d is not in 0 to 5", n)
	}
	params := url.Values{}
	if c.IsSet("relay-factor") {
		params.Set("relay-factor", strconv.Itoa(c.Int("relay-factor")))
	}
	if c.Bool("rotate") {
		return rotateKeyring(c, cl, params)
	}
	for _, st := range []keyringStep{keyringInstall, keyringUse, keyringRemove} {
		if c.IsSet(st.flag) {
			return st.do(c, cl, params, c.String(st.flag))
		}
	}
	if c.Bool("local-only") {
		params.Set("local-only", "true")
	}
	rings, err := gatherKeyrings(c, cl, params)
	if err != nil {
		return err
	}
	return showKeyrings(c, rings)
}

func gatherKeyrings(c *cli.Context, cl *client, params url.Values) (rings []*api.KeyringResponse, err error) {
	fmt.Fprintln(c.App.Writer, "==> Gathering installed encryption keys...")
	_, err = cl.call(c.Context, http.MethodGet, keyringPath, params, nil, &rings)
	return rings, err
}

// rotateKeyring replaces the keys of all members by a new one. Where it ends half-way
// all members have the key that the others encrypt with, and running it again mends it.
func rotateKeyring(c *cli.Context, cl *client, params url.Values) error {
	rings, err := gatherKeyrings(c, cl, params)
	if err != nil {
		return err
	}
	former, members := map[string]bool{}, 0
	for _, r := range rings {
		for node, says := range r.Messages {
			return fmt.Errorf("%s did not tell its keys (%s), and nothing was changed: once `weft members` shows it alive and well, or failed, run this again", node, says)
		}
		for k := range r.Keys {
			former[k] = true
		}
		members = max(members, r.NumNodes)
	}
	key := gossipKey()
	for _, step := range []struct {
		keyringStep
		left string // what a failure leaves behind
	}{
		{keyringInstall, "all members encrypt with the former key still; some have the new one too"},
		{keyringUse, "all members have the new key and the former one, and understand each other; some encrypt with the new one already"},
	} {
		if err := step.do(c, cl, params, key); err != nil {
			return halfRotated(cl, err, step.left)
		}
	}
	for _, k := range slices.Sorted(maps.Keys(former)) {
		if err := keyringRemove.do(c, cl, params, k); err != nil {
			return halfRotated(cl, err, "all members encrypt with the new key; some have a former one still")
		}
	}
	fmt.Fprintf(c.App.Writer, "Gossip is encrypted with a new key (members: %d). Members that are down take it over when they come back.\n", members)
	return nil
}

func halfRotated(cl *client, err error, left string) error {
	return fmt.Errorf("%w\n%s. Nobody is cut off. Mend what the message names, then run `weft keyring -rotate` again: "+
		"it replaces all keys that are left over", cl.explain(err), left)
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
