package main

import (
	"cmp"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/consul/api"
	"github.com/urfave/cli/v2"

	"github.com/weftmesh/weft/cmd/weft/config"
	"github.com/weftmesh/weft/connect"
)

func connectCommand(s streams) *cli.Command {
	return group("connect", "Look after the mesh: certificate authority and proxies", "",
		group("ca", "Look after the certificate authority", "", caGetConfig(s), caSetConfig(s)),
		connectProxy(s),
		connectStatus(s),
		redirectTraffic(s),
	)
}

func caGetConfig(s streams) *cli.Command {
	return spec{
		name: "get-config", usage: "Show the configuration of the certificate authority", flags: clientFlags(),
		action: withClient(s, func(c *cli.Context, cl *client) error {
			cfg, _, err := cl.Connect().CAGetConfig(cl.read(c.Context))
			if err != nil {
				return err
			}
			return printJSON(c.App.Writer, cfg)
		}),
	}.build()
}

func caSetConfig(s streams) *cli.Command {
	return spec{
		name: "set-config", usage: "Change the configuration of the certificate authority",
		about:    "A change of the key makes a new root: the old one signs it, and both are trusted until every\ncertificate has been renewed.",
		examples: []string{"weft connect ca set-config -config-file ca.json"},
		flags: clientFlags(
			&cli.StringFlag{Name: "config-file", Usage: "The configuration, in JSON or HCL, with Provider and Config."},
			&cli.BoolFlag{Name: "force-without-cross-signing", Usage: "Change the root even where the old one cannot sign the new one."},
		),
		action: withClient(s, func(c *cli.Context, cl *client) error {
			path := c.String("config-file")
			if path == "" {
				return usagef(c, "-config-file is needed")
			}
			cfg, err := caConfigFile(path, c.App.Reader)
			if err != nil {
				return err
			}
			cfg.ForceWithoutCrossSigning = cfg.ForceWithoutCrossSigning || c.Bool("force-without-cross-signing")
			if _, err := cl.Connect().CASetConfig(cfg, cl.write(c.Context)); err != nil {
				return err
			}
			fmt.Fprintln(c.App.Writer, "Configuration updated!")
			return nil
		}),
	}.build()
}

func caConfigFile(path string, stdin io.Reader) (*api.CAConfig, error) {
	b, err := readInput(path, stdin)
	if err != nil {
		return nil, err
	}
	m, err := config.Map(path, b)
	if err != nil {
		return nil, err
	}
	cfg := &api.CAConfig{Config: map[string]any{}}
	for key, v := range m {
		ok := true
		switch foldKey(key) {
		case "provider":
			cfg.Provider, ok = v.(string)
		case "config":
			cfg.Config, ok = v.(map[string]any)
		case "forcewithoutcrosssigning":
			cfg.ForceWithoutCrossSigning, ok = v.(bool)
		case "createindex", "modifyindex", "state": // as get-config shows them
		default:
			return nil, fmt.Errorf("%s: %s: unknown key; there are Provider, Config and ForceWithoutCrossSigning", path, key)
		}
		if !ok {
			return nil, fmt.Errorf("%s: %s has the wrong type", path, key)
		}
	}
	if cfg.Provider == "" {
		return nil, fmt.Errorf("%s: Provider is missing; the built-in one is \"consul\"", path)
	}
	return cfg, nil
}

func connectStatus(s streams) *cli.Command {
	return spec{
		name: "status", usage: "Show the proxies of this host", args: "[PROXY-ID]", max: 1,
		about: "Shows the listeners, the certificate, the connections, the tunnels, the upstreams and the\nlast errors of each proxy (of equal ones the last, with their number), and what earlier\nprocesses of the agent still carry for it. Exits with 1 when one is not ready;\none outside the agent of a version that does not say how it is does not count.",
		flags: clientFlags(formatFlag()),
		action: withClient(s, func(c *cli.Context, cl *client) error {
			var all []connect.Status
			if _, err := cl.call(c.Context, http.MethodGet, "/v1/agent/connect/proxies", nil, nil, &all); err != nil {
				return err
			}
			if id := c.Args().First(); id != "" {
				one, err := pickProxy(all, id)
				if err != nil {
					return err
				}
				all = one
			}
			if err := formatted(c, all, func() error { return showProxies(c.App.Writer, all) }); err != nil {
				return err
			}
			for _, st := range all {
				if !st.Ready && !st.Untold {
					return &exitError{code: exitFailure, quiet: true}
				}
			}
			return nil
		}),
	}.build()
}

func pickProxy(all []connect.Status, id string) ([]connect.Status, error) {
	for _, st := range all {
		if st.Proxy == id || st.Service == id {
			return []connect.Status{st}, nil
		}
	}
	return nil, fmt.Errorf("the agent runs no proxy %q", id)
}

func showProxies(w io.Writer, all []connect.Status) error {
	if len(all) == 0 {
		fmt.Fprintln(w, "The agent runs no proxies.")
		return nil
	}
	for i, st := range all {
		if i > 0 {
			fmt.Fprintln(w)
		}
		if err := showProxy(w, st); err != nil {
			return err
		}
	}
	showRefused(w, all)
	return nil
}

// showRefused lists what the port refused that proxies share: each of them says the same.
func showRefused(w io.Writer, all []connect.Status) {
	for _, st := range all {
		if in := st.Inbound; in != nil && len(in.Refused) > 0 {
			fmt.Fprintf(w, "\nThe mesh port %s\n", in.Addr)
			showFailures(w, "Refused for all that share it, the newest last:", in.Refused)
			return
		}
	}
}

func showProxy(w io.Writer, st connect.Status) error {
	state := "ready"
	switch {
	case st.Untold:
		state = "not known whether it is ready: " + st.Problem
	case !st.Ready:
		state = "not ready: " + st.Problem
	}
	fmt.Fprintf(w, "%s (%s, policy version %d)\n", st.Proxy, state, st.Applied)
	fact := func(name, value string) {
		if value != "" {
			fmt.Fprintf(w, "  %-15s %s\n", name+":", value)
		}
	}
	if cert := st.Certificate; cert != nil && cert.NotAfter.IsZero() {
		fact("Certificate", "none: "+cmp.Or(cert.Error, "none was asked for yet"))
	} else if cert != nil {
		until := fmt.Sprintf("until %s (%s left), serial %s", cert.NotAfter.Local().Format(time.DateTime),
			shortDuration(time.Until(cert.NotAfter)), cert.Serial)
		fact("Identity", cert.URI)
		fact("Certificate", until)
		fact("Renewal failed", cert.Error)
	}
	if in := st.Inbound; in != nil {
		behind := ", for the application at " + in.Local
		if in.Local == "" {
			behind = ", without an application: the service has no port"
		}
		if in.Shared != "" {
			behind += ", shared with others by " + in.Shared
		}
		fact("Inbound", listening(in)+behind)
	}
	for i := range st.Exposed {
		fact("Exposed", listening(&st.Exposed[i])+", paths past the mesh, in plaintext")
	}
	for i := range st.Captured {
		fact("Redirected", listening(&st.Captured[i])+", for what the host redirects")
	}
	fact("Resting", st.Resting)
	if st.External {
		fact("Process", "its own, outside the agent")
	}
	return showTraffic(w, st)
}

func showTraffic(w io.Writer, st connect.Status) error {
	for _, u := range st.Upstreams {
		at := "no address, dialed from code"
		if u.Listener != nil {
			at = listening(u.Listener)
		} else if len(u.Virtual) > 0 {
			at = u.Virtual[len(u.Virtual)-1].String()
		}
		fmt.Fprintf(w, "  %-15s %s at %s, %s\n", "Upstream:", u.Name, at, counted(len(u.Instances), "instance"))
		var rows [][]string
		for _, in := range u.Instances {
			rows = append(rows, []string{"    " + in.ID, in.Addr, in.Status, fmt.Sprintf("%d open", in.Active), leftAlone(in) + in.Error})
		}
		if err := table(w, rows...); err != nil {
			return err
		}
	}
	if err := showPeerSums(w, "Connections", st.Peers); err != nil {
		return err
	}
	for _, d := range st.Drainers {
		if err := showPeerSums(w, fmt.Sprintf("Drainers (process %d)", d.PID), d.Peers); err != nil {
			return err
		}
	}
	if err := showTunnels(w, st.Tunnels); err != nil {
		return err
	}
	showFailures(w, "Refused or failed, the newest last:", st.Errors)
	return nil
}

// showPeerSums lists open connections, by pair.
func showPeerSums(w io.Writer, title string, peers []connect.PeerStatus) error {
	if len(peers) == 0 {
		return nil
	}
	rows := [][]string{{"  " + title, "From", "To", "Open", "Bytes in", "Bytes out"}}
	for _, p := range peers {
		rows = append(rows, []string{
			"  " + p.Direction, p.Source, p.Destination, strconv.Itoa(p.Open),
			strconv.FormatInt(p.BytesIn, 10), strconv.FormatInt(p.BytesOut, 10),
		})
	}
	return table(w, rows...)
}

func showTunnels(w io.Writer, tunnels []connect.TunnelStatus) error {
	if len(tunnels) == 0 {
		return nil
	}
	rows := [][]string{{"  Tunnels", "Address", "Streams", "Since", "Peer"}}
	for _, t := range tunnels {
		streams := strconv.Itoa(t.Streams)
		if t.Draining {
			streams += ", draining"
		}
		rows = append(rows, []string{"  " + t.Direction, t.Addr, streams, t.Since.Local().Format(time.DateTime), t.Peer})
	}
	return table(w, rows...)
}

// leftAlone says for how long others are preferred to an instance, "" when they are not.
func leftAlone(in connect.InstanceStatus) string {
	if in.SkippedUntil == nil || !time.Now().Before(*in.SkippedUntil) {
		return ""
	}
	return fmt.Sprintf("left alone for %s: ", max(time.Until(*in.SkippedUntil).Round(time.Second), time.Second))
}

// showFailures lists what was refused and what failed.
func showFailures(w io.Writer, title string, all []connect.ErrorStatus) {
	if len(all) > 0 {
		fmt.Fprintln(w, "  "+title)
	}
	for _, e := range all {
		// Who proved no identity is known by address alone.
		line := fmt.Sprintf("    %s %s: %s => %s", e.Time.Local().Format(time.TimeOnly), e.Reason, cmp.Or(e.Source, e.Addr, "?"), cmp.Or(e.Destination, "?"))
		switch {
		case e.Rule != "" && (e.Reason == connect.ReasonDenied || e.Reason == connect.ReasonPolicyChanged):
			line += ", by " + e.Rule
		case e.Reason == connect.ReasonDenied: // the far end knows by what
			line += ", by the far end"
		case e.Error != "":
			line += ", " + e.Error
		}
		if e.Count > 1 {
			line += fmt.Sprintf(" (%d times)", e.Count)
		}
		fmt.Fprintln(w, line)
		if e.Hint != "" {
			fmt.Fprintf(w, "      hint: %s\n", e.Hint)
		}
	}
}

func counted(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return strconv.Itoa(n) + " " + what + "s"
}

// shortDuration leaves out the units that are 0.
func shortDuration(d time.Duration) string {
	s := d.Round(time.Minute).String()
	s, _ = strings.CutSuffix(s, "0s")
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

func listening(l *connect.ListenerStatus) string {
	if l.Listening {
		return l.Addr
	}
	return l.Addr + " (not listening: " + l.Error + ")"
}

func joinAddr(host string, port int) string { return net.JoinHostPort(host, strconv.Itoa(port)) }

// foldKey makes ForceWithoutCrossSigning and force_without_cross_signing one key.
func foldKey(key string) string { return strings.ToLower(strings.ReplaceAll(key, "_", "")) }
