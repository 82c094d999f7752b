package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strconv"
	"strings"

	"github.com/hashicorp/consul/api"
	"github.com/urfave/cli/v2"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/connect"
)

func connectProxy(s streams) *cli.Command {
	return spec{
		name: "proxy", usage: "Run a proxy in a process of its own",
		about: "The agent runs the sidecars of its host by itself; nobody has to call this for them. It is\n" +
			"for a proxy apart from the agent, and for trying things out:\n\n" +
			"  -sidecar-for or -proxy-id   runs a registered proxy whose config says external = true.\n" +
			"  -service                    runs a proxy that is registered as NAME-proxy for as long as it\n" +
			"                              runs, with the upstreams and the listener that flags name.\n" +
			"  -snapshot                   enforces what a JSON file says.\n\n" +
			"The agent feeds it with policy and instances, and passes its certificate requests on. The key\nnever leaves the process. When the agent is away the last policy stays in force. It tells the agent\nof itself every two seconds, for weft connect status and the agent's metrics. The connect.access_log\nof the agent holds for it, too.",
		examples: []string{
			"weft connect proxy -sidecar-for web",
			"weft connect proxy -service web -upstream db:9191",
			"weft connect proxy -service web -listen :8443 -service-addr 127.0.0.1:8080",
		},
		flags: clientFlags(
			&cli.StringFlag{Name: "sidecar-for", EnvVars: []string{"CONNECT_SIDECAR_FOR"}, Usage: "The ID of the service whose registered sidecar is run."},
			&cli.StringFlag{Name: "proxy-id", EnvVars: []string{"CONNECT_PROXY_ID"}, Usage: "The ID of the registered proxy that is run."},
			&cli.StringFlag{Name: "service", Usage: "The service that the proxy speaks for."},
			&cli.StringSliceFlag{Name: "upstream", Usage: "An upstream and its loopback port, as name:port. May be given many times."},
			&cli.StringFlag{Name: "listen", Usage: "Where connections from the mesh are taken, as [host]:port. None are when it is not set."},
			&cli.StringFlag{Name: "service-addr", Usage: "Where the application listens, as host:port. Needed with -listen."},
			&cli.BoolFlag{Name: "register", Usage: "Register the proxy of -service. It always is; the flag is taken for Consul's sake."},
			&cli.StringFlag{Name: "register-id", Usage: "The end of the ID that the proxy of -service is registered with: NAME-proxy-END. It is NAME-proxy when this is not set."},
			&cli.StringFlag{Name: "snapshot", Usage: "A JSON file with all that the proxy is to know."},
			&cli.StringFlag{Name: "key-file", Usage: "A file that keeps the key and the certificate over restarts. They stay in memory when it is not set."},
			&cli.BoolFlag{Name: "log-json", Usage: "Log lines of JSON."},
			&cli.StringFlag{Name: "log-level", Value: "info", Usage: "The least severe line that is logged: debug, info, warn or error."},
		),
		action: withClient(s, runProxy),
	}.build()
}

// proxyPlan is what to run and what to do around it.
type proxyPlan struct {
	id      string
	service catalog.Name
	source  catalog.Watch[*connect.Snapshot]
	// registration is set for a proxy that registers itself.
	registration *api.AgentServiceRegistration
}

func runProxy(c *cli.Context, cl *client) error {
	level, err := parseLevel(c.String("log-level"))
	if err != nil {
		return usagef(c, "-log-level: %w", err)
	}
	log := slog.New(proxyHandler(c.App.Writer, level, c.Bool("log-json")))
	plan, err := planProxy(c, cl)
	if err != nil {
		return err
	}
	ctx, stop := untilSignal(c.Context)
	defer stop()
	if plan.registration != nil {
		hb := &heartbeat{client: cl, registration: plan.registration, log: log}
		if err := hb.register(ctx); err != nil {
			return err
		}
		done := make(chan struct{})
		go func() { defer close(done); hb.run(ctx) }()
		defer func() { stop(); <-done }()
	}
	metrics := connect.NewMetrics(nil)
	p, err := connect.NewProxy(connect.ProxyConfig{
		ID: plan.id, Signer: &httpSigner{client: cl, service: plan.service}, KeyFile: c.String("key-file"), Logger: log, Metrics: metrics,
	})
	if err != nil {
		return err
	}
	defer letGoAfterStart()()
	if s, fed := plan.source.(*httpSource); fed {
		telling, enough := context.WithCancel(context.WithoutCancel(ctx)) // while it drains, too
		done := make(chan struct{})
		go func() { defer close(done); s.tell(telling, p.Status, metrics.Counts, log) }()
		defer func() { enough(); <-done }()
	}
	log.Info("the proxy runs until it is interrupted", "id", plan.id, "service", plan.service, "addr", cl.addr)
	return p.Run(ctx, plan.source)
}

func proxyHandler(w io.Writer, level slog.Level, lines bool) slog.Handler {
	opt := &slog.HandlerOptions{Level: level}
	if lines {
		return slog.NewJSONHandler(w, opt)
	}
	return slog.NewTextHandler(w, opt)
}

// planProxy finds out which of the ways to name a proxy was taken.
func planProxy(c *cli.Context, cl *client) (*proxyPlan, error) {
	ways := 0
	for _, f := range []string{"sidecar-for", "proxy-id", "service", "snapshot"} {
		if c.String(f) != "" {
			ways++
		}
	}
	if ways != 1 {
		return nil, usagef(c, "exactly one of -sidecar-for, -proxy-id, -service and -snapshot is needed")
	}
	if c.String("service") == "" && (c.IsSet("upstream") || c.IsSet("listen") || c.IsSet("service-addr") || c.IsSet("register") || c.IsSet("register-id")) {
		return nil, usagef(c, "-upstream, -listen, -service-addr, -register and -register-id go with -service only")
	}
	switch {
	case c.String("snapshot") != "":
		return planSnapshot(c.Context, c.String("snapshot"))
	case c.String("service") != "":
		return planAdHoc(c, cl)
	default:
		return planRegistered(c, cl)
	}
}

func planSnapshot(ctx context.Context, path string) (*proxyPlan, error) {
	src := &connect.FileSource{Path: path}
	snap, _, err := src.Next(ctx, 0)
	if err != nil {
		return nil, err
	}
	if snap.Service == "" || snap.TrustDomain == "" || len(snap.Roots) == 0 {
		return nil, fmt.Errorf("%s: a snapshot needs Service, TrustDomain and Roots", path)
	}
	return &proxyPlan{id: snap.Service + "-proxy", service: snap.Service, source: src}, nil
}

// planRegistered runs a proxy that the agent knows and leaves to others.
func planRegistered(c *cli.Context, cl *client) (*proxyPlan, error) {
	services, err := cl.Agent().ServicesWithFilterOpts("", cl.read(c.Context))
	if err != nil {
		return nil, err
	}
	var found []*api.AgentService
	for _, svc := range services {
		if svc.Kind != api.ServiceKindConnectProxy || svc.Proxy == nil {
			continue
		}
		if svc.ID == c.String("proxy-id") || (c.String("sidecar-for") != "" && svc.Proxy.DestinationServiceID == c.String("sidecar-for")) {
			found = append(found, svc)
		}
	}
	switch {
	case len(found) == 0 && c.String("proxy-id") != "":
		return nil, fmt.Errorf("no proxy with the ID %q is registered", c.String("proxy-id"))
	case len(found) == 0:
		return nil, fmt.Errorf("no sidecar of a service with the ID %q is registered", c.String("sidecar-for"))
	case len(found) > 1:
		return nil, fmt.Errorf("the service %q has %d sidecars: name one with -proxy-id", c.String("sidecar-for"), len(found))
	}
	svc := found[0]
	// As elsewhere, "true" in quotes will do.
	if fmt.Sprint(svc.Proxy.Config["external"]) != "true" {
		return nil, fmt.Errorf("the agent runs the proxy %s itself; with external = true in its proxy config it leaves it to this command", svc.ID)
	}
	return &proxyPlan{id: svc.ID, service: svc.Proxy.DestinationServiceName, source: &httpSource{client: cl, proxy: svc.ID}}, nil
}

// planAdHoc makes a registration out of flags.
func planAdHoc(c *cli.Context, cl *client) (*proxyPlan, error) {
	name := c.String("service")
	id := name + "-proxy"
	if more := c.String("register-id"); more != "" {
		id += "-" + more
	}
	reg := &api.AgentServiceRegistration{
		Kind: api.ServiceKindConnectProxy, ID: id, Name: name + "-proxy",
		Proxy: &api.AgentServiceConnectProxyConfig{
			DestinationServiceName: name,
			Config:                 map[string]any{"external": true},
		},
		Check: &api.AgentServiceCheck{
			CheckID: heartbeatID(id), Name: "Proxy process", Status: api.HealthPassing,
			TTL: heartbeatTTL.String(), DeregisterCriticalServiceAfter: heartbeatGone.String(),
		},
	}
	if c.IsSet("listen") != c.IsSet("service-addr") {
		return nil, usagef(c, "-listen and -service-addr need each other")
	}
	var err error
	if c.IsSet("listen") {
		if reg.Address, reg.Port, err = hostPort(c.String("listen")); err != nil {
			return nil, usagef(c, "-listen: %w", err)
		}
		if reg.Proxy.LocalServiceAddress, reg.Proxy.LocalServicePort, err = hostPort(c.String("service-addr")); err != nil {
			return nil, usagef(c, "-service-addr: %w", err)
		}
	}
	for _, u := range c.StringSlice("upstream") {
		up, port, ok := strings.Cut(u, ":")
		n, err := strconv.Atoi(port)
		if !ok || up == "" || err != nil || n < 1 || n > 65535 {
			return nil, usagef(c, "-upstream %q is not name:port", u)
		}
		reg.Proxy.Upstreams = append(reg.Proxy.Upstreams, api.Upstream{DestinationName: up, LocalBindPort: n})
	}
	if !c.IsSet("listen") && len(reg.Proxy.Upstreams) == 0 {
		return nil, usagef(c, "-service needs an -upstream, or -listen and -service-addr")
	}
	return &proxyPlan{id: id, service: name, source: &httpSource{client: cl, proxy: id}, registration: reg}, nil
}

func hostPort(s string) (string, int, error) {
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		return "", 0, fmt.Errorf("%q is not host:port", s)
	}
	n, err := strconv.Atoi(port)
	if err != nil || n < 1 || n > 65535 {
		return "", 0, fmt.Errorf("%q is not a port", port)
	}
	return host, n, nil
}

func parseLevel(s string) (slog.Level, error) {
	switch strings.ToLower(s) {
	case "trace", "debug":
		return slog.LevelDebug, nil
	case "info", "":
		return slog.LevelInfo, nil
	case "warn", "warning":
		return slog.LevelWarn, nil
	case "error", "err":
		return slog.LevelError, nil
	default:
		return 0, fmt.Errorf("%q is none of trace, debug, info, warn, error", s)
	}
}

var errNoCertificate = errors.New("the agent answered without a certificate")

// proxyContext bounds a request beside a running proxy.
func proxyContext(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, requestTimeout)
}
