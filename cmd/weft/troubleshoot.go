package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/consul/api"
	"github.com/urfave/cli/v2"

	"github.com/weftmesh/weft/connect"
)

// meshPorts are those that hosts of a mesh reach each other on, by default.
const meshPorts = "8300,8301,8500,8501,8600"

// portTimeout is how long a port may take to answer.
const portTimeout = 5 * time.Second

// certSoon is how near its end a certificate is worth a word.
const certSoon = time.Hour

func troubleshootCommand(s streams) *cli.Command {
	return group("troubleshoot", "Find out why one service does not reach another", "",
		troubleshootProxy(s), troubleshootUpstreams(s), troubleshootPorts())
}

func proxyIDFlag() cli.Flag {
	return &cli.StringFlag{Name: "proxy-id", Usage: "The ID of the proxy; every proxy of this host when it is not set."}
}

func troubleshootProxy(s streams) *cli.Command {
	return spec{
		name: "proxy", usage: "Look through a proxy of this host: certificate, listeners, upstreams, last errors",
		about:    "Asks the agent what its proxies know, and says for each what is right (✓) and what is not (✗)\nwith what to do. The exit code is 1 when something is not.",
		examples: []string{"weft troubleshoot proxy", "weft troubleshoot proxy -proxy-id=web-sidecar-proxy -upstream=db"},
		flags: clientFlags(proxyIDFlag(),
			&cli.StringFlag{Name: "upstream", Usage: "Only this upstream service."},
			&cli.StringFlag{Name: "upstream-ip", Usage: "Only the upstream whose listener has this address."}),
		action: withClient(s, func(c *cli.Context, cl *client) error {
			list, err := proxies(c, cl)
			if err != nil {
				return err
			}
			d := &diagnosis{w: c.App.Writer, cl: cl, upstream: c.String("upstream"), ip: c.String("upstream-ip")}
			for _, p := range list {
				d.proxy(c.Context, p)
			}
			if d.wrong {
				return &exitError{code: exitFailure, quiet: true}
			}
			return nil
		}),
	}.build()
}

func proxies(c *cli.Context, cl *client) ([]connect.Status, error) {
	var list, out []connect.Status
	if _, err := cl.call(c.Context, http.MethodGet, "/v1/agent/connect/proxies", nil, nil, &list); err != nil {
		return nil, err
	}
	id := c.String("proxy-id")
	for _, p := range list {
		if id == "" || p.Proxy == id {
			out = append(out, p)
		}
	}
	if len(out) > 0 {
		return out, nil
	}
	if id != "" {
		return nil, fmt.Errorf("this agent runs no proxy with the ID %q (weft connect proxies lists them)", id)
	}
	return nil, errors.New("this agent runs no proxy: register a service with connect { sidecar_service {} }")
}

// diagnosis writes what is right and what is not.
type diagnosis struct {
	w        io.Writer
	cl       *client
	upstream string
	ip       string
	wrong    bool
}

func (d *diagnosis) good(format string, args ...any) {
	fmt.Fprintf(d.w, "  ✓ "+format+"\n", args...)
}

func (d *diagnosis) bad(format string, args ...any) {
	d.wrong = true
	fmt.Fprintf(d.w, "  ✗ "+format+"\n", args...)
}

func (d *diagnosis) proxy(ctx context.Context, p connect.Status) {
	fmt.Fprintf(d.w, "==> %s (service %s)\n", p.Proxy, p.Service)
	switch {
	case p.Ready:
		d.good("it enforces what the servers said at index %d", p.Applied)
	case p.Untold:
		fmt.Fprintf(d.w, "  · it is not known whether it is ready: %s\n", p.Problem)
	default:
		d.bad("it is not ready: %s", p.Problem)
	}
	d.certificate(p.Certificate)
	if in := p.Inbound; in != nil {
		d.listener("inbound", *in)
	}
	for _, u := range p.Upstreams {
		if d.chosen(u) {
			d.upstreamOf(ctx, p.Service, u)
		}
	}
	for _, e := range p.Errors {
		fmt.Fprintf(d.w, "  · %s\n", errorLine(e))
	}
	if p.Inbound != nil {
		for _, e := range p.Inbound.Refused {
			fmt.Fprintf(d.w, "  · at the mesh port: %s\n", errorLine(e))
		}
	}
}

// errorLine says a failure of the recent past.
func errorLine(e connect.ErrorStatus) string {
	line := fmt.Sprintf("%s %s", e.Time.Format(time.RFC3339), e.Reason)
	for _, part := range [][2]string{
		{"source", e.Source}, {"destination", e.Destination}, {"addr", e.Addr}, {"rule", e.Rule}, {"err", e.Error}, {"hint", e.Hint},
	} {
		if part[1] != "" {
			line += fmt.Sprintf(" %s=%q", part[0], part[1])
		}
	}
	if e.Count > 1 {
		line += fmt.Sprintf(" count=%d", e.Count)
	}
	return line
}

func (d *diagnosis) chosen(u connect.UpstreamStatus) bool {
	if d.ip != "" {
		if u.Listener == nil {
			return false
		}
		host, _, err := net.SplitHostPort(u.Listener.Addr)
		return err == nil && host == d.ip
	}
	return d.upstream == "" || u.Name == d.upstream
}

func (d *diagnosis) certificate(c *connect.CertificateStatus) {
	switch {
	case c == nil:
		d.bad("it has no certificate: it cannot have asked a server yet (weft operator raft list-peers)")
	case time.Now().After(c.NotAfter):
		d.bad("its certificate ended on %s: %s", c.NotAfter.Format(time.RFC3339), orNone(c.Error))
	case c.Error != "" || time.Until(c.NotAfter) < certSoon:
		d.bad("its certificate ends on %s and was not renewed: %s", c.NotAfter.Format(time.RFC3339), orNone(c.Error))
	default:
		d.good("its certificate %s is valid until %s", c.URI, c.NotAfter.Format(time.RFC3339))
	}
}

func orNone(s string) string {
	if s == "" {
		return "no reason is known"
	}
	return s
}

func (d *diagnosis) listener(what string, l connect.ListenerStatus) {
	if l.Listening {
		d.good("%s: it listens on %s", what, l.Addr)
	} else {
		d.bad("%s: it does not listen on %s: %s", what, l.Addr, orNone(l.Error))
	}
}

func (d *diagnosis) upstreamOf(ctx context.Context, from string, u connect.UpstreamStatus) {
	name := "upstream " + u.Name
	if u.Listener != nil {
		d.listener(name, *u.Listener)
	}
	allowed, _, err := d.cl.Connect().IntentionCheck(&api.IntentionCheck{Source: from, Destination: u.Name}, d.cl.read(ctx))
	switch {
	case err != nil:
		d.bad("%s: whether it may be reached cannot be asked: %v", name, d.cl.explain(err))
	case allowed:
		d.good("%s: intentions allow it", name)
	default:
		d.bad("%s: intentions deny it: weft intention create %s %s would allow it", name, from, u.Name)
	}
	healthy := 0
	for _, i := range u.Instances {
		if i.Status != api.HealthCritical {
			healthy++
		}
		if i.Error != "" {
			d.bad("%s: instance %s at %s failed: %s", name, i.ID, i.Addr, i.Error)
		}
	}
	if healthy == 0 {
		d.bad("%s: none of its %d instances is healthy (weft catalog nodes -service=%s)", name, len(u.Instances), u.Name)
	} else {
		d.good("%s: %d of %d instances are healthy", name, healthy, len(u.Instances))
	}
}

func troubleshootUpstreams(s streams) *cli.Command {
	return spec{
		name: "upstreams", usage: "List the upstreams of the proxies of this host, and where they listen",
		examples: []string{"weft troubleshoot upstreams -proxy-id=web-sidecar-proxy"},
		flags:    clientFlags(proxyIDFlag(), formatFlag()),
		action: withClient(s, func(c *cli.Context, cl *client) error {
			list, err := proxies(c, cl)
			if err != nil {
				return err
			}
			return formatted(c, list, func() error {
				rows := [][]string{{"Proxy", "Upstream", "Datacenter", "Listener", "Instances"}}
				for _, p := range list {
					for _, u := range p.Upstreams {
						at := "-"
						if u.Listener != nil {
							at = u.Listener.Addr
						}
						rows = append(rows, []string{p.Proxy, u.Name, u.Datacenter, at, strconv.Itoa(len(u.Instances))})
					}
				}
				return table(c.App.Writer, rows...)
			})
		}),
	}.build()
}

func troubleshootPorts() *cli.Command {
	return spec{
		name: "ports", usage: "Try whether the ports of another host can be reached",
		about:    "Opens a TCP connection to each port. The exit code is 1 when one does not answer.",
		examples: []string{"weft troubleshoot ports -host=10.0.0.7", "weft troubleshoot ports -host=10.0.0.7 -ports=8300,21000"},
		flags: []cli.Flag{
			&cli.StringFlag{Name: "host", Usage: "The host; needed."},
			&cli.StringFlag{Name: "ports", Value: meshPorts, Usage: "The ports, separated by commas."},
		},
		action: func(c *cli.Context) error {
			if c.String("host") == "" {
				return usagef(c, "-host is needed")
			}
			ports := splitList(c.String("ports"))
			for _, p := range ports {
				if n, err := strconv.ParseUint(p, 10, 16); err != nil || n == 0 {
					return usagef(c, "-ports: %q is not a port", p)
				}
			}
			return tryPorts(c, ports)
		},
	}.build()
}

func tryPorts(c *cli.Context, ports []string) error {
	ctx, stop := context.WithTimeout(c.Context, portTimeout)
	defer stop()
	errs := make([]error, len(ports))
	var wg sync.WaitGroup
	for i, p := range ports {
		wg.Go(func() {
			conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", net.JoinHostPort(c.String("host"), p))
			if err == nil {
				err = conn.Close()
			}
			errs[i] = err
		})
	}
	wg.Wait()
	code := exitOK
	for i, p := range ports {
		if errs[i] == nil {
			fmt.Fprintf(c.App.Writer, "TCP: Port %s on %s is open\n", p, c.String("host"))
			continue
		}
		code = exitFailure
		reason := errs[i].Error()
		reason = reason[strings.LastIndex(reason, ": ")+1:]
		fmt.Fprintf(c.App.Writer, "TCP: Port %s on %s is closed, unreachable, or the connection timed out:%s\n", p, c.String("host"), reason)
	}
	if code != exitOK {
		return &exitError{code: code, quiet: true}
	}
	return nil
}
