package main

import (
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/weftmesh/weft/connect/enroll"
)

func secretCommand(streams) *cli.Command {
	return group("secret", "Make the secret that servers share",
		"All that is confidential between servers follows from it: who may be a server, the first key of gossip, the\n"+
			"key under which the authority's keys lie in the log, and join tokens. Whoever has it can be a server.",
		spec{
			name: "new", usage: "Make a cluster secret, and with it a cluster",
			about: "No agent needs to run. Give the file to every server (cluster_secret_file), and to nobody else.",
			flags: []cli.Flag{
				&cli.StringFlag{Name: "out", Usage: "Write it to this new file, with mode 0600, instead of printing it."},
			},
			examples: []string{"weft secret new -out /etc/weft.d/cluster.secret"},
			action: func(c *cli.Context) error {
				s := enroll.NewSecret()
				file := c.String("out")
				if file == "" {
					_, err := fmt.Fprintln(c.App.Writer, s.Text())
					return err
				}
				if err := enroll.WriteSecret(file, s); err != nil {
					return err
				}
				fmt.Fprintf(c.App.Writer, "The secret of cluster %s is in %s.\n", s.ClusterID(), file)
				return nil
			},
		}.build())
}

func joinTokenCommand(s streams) *cli.Command {
	cmd := spec{
		name: "join-token", usage: "Make a token by which hosts become agents",
		about: "With -secret-file (or WEFT_CLUSTER_SECRET_FILE) no agent needs to run; without it the agent of a server's\n" +
			"host is asked. A token is good for any number of hosts until it ends or is revoked. It pins the cluster, so\n" +
			"that its bearer joins no other, and makes nobody a server. Put it into join_token_file.",
		flags: clientFlags(
			&cli.DurationFlag{Name: "ttl", Value: enroll.DefaultTTL, Usage: "How long it is good, one minute to 366 days."},
			&cli.StringFlag{Name: "secret-file", Usage: "The cluster secret to make it from."},
			&cli.StringFlag{Name: "out", Usage: "Write it to this file, with mode 0600, instead of printing it."},
			formatFlag(),
		),
		examples: []string{"weft join-token -ttl 1h", "weft join-token -secret-file cluster.secret -out join.token"},
		action:   func(c *cli.Context) error { return makeToken(c, s) },
	}.build()
	cmd.Subcommands = []*cli.Command{
		spec{
			name: "list", usage: "List the join tokens that were revoked",
			about: "Tokens that are good are written down nowhere: they carry all that servers need to know. A revocation is\n" +
				"kept until a day after the token's end, which is when it expires.",
			flags: clientFlags(formatFlag()), action: withClient(s, listRevoked("token")),
		}.build(),
		spec{
			name: "revoke", usage: "Revoke a join token", args: "TOKEN | ID", min: 1, max: 1,
			about: "Hosts that have joined by it stay; see `weft node revoke`.",
			flags: clientFlags(), examples: []string{"weft join-token revoke 3f0c9a1b2d4e5f60"}, action: withClient(s, revokeToken),
		}.build(),
	}
	return cmd
}

// tokenView is a join token as it is made, offline or by a server.
type tokenView struct {
	ID, Token, ClusterID string
	Expires              time.Time
}

func makeToken(c *cli.Context, s streams) error {
	var t tokenView
	if file := credentialFlag(c, s, "secret-file", secretEnv); file != "" {
		secret, err := enroll.ReadSecret(file)
		if err != nil {
			return err
		}
		made, err := secret.Mint(enroll.MintOptions{TTL: c.Duration("ttl")})
		if err != nil {
			return err
		}
		t = tokenView{made.ID, made.Text(), made.ClusterID, made.Expires}
	} else {
		ask := func(c *cli.Context, cl *client) error {
			_, err := cl.call(c.Context, http.MethodPut, "/v1/internal/join-token", url.Values{"ttl": {c.Duration("ttl").String()}}, nil, &t)
			return err
		}
		if err := withClient(s, ask)(c); err != nil {
			return err
		}
	}
	if file := c.String("out"); file != "" {
		parsed, err := enroll.ParseToken(t.Token)
		if err != nil {
			return err
		}
		if err := enroll.WriteToken(file, parsed); err != nil {
			return err
		}
		fmt.Fprintf(c.App.Writer, "Join token %s of cluster %s is in %s; it is good until %s.\n", t.ID, t.ClusterID, file, t.Expires.Format(time.RFC3339))
		return nil
	}
	return formatted(c, t, func() error {
		fmt.Fprintln(c.App.ErrWriter, tokenNote(t))
		_, err := io.WriteString(c.App.Writer, t.Token+"\n")
		return err
	})
}

// tokenNote goes beside the token, which may be piped into a file.
func tokenNote(t tokenView) string {
	return fmt.Sprintf("Join token %s of cluster %s, good until %s:", t.ID, t.ClusterID, t.Expires.Format(time.RFC3339))
}

// credentialFlag is a file that a flag or the environment names.
func credentialFlag(c *cli.Context, s streams, flag, env string) string {
	if f := c.String(flag); f != "" {
		return f
	}
	return s.env(env)
}

func revokeToken(c *cli.Context, cl *client) error {
	id, params := c.Args().First(), url.Values{}
	if t, err := enroll.ParseToken(id); err == nil {
		id = t.ID
		params.Set("expires", t.Expires.Format(time.RFC3339))
	} else if !enroll.IsTokenID(id) {
		return usagef(c, "%v; an ID has 16 hexadecimal digits", err)
	}
	if _, err := cl.call(c.Context, http.MethodPut, "/v1/internal/revocation/token/"+id, params, nil, nil); err != nil {
		return err
	}
	fmt.Fprintf(c.App.Writer, "Join token %s was revoked. Hosts that have joined by it stay.\n", id)
	return nil
}

func nodeCommand(s streams) *cli.Command {
	return group("node", "Shut a host out of the cluster, or let it in again",
		"A node's certificate is good until it ends, and even then gets it the next one.\nRevoking the node ends that at once.",
		spec{
			name: "revoke", usage: "Shut a node out", args: "NAME | ID", min: 1, max: 1,
			about: "Its connections to servers are closed, and neither its certificate nor a join token gets it\nback in under its ID.\n" +
				"A name is taken as it is written; in another case only where no other node has it. Check the ID that is\n" +
				"printed: agents may register hosts under any name, but an ID is never taken for one.\n" +
				"Servers take it for failed, alive or not: its services are not healthy any more.\n" +
				"It still knows the key of gossip and the certificates of its services until they end: replace the key with\n" +
				"`weft keyring -rotate`, which does not give it the new one, and take it out of the catalog with\n" +
				"`weft force-leave -prune`, both on a server's host.",
			flags: clientFlags(), examples: []string{"weft node revoke web1"}, action: withClient(s, changeNode(http.MethodPut,
				"Node %s was revoked: its connections are closed, and it does not come back.\n")),
		}.build(),
		spec{
			name: "allow", usage: "Let a node in again that was revoked", args: "NAME | ID", min: 1, max: 1,
			about: "It comes back by itself when its certificate is still there, or else with a join token.",
			flags: clientFlags(), action: withClient(s, changeNode(http.MethodDelete, "Node %s is allowed again.\n")),
		}.build(),
		spec{
			name: "revoked", usage: "List the nodes that were revoked",
			flags: clientFlags(formatFlag()), action: withClient(s, listRevoked("node")),
		}.build())
}

// revocationView is an element of /v1/internal/revocations.
type revocationView struct {
	Kind, ID, Node string
	At             time.Time
	Expires        *time.Time `json:",omitempty"`
}

func changeNode(method, says string) func(*cli.Context, *client) error {
	return func(c *cli.Context, cl *client) error {
		var r revocationView
		if _, err := cl.call(c.Context, method, "/v1/internal/revocation/node/"+url.PathEscape(c.Args().First()), nil, nil, &r); err != nil {
			return err
		}
		name := r.ID
		if r.Node != "" {
			name = r.Node + " (" + r.ID + ")"
		}
		fmt.Fprintf(c.App.Writer, says, name)
		return nil
	}
}

func listRevoked(kind string) func(*cli.Context, *client) error {
	return func(c *cli.Context, cl *client) error {
		var all []revocationView
		if _, err := cl.call(c.Context, http.MethodGet, "/v1/internal/revocations", nil, nil, &all); err != nil {
			return err
		}
		rows, found := [][]string{{"ID", "Node", "Revoked", "Expires"}}, []revocationView{}
		for _, r := range all {
			if r.Kind != kind {
				continue
			}
			found = append(found, r)
			expires := ""
			if r.Expires != nil {
				expires = r.Expires.Format(time.RFC3339)
			}
			rows = append(rows, []string{r.ID, r.Node, r.At.Format(time.RFC3339), expires})
		}
		return formatted(c, found, func() error {
			if len(found) == 0 {
				fmt.Fprintf(c.App.ErrWriter, "No %s was revoked.\n", map[string]string{"token": "join token", "node": "node"}[kind])
				return nil
			}
			return table(c.App.Writer, rows...)
		})
	}
}
