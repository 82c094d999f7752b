package main

import (
	"fmt"
	"net/http"
	"net/url"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/weftmesh/weft/catalog"
)

const pathCertRevocations = "/v1/connect/ca/revocations"

func certCommand(s streams) *cli.Command {
	return group("cert", "Withdraw trust in certificates and identities",
		"A certificate is named by its serial, an identity by its SPIFFE ID; weft connect status shows\n"+
			"both. A revoked certificate is replaced by its own proxy; a revoked identity gets none.",
		certRevoke(s), certUnrevoke(s), certRevocations(s))
}

func certRevoke(s streams) *cli.Command {
	return spec{
		name: "revoke", usage: "Revoke a certificate or an identity", args: "SERIAL | SPIFFE-ID", min: 1, max: 1,
		about: "Every proxy refuses the certificate, or all those of the identity, and closes the connections\nthat they hold, on both sides.",
		examples: []string{
			"weft cert revoke 0a:1b:2c:3d",
			"weft cert revoke -reason 'host stolen' -wait 5s spiffe://…/ns/default/dc/dc1/svc/web",
		},
		flags: clientFlags(&cli.StringFlag{Name: "reason", Usage: "Why, for those who list revocations."}, waitFlag()),
		action: withClient(s, func(c *cli.Context, cl *client) error {
			r, err := catalog.ParseCertRevocation(c.Args().First())
			if err != nil {
				return usagef(c, "%v", err)
			}
			r.Description = c.String("reason")
			body := map[string]string{"Serial": r.Serial, "URI": r.URI, "Description": r.Description}
			if _, err := cl.call(c.Context, http.MethodPut, pathCertRevocations, nil, body, nil); err != nil {
				return err
			}
			fmt.Fprintf(c.App.Writer, "Revoked: %s\n", r.Key())
			return cl.waitEnforced(c, pathCertRevocations+"/enforced", nil)
		}),
	}.build()
}

func certUnrevoke(s streams) *cli.Command {
	return spec{
		name: "unrevoke", usage: "Trust a certificate or an identity again", args: "SERIAL | SPIFFE-ID", min: 1, max: 1,
		examples: []string{"weft cert unrevoke 0a:1b:2c:3d"},
		flags:    clientFlags(waitFlag()),
		action: withClient(s, func(c *cli.Context, cl *client) error {
			r, err := catalog.ParseCertRevocation(c.Args().First())
			if err != nil {
				return usagef(c, "%v", err)
			}
			params := url.Values{"serial": {r.Serial}}
			if r.URI != "" {
				params = url.Values{"uri": {r.URI}}
			}
			if _, err := cl.call(c.Context, http.MethodDelete, pathCertRevocations, params, nil, nil); err != nil {
				return err
			}
			fmt.Fprintf(c.App.Writer, "Trusted again: %s\n", r.Key())
			return cl.waitEnforced(c, pathCertRevocations+"/enforced", nil)
		}),
	}.build()
}

func certRevocations(s streams) *cli.Command {
	return spec{
		name: "revocations", usage: "List what is revoked",
		flags: clientFlags(formatFlag()),
		action: withClient(s, func(c *cli.Context, cl *client) error {
			var list []catalog.CertRevocation
			if _, err := cl.call(c.Context, http.MethodGet, pathCertRevocations, nil, nil, &list); err != nil {
				return err
			}
			return formatted(c, list, func() error {
				if len(list) == 0 {
					fmt.Fprintln(c.App.ErrWriter, "Nothing is revoked.")
					return nil
				}
				rows := [][]string{{"Serial or SPIFFE ID", "Revoked at", "Reason"}}
				for _, r := range list {
					rows = append(rows, []string{r.Key(), r.RevokedAt.Local().Format(time.DateTime), r.Description})
				}
				return table(c.App.Writer, rows...)
			})
		}),
	}.build()
}
