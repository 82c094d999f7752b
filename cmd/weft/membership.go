package main

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"

	"github.com/urfave/cli/v2"
)

func joinCommand(s streams) *cli.Command {
	return spec{
		name: "join", usage: "Let the agent join the hosts at some addresses",
		about: "The addresses are of gossip, host or host:port; one that answers is enough. An agent that has no\n" +
			"certificate yet asks for it at the same hosts. retry_join does the same at each start.",
		args: "ADDRESS...", min: 1, max: -1,
		flags:    clientFlags(&cli.BoolFlag{Name: "wan", Usage: "Join the servers of another datacenter. Refused: there is no gossip between datacenters."}),
		examples: []string{"weft join 10.0.0.1 10.0.0.2"},
		action: withClient(s, func(c *cli.Context, cl *client) error {
			params := url.Values{}
			if c.Bool("wan") {
				params.Set("wan", "true")
			}
			joined := 0
			var failed error
			for _, addr := range c.Args().Slice() {
				if _, err := cl.call(c.Context, http.MethodPut, "/v1/agent/join/"+url.PathEscape(addr), params, nil, nil); err != nil {
					failed = errors.Join(failed, fmt.Errorf("%s: %w", addr, cl.explain(err)))
					continue
				}
				joined++
			}
			if failed != nil {
				fmt.Fprintf(s.err, "Error: %v\n", failed)
			}
			if joined == 0 {
				return withCode(exitFailure, errors.New("no address could be joined"))
			}
			fmt.Fprintf(c.App.Writer, "Successfully joined cluster by contacting %d nodes.\n", joined)
			return nil
		}),
	}.build()
}

func forceLeaveCommand(s streams) *cli.Command {
	return spec{
		name: "force-leave", usage: "Say of a host that failed that it has left",
		about: "A host that failed is tried again for days; one that left is not, and its services are gone at once. A host\n" +
			"that is alive is refused: run `weft leave` there. One that was revoked is not, on a server's host. A host\n" +
			"that comes back under the name needs none of this.",
		args: "NODE", min: 1, max: 1,
		flags: clientFlags(
			&cli.BoolFlag{Name: "prune", Usage: "Forget the host altogether."},
			&cli.BoolFlag{Name: "wan", Usage: "Accepted: there is no gossip between datacenters."},
		),
		examples: []string{"weft force-leave web-7", "weft force-leave -prune web-7"},
		action: withClient(s, func(c *cli.Context, cl *client) error {
			params := url.Values{}
			if c.Bool("prune") {
				params.Set("prune", "true")
			}
			_, err := cl.call(c.Context, http.MethodPut, "/v1/agent/force-leave/"+url.PathEscape(c.Args().First()), params, nil, nil)
			return err
		}),
	}.build()
}
