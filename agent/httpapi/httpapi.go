package httpapi

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/weftmesh/weft/agent/telemetry"
	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/catalog/acl"
	"github.com/weftmesh/weft/connect"
	"github.com/weftmesh/weft/connect/enroll"
)

// Config configures a Server. Local and Servers are required; routes whose
// component is nil answer that this agent does not offer them.
type Config struct {
	// Addrs are the addresses to listen on: "host:port", or "unix:///path" for a
	// Unix socket. None: the API is served through Handler only.
	Addrs []string
	// TLSAddrs are the "host:port" to listen on with TLS, by the files of TLS.
	// HandshakeTimeout bounds a handshake. Default 5 s.
	TLSAddrs         []string
	TLS              TLSFiles
	HandshakeTimeout time.Duration
	// Unix is whose Unix sockets are.
	Unix UnixSockets
	// NoCache asks the servers even where a request says ?cached.
	NoCache bool
	// Sockets keeps the listeners for the process that comes next. Nil: nobody does.
	Sockets connect.Sockets
	// AllowedHosts are names by which clients may call this agent, beside IP
	// addresses, names without a dot, names under Domain, and the host's own name.
	AllowedHosts []string
	// Domain is the DNS domain of the mesh. Default "consul".
	Domain string
	// BlockEndpoints are prefixes of paths that are refused to everybody.
	BlockEndpoints []string
	// AllowWriteFrom are the networks that may change things. Empty: all. Unix
	// sockets, which have modes, always may.
	AllowWriteFrom []netip.Prefix
	// ResponseHeaders are added to every answer; they may replace the API's own.
	ResponseHeaders map[string]string

	// EnableDebug serves profiles under /debug/pprof.
	EnableDebug bool
	// Dev indents every answer, as `-dev` does.
	Dev bool
	// Self describes this agent.
	Self Self

	Local     Local
	Servers   Servers
	Members   Members
	Operators Operators
	Policies  Policies
	Keyring   Keyring
	Proxies   Proxies
	Leaves    Leaves
	Control   Control
	Monitor   Monitor
	Events    Events
	// Mint makes join tokens, which a host without a server cannot.
	Mint      func(ttl time.Duration) (enroll.Token, error)
	Authorize Authorizer // nil: ACLs are off, everybody may do everything

	// DefaultQueryTime and MaxQueryTime are the wait of a blocking query that names
	// none, and the longest that is granted. Default 5 and 10 minutes.
	DefaultQueryTime time.Duration
	MaxQueryTime     time.Duration
	// DiscoveryMaxStale makes catalog and health reads stale by default, as long
	// as the answering server heard from the leader this recently. 0: off.
	DiscoveryMaxStale time.Duration

	// KVMaxValueSize and TxnMaxRequest bound the bytes of a value of the KV store and
	// of a transaction. Default 512 KiB each.
	KVMaxValueSize int64
	TxnMaxRequest  int64

	// MaxConnsPerClient bounds the connections of one IP address. Default 200;
	// negative: no bound.
	MaxConnsPerClient int
	// MaxHeaderBytes bounds the request line and headers. Default 64 KiB.
	MaxHeaderBytes int
	// HeaderTimeout and BodyTimeout are how long the header and the body of a request
	// may take to arrive. Default 10 and 30 s.
	HeaderTimeout time.Duration
	BodyTimeout   time.Duration
	// ShutdownGrace is how long running requests may finish at the end. Default 5 s.
	ShutdownGrace time.Duration

	Logger     *slog.Logger
	Registerer prometheus.Registerer // nil: no metrics of the API itself
	Gatherer   prometheus.Gatherer   // what /v1/agent/metrics shows
	// MetricNames are how it calls them.
	MetricNames telemetry.Names
}

// Self describes the agent to those who ask.
type Self struct {
	Datacenter        string
	PrimaryDatacenter string // default: Datacenter
	NodeName          string
	NodeID            string
	Server            bool
	Version           string
	Revision          string
	BuildDate         time.Time
	GRPCPort          int // shown only; nothing is served on it
	GRPCTLSPort       int
	// Debug gives the effective configuration with secrets removed; may be nil.
	Debug func() map[string]any
	// Coordinate gives where the host is now; nil when it does not tell.
	Coordinate func() catalog.Coordinate
	// Stats gives counters of this agent by section; may be nil.
	Stats func() map[string]map[string]string
}

const (
	defaultQueryTime = 5 * time.Minute
	maxQueryTime     = 10 * time.Minute
	idleTimeout      = 2 * time.Minute

	defaultConnsPerClient = 200
)

func (c Config) withDefaults() (Config, error) {
	switch {
	case c.Local == nil:
		return c, errors.New("http api: Local is not set")
	case c.Servers == nil:
		return c, errors.New("http api: Servers is not set")
	case c.Self.NodeName == "":
		return c, errors.New("http api: the node has no name")
	case c.DefaultQueryTime < 0 || c.MaxQueryTime < 0 || c.DiscoveryMaxStale < 0:
		return c, errors.New("http api: query times must not be negative")
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Gatherer == nil {
		c.Gatherer = prometheus.NewRegistry()
	}
	if c.Authorize == nil {
		c.Authorize = func(string) (acl.Authorizer, error) { return acl.AllowAll(), nil }
	}
	if c.Unix.Mode == 0 {
		c.Unix = UnixSockets{Mode: 0o600, UID: -1, GID: -1}
	}
	setDefault(&c.Domain, "consul")
	setDefault(&c.Self.Datacenter, "dc1")
	setDefault(&c.Self.PrimaryDatacenter, c.Self.Datacenter)
	setDefault(&c.DefaultQueryTime, defaultQueryTime)
	setDefault(&c.MaxQueryTime, maxQueryTime)
	setDefault(&c.MaxConnsPerClient, defaultConnsPerClient)
	setDefault(&c.MaxHeaderBytes, 64<<10)
	setDefault(&c.HeaderTimeout, 10*time.Second)
	setDefault(&c.BodyTimeout, 30*time.Second)
	setDefault(&c.HandshakeTimeout, 5*time.Second)
	setDefault(&c.ShutdownGrace, 5*time.Second)
	return c, nil
}

func setDefault[T comparable](v *T, def T) {
	var zero T
	if *v == zero {
		*v = def
	}
}

// Server serves the HTTP API of an agent.
type Server struct {
	cfg       Config
	handler   *handler
	listeners []net.Listener
	secure    []net.Listener // those with TLS
	tls       *tls.Config
	perClient atomic.Int64 // MaxConnsPerClient of now
	closeOnce sync.Once
}

// New validates cfg and binds its addresses. Run serves them.
func New(cfg Config) (*Server, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	m, err := newMetrics(cfg.Registerer)
	if err != nil {
		return nil, fmt.Errorf("http api: %w", err)
	}
	s := &Server{cfg: cfg}
	s.perClient.Store(int64(cfg.MaxConnsPerClient))
	s.handler = newHandler(cfg, m)
	for _, addr := range cfg.Addrs {
		l, err := open(cfg, addr)
		if err != nil {
			s.Close()
			return nil, fmt.Errorf("http api: %w", err)
		}
		s.listeners = append(s.listeners, limitPerClient(l, &s.perClient, tooManyConns))
	}
	if err := s.bindTLS(); err != nil {
		s.Close()
		return nil, fmt.Errorf("https api: %w", err)
	}
	return s, nil
}

func (s *Server) bindTLS() (err error) {
	if len(s.cfg.TLSAddrs) == 0 {
		return nil
	}
	if s.tls, err = newTLS(s.cfg.TLS, s.cfg.Logger); err != nil {
		return err
	}
	for _, addr := range s.cfg.TLSAddrs {
		l, err := open(s.cfg, addr)
		if err != nil {
			return err
		}
		s.secure = append(s.secure, limitPerClient(l, &s.perClient, ""))
	}
	return nil
}

// SetMaxConnsPerClient changes Config.MaxConnsPerClient, for what connects from now on.
func (s *Server) SetMaxConnsPerClient(n int) {
	setDefault(&n, defaultConnsPerClient)
	s.perClient.Store(int64(n))
}

// Handler serves the API without a listener: to the agent itself, and to tests.
func (s *Server) Handler() http.Handler { return s.handler }

// Addrs are the addresses bound, in the order of Config.Addrs.
func (s *Server) Addrs() []net.Addr {
	out := make([]net.Addr, len(s.listeners))
	for i, l := range s.listeners {
		out[i] = l.Addr()
	}
	return out
}

// TLSAddrs are the addresses bound with TLS, in the order of Config.TLSAddrs.
func (s *Server) TLSAddrs() []net.Addr {
	out := make([]net.Addr, len(s.secure))
	for i, l := range s.secure {
		out[i] = l.Addr()
	}
	return out
}

// Close releases the addresses of a Server that is never run; Run does so itself.
func (s *Server) Close() {
	s.closeOnce.Do(func() {
		for _, l := range slices.Concat(s.listeners, s.secure) {
			_ = l.Close() // closing a listener twice is no failure worth telling
		}
	})
}

// Run serves until ctx ends: then no connection is accepted, requests finish, those that
// wait are answered, and after the grace what is left is cut off.
func (s *Server) Run(ctx context.Context) error {
	defer s.Close()
	requests, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	defer cancel(errShuttingDown)
	secure := s.serverFor(requests, s.cfg.HandshakeTimeout)
	secure.TLSConfig = s.tls
	failed := make(chan error, len(s.listeners)+len(s.secure)+1)
	var serving sync.WaitGroup
	serve := func(l net.Listener, accept func(net.Listener) error) {
		serving.Go(func() {
			if err := accept(l); !errors.Is(err, http.ErrServerClosed) {
				failed <- fmt.Errorf("http api: %s: %w", l.Addr(), err)
			}
		})
	}
	var lot *parking
	if canPark && len(s.listeners) > 0 {
		lot = newParking(requests, s.handler, s.listeners[0].Addr())
		requests = context.WithValue(requests, parkingKey{}, lot)
	}
	plain := s.serverFor(requests, s.cfg.HeaderTimeout)
	for _, l := range s.listeners {
		serve(l, plain.Serve)
	}
	if lot != nil {
		serve(lot, plain.Serve)
	}
	for _, l := range s.secure {
		serve(l, func(l net.Listener) error { return secure.ServeTLS(l, "", "") })
	}
	var err error
	select {
	case <-ctx.Done():
	case err = <-failed:
	}
	// What is under way and short is to end well; what waits is then told to come again.
	courtesy := time.AfterFunc(shortRequest, func() { cancel(errShuttingDown) })
	defer courtesy.Stop()
	grace, stop := context.WithTimeout(context.WithoutCancel(ctx), s.cfg.ShutdownGrace)
	defer stop()
	if lot != nil {
		serving.Go(func() { lot.shut(grace) })
	}
	for _, srv := range []*http.Server{plain, secure} {
		if srv.Shutdown(grace) != nil {
			_ = srv.Close() // the grace is over; errors of cut connections say nothing
		}
	}
	serving.Wait()
	return err
}

// serverFor makes a server. net/http bounds a TLS handshake by the same time as the
// headers of a request.
func (s *Server) serverFor(requests context.Context, headers time.Duration) *http.Server {
	return &http.Server{
		Handler:           s.handler,
		ReadHeaderTimeout: headers,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    s.cfg.MaxHeaderBytes,
		ErrorLog:          slog.NewLogLogger(s.cfg.Logger.Handler(), slog.LevelDebug),
		BaseContext:       func(net.Listener) context.Context { return requests },
		ConnContext:       connContext,
	}
}

// shortRequest is how long requests may go on when the server ends, before those that
// have not ended are cancelled.
const shortRequest = 100 * time.Millisecond

var errShuttingDown = errors.New("the agent is shutting down")
