package dns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/miekg/dns"
)

// Server answers DNS queries.
type Server struct {
	cfg     Config
	zones   []zone // longest first
	ttls    ttls
	metrics *metrics
	folds   folds
	reverse *reverse
	forward *forwarder
	busy    chan struct{} // a place for each query being answered
	now     func() time.Time
	grace   time.Duration // for queries, when it stops

	udp []net.PacketConn
	tcp []*limitedListener
}

// New checks cfg and binds its addresses. Run serves; Close is for a Server that
// is never run.
func New(cfg Config) (*Server, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	m, err := newMetrics(cfg.Registerer)
	if err != nil {
		return nil, err
	}
	s := &Server{
		cfg: cfg, zones: newZones(cfg.Domain, cfg.AltDomain), ttls: newTTLs(cfg.ServiceTTL), metrics: m,
		folds: newFolds(cfg.Views), reverse: newReverse(cfg.Views), forward: newForwarder(cfg),
		busy: make(chan struct{}, maxInFlight), now: time.Now, grace: stopTime,
	}
	for _, a := range cfg.Addrs {
		if err := s.bind(a); err != nil {
			s.Close()
			return nil, err
		}
	}
	if err := s.forward.refuse(s.Addrs()); err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

// Sockets keeps what listens for the process that comes next, and has what the one
// before left: nil where there is nothing.
type Sockets interface {
	Take(network, addr string) net.Listener
	TakePacket(addr string) net.PacketConn
	Keep(network, addr string, l syscall.Conn)
	Release(network, addr string)
}

// inherit takes over both sockets of addr, if both were left.
func (s *Server) inherit(addr string) bool {
	if s.cfg.Sockets == nil {
		return false
	}
	p, l := s.cfg.Sockets.TakePacket(addr), s.cfg.Sockets.Take("tcp", addr)
	if p == nil || l == nil {
		if p != nil {
			_ = p.Close() // it is bound anew, with the other
			s.cfg.Sockets.Release("udp", addr)
		}
		if l != nil {
			_ = l.Close() // as above
			s.cfg.Sockets.Release("tcp", addr)
		}
		return false
	}
	s.tcp = append(s.tcp, newLimitedListener(l, maxTCPConns, maxTCPPerHost))
	s.udp = append(s.udp, p)
	return true
}

// keep leaves both sockets of addr to the next process.
func (s *Server) keep(addr string, l net.Listener, p net.PacketConn) {
	if s.cfg.Sockets == nil {
		return
	}
	if c, ok := l.(syscall.Conn); ok {
		s.cfg.Sockets.Keep("tcp", addr, c)
	}
	if c, ok := p.(syscall.Conn); ok {
		s.cfg.Sockets.Keep("udp", addr, c)
	}
}

// bind listens on addr over UDP and TCP, with one port for both.
func (s *Server) bind(addr string) error {
	if s.inherit(addr) {
		return nil
	}
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		return fmt.Errorf("dns: listen on %q: %w: it has to be host:port", addr, err)
	}
	tries := 1
	if port == "0" {
		tries = 8 // the port that TCP got may be taken for UDP
	}
	for range tries {
		var l net.Listener
		if l, err = net.Listen("tcp", addr); err != nil {
			break
		}
		var p net.PacketConn
		host, _, _ := net.SplitHostPort(addr)
		_, bound, _ := net.SplitHostPort(l.Addr().String())
		if p, err = net.ListenPacket("udp", net.JoinHostPort(host, bound)); err == nil {
			s.tcp = append(s.tcp, newLimitedListener(l, maxTCPConns, maxTCPPerHost))
			s.udp = append(s.udp, p)
			s.keep(addr, l, p)
			return nil
		}
		_ = l.Close()
	}
	hint := "set addresses.dns and ports.dns to what this host may bind"
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		hint = "another process has it; stop that one or set another ports.dns"
	case errors.Is(err, syscall.EACCES):
		hint = "a port below 1024 needs the capability CAP_NET_BIND_SERVICE; or leave ports.dns at 8600 and have the resolver forward to it"
	}
	return fmt.Errorf("dns: listen on %s: %s: %w", addr, hint, err)
}

// Addrs are the addresses listened on over UDP, and TCP alike, in the order of
// Config.Addrs.
func (s *Server) Addrs() []net.Addr {
	out := make([]net.Addr, 0, len(s.udp))
	for _, p := range s.udp {
		out = append(out, p.LocalAddr())
	}
	return out
}

// Close releases what New bound. Run closes by itself.
func (s *Server) Close() {
	for _, p := range s.udp {
		_ = p.Close()
	}
	for _, l := range s.tcp {
		_ = l.Close()
		l.closeConns()
	}
}

// stopTime is how long queries may take to end when the server stops.
const stopTime = 2 * time.Second

// Run serves until ctx ends, or a listener fails.
func (s *Server) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	h := &handler{Server: s, ctx: ctx}
	servers := make([]*dns.Server, 0, 2*len(s.udp))
	for i := range s.udp {
		servers = append(servers,
			&dns.Server{PacketConn: s.udp[i], UDPSize: nearUDPSize},
			&dns.Server{Listener: s.tcp[i], MaxTCPQueries: tcpQueries, IdleTimeout: func() time.Duration { return tcpIdle }})
	}
	failed := make(chan error, len(servers))
	var started, ended sync.WaitGroup
	for _, srv := range servers {
		up := sync.OnceFunc(started.Done)
		srv.Handler, srv.MsgAcceptFunc, srv.NotifyStartedFunc = h, accept, up
		started.Add(1)
		ended.Go(func() {
			defer up()
			if err := srv.ActivateAndServe(); err != nil {
				failed <- err
			}
		})
	}
	started.Wait()
	var err error
	select {
	case <-ctx.Done():
	case err = <-failed:
		err = fmt.Errorf("dns: a listener failed: %w", err)
	}
	cancel() // lookups and forwards end now
	s.stop(servers)
	ended.Wait()
	return err
}

func (s *Server) stop(servers []*dns.Server) {
	ctx, cancel := context.WithTimeout(context.Background(), s.grace)
	defer cancel()
	var wg sync.WaitGroup
	for _, srv := range servers {
		wg.Go(func() { _ = srv.ShutdownContext(ctx) }) // fails where the server has ended already
	}
	// A connection that was accepted in this moment has no deadline to wake it.
	for _, l := range s.tcp {
		_ = l.Close()
		l.closeConns()
	}
	wg.Wait()
	s.Close()
}

// accept looks at the header of a message, before anything is read of it.
func accept(h dns.Header) dns.MsgAcceptAction {
	const response = 1 << 15
	switch {
	case h.Bits&response != 0:
		return dns.MsgIgnore // two servers must never talk to each other
	case int(h.Bits>>11)&0xF != dns.OpcodeQuery:
		return dns.MsgRejectNotImplemented
	case h.Qdcount != 1 || h.Ancount > 0 || h.Nscount > 1 || h.Arcount > 2:
		return dns.MsgReject
	default:
		return dns.MsgAccept
	}
}

// limitedListener bounds connections, in all and from one host, and can close
// those that are open.
type limitedListener struct {
	net.Listener
	most, perHost int

	mu     sync.Mutex
	open   map[net.Conn]netip.Addr
	hosts  map[netip.Addr]int
	closed bool
}

func newLimitedListener(l net.Listener, most, perHost int) *limitedListener {
	return &limitedListener{Listener: l, most: most, perHost: perHost, open: map[net.Conn]netip.Addr{}, hosts: map[netip.Addr]int{}}
}

// Accept implements net.Listener.
func (l *limitedListener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			if errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE) {
				time.Sleep(10 * time.Millisecond) // the caller tries again at once
			}
			return nil, err
		}
		counted := &countedConn{Conn: c, l: l}
		if l.take(counted) {
			return counted, nil
		}
		_ = c.Close()
	}
}

func (l *limitedListener) take(c *countedConn) bool {
	host := addrOf(c.RemoteAddr())
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed || len(l.open) >= l.most || l.hosts[host] >= l.perHost {
		return false
	}
	l.open[c] = host
	l.hosts[host]++
	return true
}

func (l *limitedListener) give(c *countedConn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	host, ok := l.open[c]
	if !ok {
		return
	}
	delete(l.open, c)
	if l.hosts[host]--; l.hosts[host] == 0 {
		delete(l.hosts, host)
	}
}

func (l *limitedListener) closeConns() {
	l.mu.Lock()
	l.closed = true
	conns := make([]net.Conn, 0, len(l.open))
	for c := range l.open {
		conns = append(conns, c)
	}
	l.mu.Unlock()
	for _, c := range conns {
		_ = c.Close()
	}
}

type countedConn struct {
	net.Conn
	l *limitedListener
}

// Close implements net.Conn.
func (c *countedConn) Close() error {
	c.l.give(c)
	return c.Conn.Close()
}

// addrOf is the IP address of a, the zero Addr where it has none.
func addrOf(a net.Addr) netip.Addr {
	switch t := a.(type) {
	case *net.UDPAddr:
		return t.AddrPort().Addr().Unmap()
	case *net.TCPAddr:
		return t.AddrPort().Addr().Unmap()
	default:
		return netip.Addr{}
	}
}

// zone is a domain that the server answers for.
type zone struct {
	name   string
	labels int
}

func newZones(names ...string) []zone {
	var out []zone
	for _, n := range names {
		if n != "" && !slices.ContainsFunc(out, func(z zone) bool { return z.name == n }) {
			out = append(out, zone{n, dns.CountLabel(n)})
		}
	}
	slices.SortStableFunc(out, func(a, b zone) int { return b.labels - a.labels })
	return out
}
