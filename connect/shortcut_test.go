package connect

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/weftmesh/weft/connect/tunnel"
)

func useShortCut(t *testing.T) {
	t.Helper()
	testShortCut = NewShortCut()
	t.Cleanup(func() { testShortCut = nil })
}

// The whole behaviour again between two services of one process.
func TestShortCutBehavesTheSame(t *testing.T) {
	useShortCut(t)
	for name, f := range map[string]func(*testing.T){
		"allowed": TestAllowedReaches, "denied": TestDeniedIsRefusedWithTheRemedy, "cut": TestDenyEndsLiveConnectionsAndOnlyThose,
		"half-close": TestHalfCloseBothWays, "server first": TestServerSpeaksFirst, "reset": TestResetPassesAsReset,
		"unread request": TestAnswerSurvivesAnUnreadRequest, "drain": TestDrain, "unix": TestUnixSockets,
		"listeners": TestListenersMoveWithTheSnapshot,
	} {
		t.Run(name, f)
	}
}

func TestShortCutUsesNoTunnel(t *testing.T) {
	useShortCut(t)
	p := newPair(t, echo)
	c := dialTCP(t, p.addr)
	must(t, roundTrip(c, "hello"))
	for _, s := range []*sidecar{p.web, p.db} {
		eventually(t, "bytes are counted after they went on", func() bool {
			st := s.Status()
			return len(st.Peers) == 1 && st.Peers[0].Open == 1 && st.Peers[0].BytesIn == 5
		})
		if st := s.Status(); len(st.Tunnels) != 0 {
			t.Errorf("%s: tunnels %+v", st.Service, st.Tunnels)
		}
	}
	must(t, c.CloseWrite())
	_, err := io.ReadAll(c)
	must(t, err)
	p.web.log.find(t, "reason=ok", "bytes_in=5", "bytes_out=5", "svc/db")
	p.db.log.find(t, "reason=ok", "bytes_in=5", "bytes_out=5", "svc/web", "rule=")
}

func TestShortCutIsCutByADeny(t *testing.T) {
	useShortCut(t)
	p := newPair(t, echo)
	c := dialTCP(t, p.addr)
	must(t, roundTrip(c, "x"))
	p.db.update(func(s *Snapshot) { s.Intentions = nil })
	_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
	if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("a denied connection: %v", err)
	}
	p.db.log.find(t, "source=web", "reason=policy_changed")
	p.web.log.find(t, "reason=policy_changed")
}

// What one end would not accept in a handshake it does not accept here.
func TestShortCutProvesIdentity(t *testing.T) {
	useShortCut(t)
	t.Run("another authority", func(t *testing.T) {
		ca, other := newTestCA(t, testDomain), newTestCA(t, testDomain)
		db := startSidecar(t, other, "db", func(s *Snapshot) {
			s.Inbound, s.Local, s.Intentions = "127.0.0.1:0", serve(t, echo), allow("web")
		})
		web := startSidecar(t, ca, "web", func(s *Snapshot) { s.Upstreams = []Upstream{upstreamOf("db", db.inbound())} })
		if tryOnce(web.upstream("db")) == nil {
			t.Error("an authority that web does not trust vouched for db")
		}
	})
	t.Run("revoked", func(t *testing.T) {
		p := newPair(t, echo)
		must(t, tryOnce(p.addr))
		p.db.update(func(s *Snapshot) { s.RevokedIDs = []string{p.web.svc.world.Load().id.String()} })
		if tryOnce(p.addr) == nil {
			t.Error("a revoked source was let in")
		}
	})
	t.Run("another service at the address", func(t *testing.T) {
		p := newPair(t, echo)
		p.web.update(func(s *Snapshot) { s.Upstreams = []Upstream{upstreamOf("api", p.db.inbound())} })
		if tryOnce(p.web.upstream("api")) == nil {
			t.Error("db passed for api")
		}
	})
}

func TestShortCutFindsByAddress(t *testing.T) {
	useShortCut(t)
	p := newPair(t, echo)
	at := netip.MustParseAddrPort(p.db.inbound())
	id := p.db.svc.world.Load().id
	c := NewShortCut()
	c.open(net.JoinHostPort("0.0.0.0", strconv.Itoa(int(at.Port()))), p.db.Proxy)
	for host, found := range map[string]bool{"127.0.0.1": true, "198.51.100.7": false, "localhost": false} {
		key := instanceKey{net.JoinHostPort(host, strconv.Itoa(int(at.Port()))), id}
		if got := c.find(key); (got != nil) != found {
			t.Errorf("%s: found %v, want %v", host, got != nil, found)
		}
	}
	c.close(p.db.Proxy)
	if c.find(instanceKey{at.String(), id}) != nil || len(c.doors) != 0 {
		t.Error("found after it was closed")
	}
	var none *ShortCut
	none.open("127.0.0.1:1", p.db.Proxy)
	none.close(p.db.Proxy)
	if none.find(instanceKey{at.String(), id}) != nil {
		t.Error("found where there is none")
	}
}

// splices calls before with each connection that takes a short cut, once it was chosen.
type splices struct {
	tunnel.Driver
	before atomic.Pointer[func()] // nil: nothing
}

func (d *splices) Splice(app net.Conn, accept tunnel.Accept, end tunnel.EndFunc) (*tunnel.Flow, error) {
	if f := d.before.Load(); f != nil {
		(*f)()
	}
	return d.Driver.Splice(app, accept, end)
}

// A destination that begins to drain just after it was chosen is not to blame: its
// successor, which listens at the same address, gets the connection.
func TestShortCutToOneThatDrains(t *testing.T) {
	d, err := tunnel.New(tunnel.Config{})
	must(t, err)
	between := &splices{Driver: d}
	testDriver = between
	t.Cleanup(func() { testDriver = nil; d.Close() })
	ca := newTestCA(t, testDomain)
	db := func(s *Snapshot) { s.Inbound, s.Local, s.Intentions = "127.0.0.1:0", serve(t, echo), allow("web") }
	next := startSidecar(t, ca, "db", db) // without a short cut, as another process
	useShortCut(t)
	old := startSidecar(t, ca, "db", db)
	cut := testShortCut
	cut.close(old.Proxy)
	cut.open(next.inbound(), old.Proxy)
	web := startSidecar(t, ca, "web", func(s *Snapshot) { s.Upstreams = []Upstream{upstreamOf("db", next.inbound())} })
	must(t, tryOnce(web.upstream("db")))
	if fresh, _ := tunnelsOf(web, "outbound"); fresh != 0 {
		t.Fatal("it took no short cut")
	}
	drains := func() { old.noInbound.Store(true); cut.close(old.Proxy) }
	between.before.Store(&drains)
	must(t, tryOnce(web.upstream("db")))
	if fresh, _ := tunnelsOf(web, "outbound"); fresh != 1 {
		t.Errorf("%d tunnels to the successor", fresh)
	}
	if failing := web.svc.balancer.failing(); len(failing) != 0 {
		t.Errorf("%d instances are blamed", len(failing))
	}
}
