package meshtest

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/weftmesh/weft/agent"
	"github.com/weftmesh/weft/agent/dns"
	"github.com/weftmesh/weft/agent/gossip"
	"github.com/weftmesh/weft/agent/httpapi"
	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/server"
	"github.com/weftmesh/weft/server/consensus"
)

// Patience bounds every wait of this package. It is a ceiling, not an expectation.
const Patience = 20 * time.Second

// Options describe a mesh of one host. The zero value is a dev agent.
type Options struct {
	// DataDir keeps everything, so that another Start with it is a restart. Empty: in memory.
	DataDir string
	// NodeName is test-node by default, Datacenter dc1.
	NodeName   string
	Datacenter string
	// DefaultIntention is deny by default.
	DefaultIntention catalog.Action
	CA               catalog.CAConfig
	// NoServer starts the agent alone: no server answers it.
	NoServer bool
	// Files are registrations as of configuration files.
	Files agent.Files
	Load  func(ctx context.Context) (agent.Files, error)
	// Logger takes the log. Default: t.Log, when the environment has MESHTEST_LOG.
	Logger *slog.Logger
	// Change edits what the options do not name.
	Change func(*agent.Config, *server.Config)
}

// Mesh is a running mesh.
type Mesh struct {
	// HTTP is the base URL of the API.
	HTTP string
	// Addr is its host:port.
	Addr string
	// DNS is the host:port of DNS, UDP and TCP.
	DNS      string
	Agent    *agent.Agent
	Server   *server.Server // nil with NoServer
	Registry *prometheus.Registry

	t          testing.TB
	down       atomic.Bool
	stopAgent  func()
	stopServer func()
}

// Start starts a mesh and stops it at the end of the test. It returns when the API
// answers and, unless there is no server, a leader and a certificate authority do.
func Start(t testing.TB, o Options) *Mesh {
	t.Helper()
	m := &Mesh{t: t, Registry: prometheus.NewRegistry(), stopServer: func() {}, stopAgent: func() {}}
	setDefaults(t, &o)
	id, err := agent.NodeID(o.DataDir, "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.Stop)
	sc := server.Config{
		NodeName: o.NodeName, NodeID: id, Datacenter: o.Datacenter, Addr: "127.0.0.1:8300",
		DataDir: o.DataDir, Dev: o.DataDir == "", Bootstrap: true,
		DefaultIntention: o.DefaultIntention, CA: o.CA, Version: "0.0.0-test",
		Raft: fastRaft(), Logger: o.Logger, Registerer: m.Registry,
	}
	ports := freeRange(t, 32)
	ac := agent.Config{
		NodeName: o.NodeName, NodeID: id, Datacenter: o.Datacenter, Advertise: "127.0.0.1",
		BindAddr: "127.0.0.1", Version: "0.0.0-test", DataDir: o.DataDir,
		Dial: m.dial, Files: o.Files, Load: o.Load,
		HTTP: httpapi.Config{Addrs: []string{"127.0.0.1:0"}, Self: httpapi.Self{Server: !o.NoServer}, Gatherer: m.Registry},
		DNS:  dns.Config{Addrs: []string{"127.0.0.1:0"}}, DNSViews: dns.ViewsConfig{AllowStale: true},
		SidecarMinPort: ports, SidecarMaxPort: ports + 31, CheckUpdateInterval: -1,
		Logger: o.Logger, Registerer: m.Registry,
	}
	if o.Change != nil {
		o.Change(&ac, &sc)
	}
	members, err := gossip.New(gossip.Config{
		NodeName: o.NodeName, NodeID: id, BindAddr: "127.0.0.1", Logger: o.Logger,
		Tags: map[string]string{"role": "consul", "dc": o.Datacenter, "id": id, "port": "8300", "build": "0.0.0-test"},
	})
	if err != nil {
		t.Fatal(err)
	}
	ac.Gossip, ac.Courier, sc.Membership = members, members, members
	if !o.NoServer {
		if m.Server, err = server.New(sc); err != nil {
			t.Fatal(err)
		}
		m.stopServer = m.run("server", m.Server.Run)
	}
	if m.Agent, err = agent.New(ac); err != nil {
		t.Fatal(err)
	}
	plain, _ := m.Agent.HTTPAddrs()
	m.Addr = plain[0].String()
	m.HTTP = "http://" + m.Addr
	if a := m.Agent.DNSAddrs(); len(a) > 0 {
		m.DNS = a[0].String()
	}
	m.stopAgent = m.run("agent", m.Agent.Run)
	m.waitReady(o.NoServer)
	return m
}

func setDefaults(t testing.TB, o *Options) {
	if o.NodeName == "" {
		o.NodeName = "test-node"
	}
	if o.Datacenter == "" {
		o.Datacenter = "dc1"
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
		if os.Getenv("MESHTEST_LOG") != "" {
			o.Logger = slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
		}
	}
}

// fastRaft are timers for a cluster whose members share a process.
func fastRaft() consensus.Timers {
	const d = 50 * time.Millisecond
	return consensus.Timers{Heartbeat: d, Election: d, Lease: d}
}

// run runs a part until the function that it returns is called, which waits.
func (m *Mesh) run(name string, run func(context.Context) error) func() {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := run(ctx); err != nil && !errors.Is(err, context.Canceled) {
			m.t.Errorf("%s: %v", name, err)
		}
	}()
	return sync.OnceFunc(func() {
		cancel()
		select {
		case <-done:
		case <-time.After(Patience):
			m.t.Errorf("%s did not stop", name)
		}
	})
}

func (m *Mesh) dial(ctx context.Context) (net.Conn, error) {
	if m.Server == nil || m.down.Load() {
		return nil, errors.New("no server answers")
	}
	return m.Server.Dial(ctx)
}

// StopServer ends the server; the agent and its proxies go on.
func (m *Mesh) StopServer() {
	m.down.Store(true)
	m.stopServer()
}

// Stop ends everything, the agent first. It may be called more than once.
func (m *Mesh) Stop() {
	m.stopAgent()
	m.StopServer()
}

func (m *Mesh) waitReady(alone bool) {
	m.t.Helper()
	m.Eventually("the API to answer", func() error {
		status, body, err := m.Try("GET", "/v1/agent/self", nil)
		return expect(status, body, err)
	})
	if alone {
		return
	}
	m.Eventually("a leader", func() error {
		status, body, err := m.Try("GET", "/v1/status/leader", nil)
		if err == nil && status == 200 && strings.TrimSpace(string(body)) == `""` {
			return errors.New("there is none")
		}
		return expect(status, body, err)
	})
	m.Eventually("a certificate authority", func() error {
		status, body, err := m.Try("GET", "/v1/connect/ca/roots", nil)
		return expect(status, body, err)
	})
}
