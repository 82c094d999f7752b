package main

import (
	"fmt"
	"net/http"
	"net/url"
	"time"

	"github.com/hashicorp/consul/api"
	"github.com/urfave/cli/v2"
)

const pathIntentionsEnforced = "/v1/connect/intentions/enforced"

// waitFlag is for commands that change policy.
func waitFlag() cli.Flag {
	return &cli.DurationFlag{Name: "wait", Usage: "Wait this long, such as 5s, until every proxy that is concerned enforces the change. " +
		"Exits with 1 and names those that do not."}
}

// waitEnforced waits, where the flag says so, until the policy that path asks for is
// enforced as it is now.
func (c *client) waitEnforced(ctx *cli.Context, path string, params url.Values) error {
	if !ctx.IsSet("wait") {
		return nil
	}
	wait := ctx.Duration("wait")
	if wait < 0 {
		return usagef(ctx, "-wait must not be negative")
	}
	if params == nil {
		params = url.Values{}
	}
	params.Set("wait", wait.String())
	var answer struct {
		Enforced bool
		Proxies  []struct {
			Node, Proxy, Service, Why string
			Enforced                  bool
		}
	}
	begun := time.Now()
	if _, err := c.call(ctx.Context, http.MethodGet, path, params, nil, &answer); err != nil {
		return fmt.Errorf("it is written, and whether it is enforced is not known: %w", c.explain(err))
	}
	if answer.Enforced {
		fmt.Fprintf(ctx.App.Writer, "Enforced by %s after %s.\n", countedProxies(len(answer.Proxies)), time.Since(begun).Round(time.Millisecond))
		return nil
	}
	missing := 0
	for _, p := range answer.Proxies {
		if !p.Enforced {
			missing++
			fmt.Fprintf(ctx.App.ErrWriter, "Not enforced by %s on %s: %s\n", p.Proxy, p.Node, p.Why)
		}
	}
	fmt.Fprintf(ctx.App.ErrWriter, "It is written; %d of %s did not enforce it within %s.\n", missing, countedProxies(len(answer.Proxies)), wait)
	return &exitError{code: exitFailure, quiet: true}
}

func countedProxies(n int) string {
	if n == 1 {
		return "1 proxy"
	}
	return fmt.Sprintf("%d proxies", n)
}

// waitIntentions waits until the intentions of the destinations of list are enforced.
func (c *client) waitIntentions(ctx *cli.Context, list []*api.Intention) error {
	done := map[string]bool{}
	for _, in := range list {
		if done[in.DestinationName] {
			continue
		}
		done[in.DestinationName] = true
		if err := c.waitEnforced(ctx, pathIntentionsEnforced, url.Values{"destination": {in.DestinationName}}); err != nil {
			return err
		}
	}
	return nil
}
