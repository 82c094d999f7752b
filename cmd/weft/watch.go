package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"sync"

	"github.com/hashicorp/consul/api/watch"
	"github.com/hashicorp/go-hclog"
	"github.com/urfave/cli/v2"
)

// watchParams are the flags that say what is watched, under the names of the plan.
var watchParams = []struct{ flag, param, usage string }{
	{"key", "key", "The key, for key."},
	{"prefix", "prefix", "The prefix, for keyprefix."},
	{"service", "service", "The service, for service, checks and connect_leaf."},
	{"service-id", "service_id", "The ID of the service, for agent_service."},
	{"state", "state", "The state of checks, for checks."},
	{"name", "name", "The name of the event, for event."},
	{"filter", "filter", "An expression that chooses, for services, nodes, service and checks."},
}

func watchCommand(s streams) *cli.Command {
	flags := []cli.Flag{
		&cli.StringFlag{Name: "type", Usage: "What to watch: key, keyprefix, services, nodes, service, checks, event, connect_roots, connect_leaf or agent_service; needed."},
		&cli.StringSliceFlag{Name: "tag", Usage: "A tag that instances must have, for service. May be given many times."},
		&cli.StringFlag{Name: "passingonly", Usage: "true: only instances that pass, for service."},
		shellFlag(),
	}
	for _, p := range watchParams {
		flags = append(flags, &cli.StringFlag{Name: p.flag, Usage: p.usage})
	}
	return spec{
		name: "watch", usage: "Show something, or run a program each time that it changes", args: "[CHILD...]", max: -1, anyArgs: true,
		about: "Without a child, shows what there is now as JSON and ends. With one, runs it now and at\n" +
			"each change: it finds the JSON on standard input and the index in CONSUL_INDEX.",
		flags:    clientFlags(flags...),
		examples: []string{"weft watch -type=key -key=app/config/level", "weft watch -type=service -service=web ./reload.sh"},
		action:   withClient(s, runWatch),
	}.build()
}

func runWatch(c *cli.Context, cl *client) error {
	plan, err := watchPlan(c)
	if err != nil {
		return err
	}
	// A wrong address shows now and not as a line of the log in a while.
	if _, err := cl.Agent().NodeName(); err != nil {
		return err
	}
	ctx, stop := untilSignal(c.Context)
	defer stop()
	h := &watchHandler{c: c, ctx: ctx, plan: plan}
	plan.HybridHandler = h.handle
	ended := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		select {
		case <-ctx.Done():
			plan.Stop()
		case <-ended:
		}
	})
	log := hclog.New(&hclog.LoggerOptions{Output: c.App.ErrWriter, Level: hclog.Error, DisableTime: true})
	err = plan.RunWithClientAndHclog(cl.Client, log)
	close(ended)
	wg.Wait()
	if h.err != nil {
		return h.err
	}
	return err
}

func watchPlan(c *cli.Context) (*watch.Plan, error) {
	if c.String("type") == "" {
		return nil, usagef(c, "-type is needed")
	}
	params := map[string]any{"type": c.String("type")}
	if c.Bool("stale") {
		params["stale"] = true
	}
	if dc := c.String("datacenter"); dc != "" {
		params["datacenter"] = dc
	}
	for _, p := range watchParams {
		if v := c.String(p.flag); v != "" {
			params[p.param] = v
		}
	}
	if tags := c.StringSlice("tag"); len(tags) > 0 {
		params["tag"] = tags
	}
	if v := c.String("passingonly"); v != "" {
		b, err := strconv.ParseBool(v)
		if err != nil {
			return nil, usagef(c, "-passingonly %q is neither true nor false", v)
		}
		params["passingonly"] = b
	}
	plan, err := watch.Parse(params)
	if err != nil {
		return nil, usagef(c, "%w", err)
	}
	return plan, nil
}

// watchHandler does what is to be done at each change.
type watchHandler struct {
	c    *cli.Context
	ctx  context.Context
	plan *watch.Plan
	err  error
}

func (h *watchHandler) handle(at watch.BlockingParamVal, v any) {
	err := h.run(at, v)
	if h.ctx.Err() != nil {
		return // the child was ended with us
	}
	if err != nil || h.c.NArg() == 0 {
		h.err = err
		h.plan.Stop()
	}
}

func (h *watchHandler) run(at watch.BlockingParamVal, v any) error {
	if h.c.NArg() == 0 {
		return printJSON(h.c.App.Writer, v)
	}
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	index := fmt.Sprint(at)
	cmd := child(h.ctx, h.c, 0, "CONSUL_INDEX="+index, "WEFT_INDEX="+index)
	cmd.Stdin = bytes.NewReader(append(b, '\n'))
	defer killGroup(cmd)
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("the child failed: %w", err)
	}
	return nil
}
