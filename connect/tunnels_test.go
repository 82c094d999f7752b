package connect

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/connect/tunnel"
)

// tunnelsOf counts the live tunnels of one direction that take streams.
func tunnelsOf(s *sidecar, direction string) (fresh, draining int) {
	for _, t := range s.Status().Tunnels {
		switch {
		case t.Direction != direction:
		case t.Draining:
			draining++
		default:
			fresh++
		}
	}
	return fresh, draining
}

func TestConnectionsShareATunnel(t *testing.T) {
	p := newPair(t, echo)
	var conns []*net.TCPConn
	for range 30 {
		c := dialTCP(t, p.addr)
		must(t, roundTrip(c, "x"))
		conns = append(conns, c)
	}
	for _, s := range []*sidecar{p.web, p.db} {
		st := s.Status()
		if len(st.Tunnels) != 1 || st.Tunnels[0].Streams != 30 || st.Peers[0].Open != 30 {
			t.Errorf("%s: tunnels %+v, peers %+v", st.Service, st.Tunnels, st.Peers)
		}
	}
	for _, c := range conns {
		must(t, c.CloseWrite())
		_, err := io.ReadAll(c)
		must(t, err)
	}
	eventually(t, "tables empty", func() bool { return len(p.db.Connections(0))+len(p.web.Connections(0)) == 0 })
}

// The whole behaviour again on goroutines, as on other platforms than Linux.
func TestGoroutinesCarryTheSame(t *testing.T) {
	d, err := tunnel.NewGoroutines(tunnel.Config{})
	must(t, err)
	testDriver = d
	t.Cleanup(func() { testDriver = nil; d.Close() })
	for name, f := range map[string]func(*testing.T){
		"allowed": TestAllowedReaches, "denied": TestDeniedIsRefusedWithTheRemedy, "cut": TestDenyEndsLiveConnectionsAndOnlyThose,
		"half-close": TestHalfCloseBothWays, "server first": TestServerSpeaksFirst, "reset": TestResetPassesAsReset,
		"unread request": TestAnswerSurvivesAnUnreadRequest, "drain": TestDrain,
		"unix": TestUnixSockets, "truncated": TestTruncatedTLSIsNoEnd, "listeners": TestListenersMoveWithTheSnapshot,
	} {
		t.Run(name, f)
	}
}

// A tunnel that ends with its proxy is counted at both ends: nobody looks afterwards.
func TestTunnelsThatEndLastAreCounted(t *testing.T) {
	p := newPair(t, echo)
	c := dialTCP(t, p.addr)
	must(t, roundTrip(c, "x"))
	c.Close()
	p.web.close()
	p.db.close()
	for _, s := range []*sidecar{p.web, p.db} {
		n := 0.0
		for _, one := range s.svc.metrics.Counts().Series[familyTunnels.name] {
			n += one.Value
		}
		if n != 1 {
			t.Errorf("%s: %v tunnels ended", s.id, n)
		}
	}
}

// A peer without tunnels gets one TLS connection for each, whichever end it is.
func TestPeersWithoutTunnels(t *testing.T) {
	ca := newTestCA(t, testDomain)
	t.Run("destination", func(t *testing.T) {
		db, _ := startService(t, ca, "db", "", func(s *Snapshot) { s.Intentions = allow("web") })
		web := startSidecar(t, ca, "web", func(s *Snapshot) { s.Upstreams = []Upstream{upstreamOf("db", meshListener(t, db))} })
		var wg sync.WaitGroup
		for range 20 {
			wg.Go(func() {
				if err := tryOnce(web.upstream("db")); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		c := dialTCP(t, web.upstream("db"))
		must(t, roundTrip(c, "x"))
		eventually(t, "the others ended", func() bool { return web.Status().Peers[0].Open == 1 })
		if st := web.Status(); len(st.Tunnels) != 0 {
			t.Errorf("%+v", st)
		}
		must(t, c.CloseWrite())
		_, err := io.ReadAll(c)
		must(t, err)
		web.log.find(t, "reason=ok", "bytes_in=1", "bytes_out=1")
	})
	t.Run("source", func(t *testing.T) {
		db := startSidecar(t, ca, "db", func(s *Snapshot) {
			s.Inbound, s.Local, s.Intentions = "127.0.0.1:0", serve(t, echo), allow("web")
		})
		web, _ := startService(t, ca, "web", "", func(s *Snapshot) { s.Upstreams = []Upstream{upstreamOf("db", db.inbound())} })
		c, err := web.Dial(t.Context(), "db")
		must(t, err)
		defer c.Close()
		must(t, roundTrip(c, "x"))
		db.update(func(s *Snapshot) { s.Intentions = nil })
		if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) {
			t.Errorf("a denied connection: %v", err)
		}
		db.log.find(t, "source=web", "reason=policy_changed")
	})
	t.Run("refuses to be asked", func(t *testing.T) {
		cert := ca.leaf(t, "db", time.Now().Add(-time.Minute), time.Now().Add(time.Hour))
		var asked atomic.Int32
		far := serve(t, func(c *net.TCPConn) {
			asked.Add(1)
			s := tls.Server(c, &tls.Config{Certificates: []tls.Certificate{*cert}, ClientAuth: tls.RequireAnyClientCert, NextProtos: []string{"other"}})
			_, _ = io.Copy(s, s)
			_ = s.Close()
		})
		web := startSidecar(t, ca, "web", func(s *Snapshot) { s.Upstreams = []Upstream{upstreamOf("db", far)} })
		for range 3 {
			must(t, tryOnce(web.upstream("db")))
		}
		if n := asked.Load(); n != 4 {
			t.Errorf("%d connections for 3: it is asked once", n)
		}
		web.tunnels.mu.Lock()
		for _, in := range web.tunnels.instances {
			in.noALPN = time.Now() // it is time to ask again
		}
		web.tunnels.mu.Unlock()
		must(t, tryOnce(web.upstream("db")))
		if n := asked.Load(); n != 6 {
			t.Errorf("%d connections: it is asked again after a while", n)
		}
	})
}

// A new leaf opens a new tunnel; the old one carries what it has to its end.
func TestNewLeafNewTunnel(t *testing.T) {
	p := newPair(t, echo)
	c := dialTCP(t, p.addr)
	must(t, roundTrip(c, "x"))
	next := newTestCA(t, testDomain)
	both := func(s *Snapshot) { s.Roots = []string{p.ca.pem, next.pem} }
	before := p.web.svc.keys.held.Load()
	p.db.update(both)
	p.web.update(both)
	eventually(t, "a new leaf", func() bool { return p.web.svc.keys.held.Load() != before })
	must(t, tryOnce(p.addr))
	if fresh, draining := tunnelsOf(p.web, "outbound"); fresh != 1 || draining != 1 {
		t.Errorf("%d tunnels and %d that drain: %+v", fresh, draining, p.web.Status().Tunnels)
	}
	must(t, roundTrip(c, "still carried"))
	must(t, c.CloseWrite())
	_, err := io.ReadAll(c)
	must(t, err)
	eventually(t, "the old tunnel's end", func() bool {
		_, old := tunnelsOf(p.web, "outbound")
		_, there := tunnelsOf(p.db, "inbound")
		return old == 0 && there == 0
	})
}

// A tunnel may be older than the certificate behind it is good: its streams go on, new
// ones are refused.
func TestExpiredLeafBehindATunnel(t *testing.T) {
	ca := newTestCA(t, testDomain)
	ca.ttl = time.Hour
	var ahead atomic.Int64
	clock := func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
	db := startSidecarWith(t, ca, "db", ProxyConfig{Now: clock}, func(s *Snapshot) {
		s.Inbound, s.Local, s.Intentions = "127.0.0.1:0", serve(t, echo), allow("web")
	})
	web := startSidecar(t, ca, "web", func(s *Snapshot) { s.Upstreams = []Upstream{upstreamOf("db", db.inbound())} })
	c := dialTCP(t, web.upstream("db"))
	must(t, roundTrip(c, "x"))
	ca.set(func() { ca.fail = errors.New("the servers are gone") })
	ahead.Store(int64(2 * time.Hour))
	if err := tryOnce(web.upstream("db")); err == nil {
		t.Error("a stream over an expired certificate")
	}
	db.log.find(t, "connection refused", "reason=cert_expired")
	must(t, roundTrip(c, "goes on"))
}

func TestLostTunnelResetsItsApplications(t *testing.T) {
	hold := make(chan struct{})
	seen := make(chan error, 1)
	p := newPair(t, func(c *net.TCPConn) {
		_, _ = io.ReadFull(c, make([]byte, 1))
		_, _ = c.Write([]byte("p"))
		<-hold
		_, err := c.Read(make([]byte, 1))
		seen <- err
	})
	c := dialTCP(t, p.addr)
	must(t, roundTrip(c, "p"))
	p.web.tunnels.close()
	if _, err := c.Read(make([]byte, 1)); !isReset(err) {
		t.Errorf("source: %v, want a reset", err)
	}
	close(hold)
	if err := <-seen; !isReset(err) {
		t.Errorf("destination: %v, want a reset", err)
	}
	p.db.log.find(t, "reason=client_closed")
}

// A stream whose application is untouched goes to the next instance when this one does
// not serve it.
func TestUntouchedGoesElsewhere(t *testing.T) {
	ca := newTestCA(t, testDomain)
	greeter := serve(t, func(c *net.TCPConn) { _, _ = io.WriteString(c, "hello") })
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	ln.Close()
	inst := func(local string) *sidecar {
		return startSidecar(t, ca, "db", func(s *Snapshot) { s.Inbound, s.Local, s.Intentions = "127.0.0.1:0", local, allow("web") })
	}
	down, up := inst(ln.Addr().String()), inst(greeter)
	web := startSidecar(t, ca, "web", func(s *Snapshot) {
		s.Upstreams = []Upstream{upstreamOf("db", down.inbound(), up.inbound())}
	})
	for range 30 {
		b, err := io.ReadAll(dialTCP(t, web.upstream("db")))
		if err != nil || string(b) != "hello" {
			t.Fatalf("%q, %v", b, err)
		}
	}
}

// Instances that end one after the other under load lose no request: those that drain
// are given no new ones, and serve what crosses (the L4 part of promise P31).
func TestP31RollingInstancesLosesNothing(t *testing.T) {
	ca := newTestCA(t, testDomain)
	app := serve(t, echo)
	start := func() *sidecar {
		return startSidecar(t, ca, "db", func(s *Snapshot) {
			s.Inbound, s.Local, s.Intentions, s.Limits.DrainTimeout = "127.0.0.1:0", app, allow("web"), 10*time.Second
		})
	}
	a, b := start(), start()
	web := startSidecar(t, ca, "web", func(s *Snapshot) { s.Upstreams = []Upstream{upstreamOf("db", a.inbound(), b.inbound())} })
	addr := web.upstream("db")
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	var served atomic.Int64
	for range 8 {
		wg.Go(func() {
			for ctx.Err() == nil {
				if err := tryOnce(addr); err != nil {
					t.Errorf("a request was lost: %v", err)
					return
				}
				served.Add(1)
			}
		})
	}
	for range times(4, 20) {
		old := a
		a, b = b, start()
		before := served.Load()
		web.update(func(s *Snapshot) {
			s.Upstreams[0] = withListen(upstreamOf("db", a.inbound(), b.inbound()), s.Upstreams[0].Listen)
		})
		old.close()
		eventually(t, "requests", func() bool { return served.Load() > before+50 })
	}
	stop()
	wg.Wait()
	t.Logf("%d requests", served.Load())
}

func withListen(u Upstream, at string) Upstream {
	u.Listen = at
	return u
}

// Update against streams: whatever the order, a stream that the last policy denies is
// not open afterwards.
func TestP16RaceOfStreamAndUpdate(t *testing.T) {
	p := newPair(t, echo)
	must(t, tryOnce(p.addr))
	for range times(100, 5000) {
		p.db.update(func(s *Snapshot) { s.Intentions = allow("web") })
		ended := make(chan error, 1)
		c := dialTCP(t, p.addr)
		go func() {
			// A reset is told once, to the write or to the read that meets it first.
			_, err := c.Write([]byte("x"))
			if err == nil {
				_, err = io.Copy(io.Discard, c)
			}
			ended <- err
		}()
		p.db.update(func(s *Snapshot) { s.Intentions = nil })
		if err := <-ended; !isReset(err) {
			t.Fatalf("a denied stream ended with %v, want a reset", err)
		}
		c.Close()
	}
	eventually(t, "tables empty", func() bool { return len(p.db.Connections(0))+len(p.web.Connections(0)) == 0 })
}

// The holder of one certificate gets so many tunnels and no more.
func TestTunnelsPerCertificate(t *testing.T) {
	ca := newTestCA(t, testDomain)
	db := startSidecar(t, ca, "db", func(s *Snapshot) {
		s.Inbound, s.Local, s.Intentions = "127.0.0.1:0", serve(t, echo), allow("web")
	})
	cert := ca.leaf(t, "web", time.Now().Add(-time.Minute), time.Now().Add(time.Hour))
	d, err := tunnel.NewGoroutines(tunnel.Config{})
	must(t, err)
	defer d.Close()
	open := func() (tunnel.Link, error) {
		c := tls.Client(newWire(dialTCP(t, db.inbound())), &tls.Config{
			Certificates: []tls.Certificate{*cert}, InsecureSkipVerify: true, NextProtos: []string{tunnel.ALPN},
		})
		return d.Client(t.Context(), c, 0)
	}
	var links []tunnel.Link
	for range maxTunnelsPerLeaf {
		l, err := open()
		must(t, err)
		links = append(links, l)
	}
	if _, err := open(); err == nil {
		t.Error("one more tunnel than allowed")
	}
	db.log.find(t, "reason=limit", "source=web", "too many tunnels")
	links[0].Close()
	eventually(t, "room for another", func() bool {
		_, err := open()
		return err == nil
	})
}

// fast is a driver whose first tunnel moves as much as on a fast machine: how much a busy
// one does is nobody's to say.
type fast struct {
	tunnel.Driver
	made atomic.Int32
}

func (d *fast) Client(ctx context.Context, conn *tls.Conn, patience time.Duration) (tunnel.Link, error) {
	l, err := d.Driver.Client(ctx, conn, patience)
	if err == nil && d.made.Add(1) == 1 {
		l = &fastLink{Link: l}
	}
	return l, err
}

type fastLink struct {
	tunnel.Link
	more atomic.Uint64
}

func (l *fastLink) Status() tunnel.Status {
	st := l.Link.Status()
	st.Grown = st.Streams
	st.Bytes += l.more.Add(1 << 40)
	return st
}

// Who comes while a tunnel moves bulk gets another one.
func TestBulkHasATunnelOfItsOwn(t *testing.T) {
	d, err := tunnel.New(tunnel.Config{})
	must(t, err)
	testDriver = &fast{Driver: d}
	t.Cleanup(func() { testDriver = nil; d.Close() })
	p := newPair(t, func(c *net.TCPConn) {
		first := make([]byte, 1)
		if _, err := io.ReadFull(c, first); err != nil {
			return
		}
		if first[0] != 'b' {
			_, _ = c.Write(first)
			_, _ = io.Copy(c, c)
			return
		}
		for chunk := make([]byte, 64<<10); ; {
			if _, err := c.Write(chunk); err != nil {
				return
			}
		}
	})
	bulk := dialTCP(t, p.addr)
	_, err = bulk.Write([]byte("b"))
	must(t, err)
	go func() { _, _ = io.Copy(io.Discard, bulk) }()
	var small []*net.TCPConn
	eventually(t, "a second tunnel", func() bool {
		c := dialTCP(t, p.addr)
		must(t, roundTrip(c, "x"))
		small = append(small, c)
		fresh, _ := tunnelsOf(p.web, "outbound")
		return fresh > 1 // on more than two processors there are more soon
	})
	eventually(t, "a stream on it", func() bool {
		must(t, tryOnce(p.addr))
		c := dialTCP(t, p.addr)
		must(t, roundTrip(c, "x"))
		small = append(small, c)
		n := 0
		for _, tun := range p.web.Status().Tunnels {
			if tun.Streams > 0 {
				n++
			}
		}
		return n > 1
	})
	for _, c := range small {
		must(t, roundTrip(c, "still"))
		c.Close()
	}
	bulk.Close()
}

// TestPanicInHandshake: a handshake that panics frees those who wait for it, and the next
// one may try.
func TestPanicInHandshake(t *testing.T) {
	p := &Proxy{}
	p.tunnels.init(nil)
	key := instanceKey{addr: "10.0.0.1:1"}
	mine, in := p.tunnels.begin(key), p.tunnels.instance(key)
	func() {
		defer func() {
			if recover() == nil {
				t.Error("there was to be a panic")
			}
		}()
		_, _, _ = p.handshakeFor(t.Context(), nil, key, nil, mine) // there is no attempt
	}()
	select {
	case <-mine.done:
	default:
		t.Fatal("those who wait for it wait for ever")
	}
	if !errors.Is(mine.err, errUnfinished) || mine.t != nil || len(in.dialing) != 0 {
		t.Errorf("%v, %v, %v", mine.err, mine.t, in.dialing)
	}
}

// What begins together at an instance that is known for bulk has more than one tunnel
// from the beginning, and shares one otherwise.
func TestConnectionsToBulkInstancesSpread(t *testing.T) {
	p := newPair(t, echo)
	must(t, tryOnce(p.addr))
	together := func(n int) (streams []int) {
		t.Helper()
		conns := make([]*net.TCPConn, n)
		var wg sync.WaitGroup
		for i := range conns {
			conns[i] = dialTCP(t, p.addr)
			wg.Go(func() {
				if err := roundTrip(conns[i], "x"); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		for _, tun := range p.web.Status().Tunnels {
			streams = append(streams, tun.Streams)
		}
		for _, c := range conns {
			c.Close()
		}
		eventually(t, "no streams", func() bool { return len(p.web.Connections(0)) == 0 })
		return streams
	}
	if got := together(8); len(got) != 1 || got[0] != 8 {
		t.Fatalf("streams by tunnel: %v, want one tunnel", got)
	}
	p.web.tunnels.mu.Lock()
	for _, in := range p.web.tunnels.instances {
		in.bulkAt = time.Now()
	}
	p.web.tunnels.mu.Unlock()
	got := together(8)
	if len(got) != usualTunnels() {
		t.Fatalf("streams by tunnel: %v, want %d tunnels", got, usualTunnels())
	}
	for _, n := range got {
		if n == 0 || n > 8-len(got)+1 {
			t.Fatalf("streams by tunnel: %v", got)
		}
	}
}

// stalled passes connections on to an address, but nothing of what they say before
// release is called.
func stalled(t *testing.T, to string) (addr string, release func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	held := make(chan struct{})
	addr = serve(t, func(c *net.TCPConn) {
		<-held
		far, err := net.Dial("tcp", to)
		if err != nil {
			return
		}
		defer far.Close()
		defer context.AfterFunc(ctx, func() { far.Close() })()
		go func() { _, _ = io.Copy(far, c) }()
		_, _ = io.Copy(c, far)
	})
	release = sync.OnceFunc(func() { close(held) })
	t.Cleanup(func() { release(); cancel() })
	return addr, release
}

// waiting counts those who have taken their turn to wait for a handshake of another.
func waiting(s *sidecar) (n int) {
	s.tunnels.mu.Lock()
	defer s.tunnels.mu.Unlock()
	for _, in := range s.tunnels.instances {
		n += in.turn
	}
	return n
}

// A handshake that began before trust changed serves nobody whom the trust of now keeps
// away, whoever waits for it, and everybody else.
func TestTrustChangesWhileOthersWaitForAHandshake(t *testing.T) {
	for name, revoked := range map[string]bool{"revoked": true, "still trusted": false} {
		t.Run(name, func(t *testing.T) {
			p := newPair(t, echo)
			slow, release := stalled(t, p.db.inbound())
			p.web.update(func(s *Snapshot) { s.Upstreams = []Upstream{upstreamOf("db", slow)} })
			addr := p.web.upstream("db")
			ended := make(chan error, 2)
			go func() { ended <- tryOnce(addr) }()
			handshakeUnderWay(t, &p.web.tunnels)
			p.web.update(func(s *Snapshot) {
				id := p.db.svc.world.Load().id
				if !revoked {
					id.Service = "other"
				}
				s.RevokedIDs = []string{id.String()}
			})
			go func() { ended <- tryOnce(addr) }()
			eventually(t, "somebody who waits for it", func() bool { return waiting(p.web) == 1 })
			release()
			for range 2 {
				if err := <-ended; revoked && err == nil {
					t.Error("a connection to an instance whose identity was revoked")
				} else if !revoked && err != nil {
					t.Error(err)
				}
			}
			if fresh, _ := tunnelsOf(p.web, "outbound"); revoked && fresh != 0 {
				t.Errorf("%d tunnels to it stand: %+v", fresh, p.web.Status().Tunnels)
			}
		})
	}
}

// Who makes a tunnel may have less time left than those who wait for it: they get it.
func TestHandshakeOutlivesItsLeader(t *testing.T) {
	p := newPair(t, echo)
	slow, release := stalled(t, p.db.inbound())
	p.web.update(func(s *Snapshot) { s.Upstreams = []Upstream{upstreamOf("db", slow)} })
	w := p.web.svc.world.Load()
	up := w.upstreams["db"]
	ask := func(ctx context.Context) (*outboundTunnel, error) {
		got, _, err := p.web.tunnel(ctx, &attempt{journey: journey{p: p.web.Proxy, ctx: t.Context()}, w: w, up: up}, &candidate{Endpoint: &up.Instances[0]})
		return got, err
	}
	hurried, late := context.WithCancel(t.Context())
	gone, served := make(chan error, 1), make(chan error, 1)
	go func() { _, err := ask(hurried); gone <- err }()
	handshakeUnderWay(t, &p.web.tunnels)
	go func() {
		got, err := ask(t.Context())
		if err == nil && got == nil {
			err = errors.New("no tunnel")
		}
		served <- err
	}()
	eventually(t, "somebody who waits for it", func() bool { return waiting(p.web) == 1 })
	late()
	if err := <-gone; !errors.Is(err, context.Canceled) {
		t.Errorf("who had no time left got %v", err)
	}
	release()
	must(t, <-served)
}

// fakeLink is a tunnel of which a test says how it does.
type fakeLink struct {
	tunnel.Link
	status tunnel.Status
}

func (l *fakeLink) Status() tunnel.Status { return l.status }
func (l *fakeLink) Drain(tunnel.Code)     { l.status.Draining = true }
func (l *fakeLink) Done() <-chan struct{} { return nil }

// A tunnel that went quiet after bulk is replaced once it is empty, and not while it
// carries connections that rest: each such replacement would stand until they end.
func TestQuietTunnelsAreReplacedWhenEmpty(t *testing.T) {
	begin := time.Unix(1e9, 0)
	var pool tunnels
	pool.init(func(line, error) {})
	up := &upstream{Upstream: Upstream{Instances: []Endpoint{{Addr: "10.0.0.1:1"}}}}
	w := &world{upstreams: map[string]*upstream{"db": up}}
	link := &fakeLink{status: tunnel.Status{Streams: 1, Limit: 100, Bulk: true, Bytes: 1 << 20}}
	pool.put(&outboundTunnel{link: link, key: instanceKey{"10.0.0.1:1", up.peer(&up.Instances[0])}, since: begin})
	for at := tendEvery; at <= 10*idleTunnel; at += tendEvery {
		pool.tend(w, nil, begin.Add(at))
	}
	if link.status.Draining {
		t.Fatal("it drains though it carries a connection")
	}
	end := begin.Add(10 * idleTunnel)
	link.status.Bytes++ // the connection ends
	link.status.Streams = 0
	for at := time.Duration(0); at <= quietTunnel; at += tendEvery {
		if link.status.Draining {
			t.Fatalf("it drains %s after its last byte", at)
		}
		pool.tend(w, nil, end.Add(at))
	}
	if !link.status.Draining {
		t.Errorf("it stands %s after its last byte, with the buffers of bulk", quietTunnel)
	}
}

// closingLink calls back when it is closed.
type closingLink struct {
	fakeLink
	closed func()
}

func (l *closingLink) Close() error { l.closed(); return nil }

// Chains are verified while event loops use the pool: a thousand of them take a while.
func TestPoolIsFreeWhileTrustIsJudged(t *testing.T) {
	ca, other := newTestCA(t, testDomain), newTestCA(t, testDomain)
	web := startSidecar(t, ca, "web", nil)
	pool := &web.tunnels
	var closed, held int
	link := func() tunnel.Link {
		return &closingLink{closed: func() {
			if closed++; !pool.mu.TryLock() {
				held++
				return
			}
			pool.mu.Unlock()
		}}
	}
	for _, c := range []*testCA{ca, other, other} {
		leaf, err := x509.ParseCertificate(c.leaf(t, "db", time.Now(), time.Now().Add(time.Hour)).Certificate[0])
		must(t, err)
		chain := []*x509.Certificate{leaf}
		in, l := &inboundTunnel{ends: &ends{chain: chain}}, link()
		in.link.Store(&l)
		if !pool.enter(in) {
			t.Fatal("no place")
		}
		pool.put(&outboundTunnel{link: link(), key: instanceKey{addr: "192.0.2.1:1"}, chain: chain})
	}
	w := web.svc.world.Load()
	pool.trust(w, time.Now())
	if closed != 4 || held != 0 {
		t.Errorf("%d closed, want 4 of another authority; %d of them while the pool was held", closed, held)
	}
	pool.mu.Lock()
	defer pool.mu.Unlock()
	for i, o := range pool.instances[instanceKey{addr: "192.0.2.1:1"}].tunnels {
		if trusted := o.bundle == w.bundle; trusted != (i == 0) {
			t.Errorf("tunnel %d is trusted: %v", i, trusted)
		}
	}
	clear(pool.instances)
	clear(pool.inbound)
}

// The limit on connections is for connections: tunnels that carry none, of sources that
// were here a moment ago, take no place of it.
func TestIdleTunnelsTakeNoPlaceOfConnections(t *testing.T) {
	ca := newTestCA(t, testDomain)
	db := startSidecar(t, ca, "db", func(s *Snapshot) {
		s.Inbound, s.Local, s.Default = "127.0.0.1:0", serve(t, echo), catalog.ActionAllow
		s.Limits.MaxInboundConnections = 2
	})
	none := func() bool { return len(db.Connections(0)) == 0 }
	var addrs []string
	for _, name := range []string{"a", "b", "c", "d"} {
		web := startSidecar(t, ca, name, func(s *Snapshot) { s.Upstreams = []Upstream{upstreamOf("db", db.inbound())} })
		addrs = append(addrs, web.upstream("db"))
		if err := tryOnce(addrs[len(addrs)-1]); err != nil {
			t.Fatalf("%s, with no connection open: %v", name, err)
		}
		eventually(t, "its end", none)
	}
	if n, _ := tunnelsOf(db, "inbound"); n != len(addrs) {
		t.Errorf("%d tunnels, want one of each source", n)
	}
	for _, addr := range addrs[:2] {
		must(t, roundTrip(dialTCP(t, addr), "x"))
	}
	if tryOnce(addrs[2]) == nil {
		t.Error("a connection more than the limit allows")
	}
	db.log.find(t, "reason=limit", "source=c", "2 inbound connections are open")
}

// A row that is killed just as its stream is refused gives its counts back once.
func TestCountsWhenARowIsKilledAsItIsGiven(t *testing.T) {
	p := newPair(t, echo)
	w := p.web.svc.world.Load()
	up := w.upstreams["db"]
	a := &attempt{journey: journey{p: p.web.Proxy, ctx: t.Context()}}
	a.begin(w, up)
	if !p.web.svc.table.reserve(up.key, 0) {
		t.Fatal("no reservation")
	}
	e := a.next()
	id := up.peer(e.Endpoint)
	err := a.hand(e, p.web.svc.outboundEnds(w, up, e, id, nil), func(net.Conn, tunnel.EndFunc) (*tunnel.Flow, error) {
		for _, r := range p.web.svc.table.all(nil) {
			r.kill(ending{reason: ReasonPolicyChanged})
		}
		return nil, tunnel.ErrDraining
	})
	if err == nil {
		t.Fatal("it was carried")
	}
	if n, m := e.state.active, p.web.svc.table.outbound[up.key]; n != 1 || m != 1 {
		t.Errorf("the instance counts %d and the upstream %d, want those of the caller", n, m)
	}
}

// An instance whose own certificate is of no use refuses streams, and they go to the next.
func TestInstanceWithoutCertificateIsPassedOver(t *testing.T) {
	ca, other := newTestCA(t, testDomain), newTestCA(t, testDomain)
	other.ttl = time.Hour
	var ahead atomic.Int64
	clock := func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
	inst := func(cfg ProxyConfig) *sidecar {
		return startSidecarWith(t, ca, "db", cfg, func(s *Snapshot) {
			s.Roots = []string{ca.pem, other.pem}
			s.Inbound, s.Local, s.Intentions = "127.0.0.1:0", serve(t, echo), allow("web")
		})
	}
	bad, good := inst(ProxyConfig{Now: clock, Signer: other}), inst(ProxyConfig{})
	web := startSidecar(t, ca, "web", func(s *Snapshot) {
		s.Roots = []string{ca.pem, other.pem}
		s.Upstreams = []Upstream{upstreamOf("db", bad.inbound(), good.inbound())}
	})
	eventually(t, "a tunnel to each", func() bool {
		must(t, tryOnce(web.upstream("db")))
		fresh, _ := tunnelsOf(web, "outbound")
		return fresh == 2
	})
	other.set(func() { other.fail = errors.New("the servers are gone") })
	ahead.Store(int64(90 * time.Minute))
	for range 20 {
		if err := tryOnce(web.upstream("db")); err != nil {
			t.Fatalf("though an instance serves: %v", err)
		}
	}
	bad.log.find(t, "connection refused", "reason=cert_expired")
}

// handshakeUnderWay waits until a tunnel is being made.
func handshakeUnderWay(t *testing.T, all *tunnels) {
	t.Helper()
	eventually(t, "a handshake under way", func() bool {
		all.mu.Lock()
		defer all.mu.Unlock()
		for _, in := range all.instances {
			if len(in.dialing) > 0 {
				return true
			}
		}
		return false
	})
}
