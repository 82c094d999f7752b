package demo

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/weftmesh/weft/connect"
)

// agentProcess is the `weft agent` of one host of the demo.
type agentProcess struct {
	node    string
	cmd     *exec.Cmd
	http    string
	gossip  int
	server  int // the servers' port, its own or that of the server that it joins
	client  *api.Client
	log     logTail
	done    chan struct{}
	serving time.Duration
}

// startServer runs a server, and the agent beside it, with its data in dir.
func startServer(ctx context.Context, binary, node, dir string) (*agentProcess, error) {
	ports, err := freePorts(1)
	if err != nil {
		return nil, err
	}
	return startAgent(ctx, binary, &agentProcess{node: node, server: ports[0]},
		"-server", "-bootstrap-expect", "1", "-data-dir", dir)
}

// joinServer runs the agent of another host, which joins the server with a token.
func joinServer(ctx context.Context, binary, node, dir, token string, server *agentProcess) (*agentProcess, error) {
	return startAgent(ctx, binary, &agentProcess{node: node, server: server.server},
		"-join-token-file", token, "-retry-join", net.JoinHostPort("127.0.0.1", strconv.Itoa(server.gossip)), "-data-dir", dir)
}

// startAgent runs an agent on free ports and waits until it serves and has a leader.
func startAgent(ctx context.Context, binary string, a *agentProcess, args ...string) (*agentProcess, error) {
	ports, err := freePorts(3)
	if err != nil {
		return nil, err
	}
	a.http, a.gossip, a.done = net.JoinHostPort("127.0.0.1", strconv.Itoa(ports[0])), ports[1], make(chan struct{})
	hcl := fmt.Sprintf(`ports { http = %d, serf_lan = %d, server = %d, dns = -1, sidecar_min_port = %d, sidecar_max_port = %d }`,
		ports[0], ports[1], a.server, ports[2], ports[2])
	a.cmd = exec.Command(binary, append([]string{"agent", "-node", a.node, "-bind", "127.0.0.1", "-hcl", hcl}, args...)...) //nolint:gosec,noctx // our own binary; stopped by stop
	// The reader's own clusters are none of its business.
	a.cmd.Env = append(os.Environ(), "WEFT_CLUSTER_SECRET_FILE=", "WEFT_JOIN_TOKEN_FILE=")
	a.cmd.Stdout, a.cmd.Stderr = &a.log, &a.log
	// A group of its own: Ctrl-C is the demo's, which then stops the agent in order.
	a.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if a.client, err = api.NewClient(&api.Config{Address: a.http, Scheme: "http"}); err != nil {
		return nil, err
	}
	begin := time.Now()
	if err := a.cmd.Start(); err != nil {
		return nil, fmt.Errorf("starting the agent of %s: %w", a.node, err)
	}
	go func() {
		_ = a.cmd.Wait()
		close(a.done)
	}()
	for {
		leader, err := a.client.Status().Leader()
		if err == nil && leader != "" {
			a.serving = time.Since(begin)
			return a, nil
		}
		select {
		case <-a.done:
			return nil, fmt.Errorf("the agent of %s ended at once:\n%s", a.node, a.log.tail(15))
		case <-ctx.Done():
			a.stop()
			return nil, ctx.Err()
		case <-time.After(10 * time.Millisecond):
		}
		if time.Since(begin) > stepTimeout {
			a.stop()
			return nil, fmt.Errorf("the agent of %s does not serve: %w\n%s", a.node, err, a.log.tail(15))
		}
	}
}

func (a *agentProcess) stop() {
	_ = a.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-a.done:
	case <-time.After(10 * time.Second):
		_ = a.cmd.Process.Kill()
		<-a.done
	}
}

func dbRegistration(port, advertised, inbound int) *api.AgentServiceRegistration {
	return &api.AgentServiceRegistration{
		Name: "db", Port: port,
		Check: &api.AgentServiceCheck{Name: "db answers", TCP: net.JoinHostPort("127.0.0.1", strconv.Itoa(port)), Interval: "1s"},
		Connect: &api.AgentServiceConnect{SidecarService: &api.AgentServiceRegistration{
			Port: advertised,
			Proxy: &api.AgentServiceConnectProxyConfig{
				Config: map[string]any{"bind_address": "127.0.0.1", "bind_port": inbound},
			},
		}},
	}
}

func webRegistration(port, upstream int) *api.AgentServiceRegistration {
	return &api.AgentServiceRegistration{
		Name: "web", Port: port,
		Connect: &api.AgentServiceConnect{SidecarService: &api.AgentServiceRegistration{
			Proxy: &api.AgentServiceConnectProxyConfig{
				Upstreams: []api.Upstream{{DestinationName: "db", LocalBindPort: upstream}},
			},
		}},
	}
}

func (a *agentProcess) register(r *api.AgentServiceRegistration) error {
	if err := a.client.Agent().ServiceRegister(r); err != nil {
		return fmt.Errorf("registering %s: %w", r.Name, err)
	}
	return nil
}

// proxy reads the status of a service's proxy.
func (a *agentProcess) proxy(ctx context.Context, service string) (*connect.Status, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+a.http+"/v1/agent/connect/proxies", nil)
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("reading the proxies: %s: %s", resp.Status, b)
	}
	var all []*connect.Status
	if err := json.Unmarshal(b, &all); err != nil {
		return nil, err
	}
	for _, p := range all {
		if p.Service == service {
			return p, nil
		}
	}
	return nil, fmt.Errorf("%s has no proxy yet", service)
}

// waitProxy waits until the proxy of a service has a certificate and listens, and
// knows instances of its upstreams.
func (a *agentProcess) waitProxy(ctx context.Context, service string) error {
	deadline := time.Now().Add(stepTimeout)
	for {
		err := a.ready(ctx, service)
		if err == nil {
			return nil
		}
		if time.Now().After(deadline) {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func (a *agentProcess) ready(ctx context.Context, service string) error {
	p, err := a.proxy(ctx, service)
	if err != nil {
		return err
	}
	if !p.Ready {
		return fmt.Errorf("the proxy of %s is not ready: %s", service, p.Problem)
	}
	if p.Inbound != nil && !p.Inbound.Listening {
		return fmt.Errorf("the proxy of %s does not listen on %s: %s", service, p.Inbound.Addr, p.Inbound.Error)
	}
	for _, u := range p.Upstreams {
		if u.Listener == nil || !u.Listener.Listening || len(u.Instances) == 0 {
			return fmt.Errorf("the proxy of %s does not know its upstream %s yet", service, u.Name)
		}
	}
	return nil
}

// handshake dials a proxy with a certificate of the service, asked of the agent
// as a native application would, and returns what TLS agreed on.
func (a *agentProcess) handshake(ctx context.Context, addr, service string) (*tls.ConnectionState, error) {
	leaf, _, err := a.client.Agent().ConnectCALeaf(service, nil)
	if err != nil {
		return nil, err
	}
	cert, err := tls.X509KeyPair([]byte(leaf.CertPEM), []byte(leaf.PrivateKeyPEM))
	if err != nil {
		return nil, err
	}
	roots, _, err := a.client.Agent().ConnectCARoots(nil)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	for _, r := range roots.Roots {
		pool.AppendCertsFromPEM([]byte(r.RootCertPEM))
	}
	conf := &tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{cert},
		InsecureSkipVerify: true, //nolint:gosec // the name is a URI: the chain is verified below
		VerifyConnection: func(cs tls.ConnectionState) error {
			inter := x509.NewCertPool()
			for _, c := range cs.PeerCertificates[1:] {
				inter.AddCert(c)
			}
			_, err := cs.PeerCertificates[0].Verify(x509.VerifyOptions{Roots: pool, Intermediates: inter})
			return err
		},
	}
	d := tls.Dialer{NetDialer: &net.Dialer{Timeout: 5 * time.Second}, Config: conf}
	c, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	cs := c.(*tls.Conn).ConnectionState()
	return &cs, nil
}

// stranger dials a proxy with no certificate and says how it was turned away.
func stranger(ctx context.Context, addr string) (string, error) {
	d := tls.Dialer{NetDialer: &net.Dialer{Timeout: 5 * time.Second}, Config: &tls.Config{
		MinVersion:         tls.VersionTLS13,
		InsecureSkipVerify: true, //nolint:gosec // it is the stranger who is verified here
	}}
	c, err := d.DialContext(ctx, "tcp", addr)
	if err == nil {
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(10 * time.Second))
		_, err = c.Read(make([]byte, 1))
	}
	if err == nil {
		return "", errors.New("db's proxy spoke to a caller without a certificate")
	}
	return "a caller without one is turned away: " + err.Error(), nil
}

// logTail keeps what the agent printed, up to a bound.
type logTail struct {
	mu  sync.Mutex
	buf []byte
}

const maxLog = 4 << 20

func (l *logTail) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.buf = append(l.buf, p...)
	if len(l.buf) > maxLog {
		l.buf = bytes.Clone(l.buf[len(l.buf)-maxLog/2:])
	}
	return len(p), nil
}

func (l *logTail) lines() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Split(strings.TrimRight(string(l.buf), "\n"), "\n")
}

// tail returns the last n lines.
func (l *logTail) tail(n int) string {
	all := l.lines()
	return strings.Join(all[max(0, len(all)-n):], "\n")
}

// find returns the last line that has all the parts.
func (l *logTail) find(parts ...string) (string, error) {
	all := l.lines()
next:
	for i := len(all) - 1; i >= 0; i-- {
		for _, p := range parts {
			if !strings.Contains(all[i], p) {
				continue next
			}
		}
		return all[i], nil
	}
	return "", fmt.Errorf("no line of the agent's log has %s", strings.Join(parts, " "))
}

// freePorts returns loopback ports that nobody listened on a moment ago.
func freePorts(n int) ([]int, error) {
	ports := make([]int, n)
	for i := range ports {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, fmt.Errorf("no free port: %w", err)
		}
		defer ln.Close() // held until all are chosen, so that no two are equal
		ports[i] = ln.Addr().(*net.TCPAddr).Port
	}
	return ports, nil
}

// Interactive tells whether f is a terminal that takes colours.
func Interactive(f *os.File) bool {
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0 && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
}
