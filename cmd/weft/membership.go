package main

import (
	"fmt"
	"net/http"
	"net/url"

	"github.com/urfave/cli/v2"
)

func joinCommand(s streams) *cli.Command {
	return spec{
		name: "join", usage: "Let the agent join a cluster", args: "ADDRESS…", min: 1, max: -1,
		about:    "Contacts members of a cluster by their gossip address. It lasts until the agent ends; retry_join\nin its configuration lasts longer.",
		examples: []string{"weft join 10.0.0.7", "weft join 10.0.0.7:8301 10.0.0.8:8301"},
		flags:    clientFlags(&cli.BoolFlag{Name: "wan", Usage: "Join servers of other datacenters."}),
		action: withClient(s, func(c *cli.Context, cl *client) error {
			params := url.Values{}
			if c.Bool("wan") {
				params.Set("wan", "1")
			}
			joined := 0
			var last error
			for _, addr := range c.Args().Slice() {
				if _, err := cl.call(c.Context, http.MethodPut, "/v1/agent/join/"+url.PathEscape(addr), params, nil, nil); err != nil {
					last = cl.explain(err)
					fmt.Fprintf(c.App.ErrWriter, "Error joining address '%s': %v\n", addr, last)
					continue
				}
				joined++
			}
			if joined == 0 {
				return fmt.Errorf("failed to join any nodes: %w", last)
			}
			_, err := fmt.Fprintf(c.App.Writer, "Successfully joined cluster by contacting %d nodes.\n", joined)
			return err
		}),
	}.build()
}

func forceLeaveCommand(s streams) *cli.Command {
	return spec{
		name: "force-leave", usage: "Declare a failed member gone", args: "NODE", min: 1, max: 1,
		about:    "For a host that will not come back: its services leave the catalog at once instead of after\nreconnect_timeout. A member that is alive joins again by itself.",
		examples: []string{"weft force-leave -prune web-7"},
		flags: clientFlags(
			&cli.BoolFlag{Name: "prune", Usage: "Forget it altogether, so that members does not list it."},
			&cli.BoolFlag{Name: "wan", Usage: "Among the servers of all datacenters."}),
		action: withClient(s, func(c *cli.Context, cl *client) error {
			params := url.Values{}
			for _, flag := range []string{"prune", "wan"} {
				if c.Bool(flag) {
					params.Set(flag, "1")
				}
			}
			_, err := cl.call(c.Context, http.MethodPut, "/v1/agent/force-leave/"+url.PathEscape(c.Args().First()), params, nil, nil)
			return err
		}),
	}.build()
}
