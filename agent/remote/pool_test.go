package remote

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/test/bufconn"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/catalog/wire"
)

// farm is servers by address.
type farm struct {
	mu  sync.Mutex
	at  map[string]*bufconn.Listener
	srv map[string]*grpc.Server
}

func newFarm(t *testing.T) *farm {
	f := &farm{at: map[string]*bufconn.Listener{}, srv: map[string]*grpc.Server{}}
	t.Cleanup(func() {
		for addr := range f.srv {
			f.stop(addr)
		}
	})
	return f
}

func (f *farm) serve(addr string, s wire.Servers) {
	l, srv := bufconn.Listen(1<<16), grpc.NewServer()
	wire.Register(srv, s)
	go func() { _ = srv.Serve(l) }()
	f.mu.Lock()
	defer f.mu.Unlock()
	f.at[addr], f.srv[addr] = l, srv
}

func (f *farm) stop(addr string) {
	f.mu.Lock()
	srv := f.srv[addr]
	delete(f.at, addr)
	f.mu.Unlock()
	srv.Stop()
}

func (f *farm) dial(ctx context.Context, addr string) (net.Conn, error) {
	f.mu.Lock()
	l := f.at[addr]
	f.mu.Unlock()
	if l == nil {
		return nil, fmt.Errorf("%s: connection refused", addr)
	}
	return l.DialContext(ctx)
}

func servers(addrs ...string) []Server {
	var out []Server
	for _, a := range addrs {
		out = append(out, Server{Addr: a})
	}
	return out
}

// TestFailOver: an agent goes on at another server when its own ends, resumes its
// views there, and takes only servers that gossip knows.
func TestFailOver(t *testing.T) {
	f := newFarm(t)
	a, b := newFake(10), newFake(10)
	f.serve("a:1", a)
	f.serve("b:1", b)
	p, err := NewPool(PoolConfig{Dial: f.dial})
	if err != nil {
		t.Fatal(err)
	}
	p.Learn(servers("a:1"), 3)
	r, err := New(Config{Pool: p})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- r.Run(ctx) }()
	w := r.Watch(dbQuery)
	_, i := next(t, w, 0)
	if r.Server() != "a:1" || !r.Connected() {
		t.Fatalf("it speaks to %q", r.Server())
	}
	p.Learn(servers("b:1"), 3) // a is no server any more: go over without being cut off
	b.set(viewAt(11, "e1"))
	if v, _ := next(t, w, i); v.Index != 11 || r.Server() != "b:1" {
		t.Fatalf("index %d from %q", v.Index, r.Server())
	}
	b.mu.Lock()
	resumed := b.lastWatch
	b.mu.Unlock()
	if resumed.After != 10 {
		t.Errorf("the view was resumed from %d, want 10", resumed.After)
	}
	p.Learn(servers("a:1", "b:1"), 3)
	f.stop("b:1")
	a.set(viewAt(12, "e1"))
	if v, _ := next(t, w, 11); v.Index != 12 || r.Server() != "a:1" {
		t.Fatalf("index %d from %q", v.Index, r.Server())
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// slowSync answers after it was released.
type slowSync struct {
	*fakeServers
	entered, release chan struct{}
}

func (s slowSync) Sync(ctx context.Context, req *wire.SyncRequest) (*wire.SyncReply, error) {
	close(s.entered)
	<-s.release
	return s.fakeServers.Sync(ctx, req)
}

// TestMoveFailsNoCall: a call that is under way when the server is changed ends well,
// on the server where it began.
func TestMoveFailsNoCall(t *testing.T) {
	f := newFarm(t)
	slow := slowSync{newFake(1), make(chan struct{}), make(chan struct{})}
	f.serve("a:1", slow)
	p, err := NewPool(PoolConfig{Dial: f.dial, Seeds: []string{"a:1"}})
	if err != nil {
		t.Fatal(err)
	}
	r, err := New(Config{Pool: p})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	done := make(chan error, 1)
	go func() {
		_, err := r.Sync(t.Context(), catalog.NodeState{Node: &catalog.Node{Node: "n"}})
		done <- err
	}()
	<-slow.entered
	f.serve("b:1", newFake(1))
	p.Learn(servers("a:1", "b:1"), 2)
	if err := r.links.move(t.Context()); err != nil || r.Server() != "b:1" {
		t.Fatalf("moved to %q: %v", r.Server(), err)
	}
	close(slow.release)
	if err := <-done; err != nil {
		t.Errorf("the call under way failed: %v", err)
	}
}

// TestSilentServersHoldUpNobody: of three servers two are silent, as behind a cut cable.
func TestSilentServersHoldUpNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, err := NewPool(PoolConfig{Dial: func(ctx context.Context, addr string) (net.Conn, error) {
			if addr == "c:1" {
				c, _ := net.Pipe()
				return c, nil
			}
			<-ctx.Done()
			return nil, ctx.Err()
		}})
		if err != nil {
			t.Fatal(err)
		}
		p.Learn(servers("a:1", "b:1", "c:1"), 3)
		for range 20 {
			began := time.Now()
			c, addr, err := p.dial(t.Context(), "")
			if err != nil || addr != "c:1" {
				t.Fatalf("%q, %v", addr, err)
			}
			_ = c.Close()
			if took := time.Since(began); took > 2*stagger {
				t.Errorf("it took %s", took)
			}
		}
		synctest.Wait()
	})
}

// TestSearchWaitsForAnother: while the one server that lives shakes hands with another
// search of this host, or takes longer than an attempt may, a search goes on.
func TestSearchWaitsForAnother(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begun := time.Now()
		p, err := NewPool(PoolConfig{
			Dial: func(_ context.Context, addr string) (net.Conn, error) {
				if addr == "b:1" {
					return nil, errors.New("refused")
				}
				c, _ := net.Pipe()
				return c, nil
			},
			Secure: func(ctx context.Context, c net.Conn) (net.Conn, error) {
				busy := 3 * dialTimeout / 2
				select {
				case <-time.After(busy - time.Since(begun)):
					return c, nil
				case <-ctx.Done():
					_ = c.Close()
					return nil, ctx.Err()
				}
			},
		})
		if err != nil {
			t.Fatal(err)
		}
		p.Learn(servers("a:1", "b:1"), 3)
		var both sync.WaitGroup
		for range 2 {
			both.Go(func() {
				c, addr, err := p.dial(t.Context(), "")
				if err != nil || addr != "a:1" {
					t.Errorf("after %s: %q, %v", time.Since(begun), addr, err)
					return
				}
				_ = c.Close()
			})
		}
		both.Wait()
	})
}

// TestBusyServersAreAskedOnce: servers that take connections and are slow to shake hands,
// as when a whole fleet comes at once, get one handshake of each host and not more.
func TestBusyServersAreAskedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var handshakes atomic.Int32
		p, err := NewPool(PoolConfig{
			Dial: func(context.Context, string) (net.Conn, error) {
				c, _ := net.Pipe()
				return c, nil
			},
			Secure: func(ctx context.Context, c net.Conn) (net.Conn, error) {
				handshakes.Add(1)
				<-ctx.Done()
				return nil, errors.Join(ctx.Err(), c.Close())
			},
		})
		if err != nil {
			t.Fatal(err)
		}
		p.Learn(servers("a:1", "b:1", "c:1"), 3)
		ctx, cancel := context.WithTimeout(t.Context(), dialTimeout)
		defer cancel()
		var wg sync.WaitGroup
		for range 2 { // a connection that was lost, and one to replace it
			wg.Go(func() {
				if _, _, err := p.dial(ctx, ""); err == nil {
					t.Error("it is connected")
				}
			})
			time.Sleep(stagger / 2)
		}
		wg.Wait()
		if n := handshakes.Load(); n != 3 {
			t.Errorf("%d handshakes were begun", n)
		}
	})
}

// TestPoolOutlivesTheProcess: the servers known last are on disk, a damaged file is no
// obstacle, and an empty word of gossip forgets nothing.
func TestPoolOutlivesTheProcess(t *testing.T) {
	file := filepath.Join(t.TempDir(), "servers.json")
	none := func(context.Context, string) (net.Conn, error) { return nil, errors.New("refused") }
	open := func() *Pool {
		p, err := NewPool(PoolConfig{Dial: none, File: file, Seeds: []string{"seed:1"}})
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	p := open()
	p.Learn(servers("b:1", "a:1", "a:1"), 3)
	p.Learn(nil, 1)
	again := open()
	if got := again.Servers(); len(got) != 2 || got[0].Addr != "a:1" {
		t.Errorf("%v", got)
	}
	if got := again.Addrs(); len(got) != 3 || got[2] != "seed:1" {
		t.Errorf("seeds come last: %v", got)
	}
	if _, _, err := again.dial(t.Context(), "a:1"); err == nil {
		t.Errorf("dial: %v", err)
	}
	if err := os.WriteFile(file, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := open().Servers(); len(got) != 0 {
		t.Errorf("from a damaged file: %v", got)
	}
}

// TestInventedServersPushNobodyOut: by the word of one host there may be any number of
// servers; those that are known stay.
func TestInventedServersPushNobodyOut(t *testing.T) {
	p, err := NewPool(PoolConfig{Dial: func(context.Context, string) (net.Conn, error) { return nil, errors.New("refused") }, Seeds: []string{"y:8300"}})
	if err != nil {
		t.Fatal(err)
	}
	p.Learn(servers("x:8300"), 3)
	all := []string{"x:8300", "y:8300"}
	for i := range 3 * maxServers {
		all = append(all, fmt.Sprintf("a%d:8300", i))
	}
	p.Learn(servers(all...), 300)
	got := p.Servers()
	if len(got) != maxServers || !slices.Contains(got, Server{Addr: "x:8300"}) || !slices.Contains(got, Server{Addr: "y:8300"}) {
		t.Errorf("%d servers: %v", len(got), got)
	}
	if !slices.IsSortedFunc(got, func(a, b Server) int { return strings.Compare(a.Addr, b.Addr) }) {
		t.Errorf("in no order: %v", got)
	}
}

// TestLeaderlessServerIsLeft: a server that knows no leader for long is not kept.
func TestLeaderlessServerIsLeft(t *testing.T) {
	f := newFarm(t)
	lost, good := newFake(1), newFake(1)
	lost.setFail(catalog.ErrNoLeader)
	f.serve("lost:1", lost)
	var chosen atomic.Bool
	p, err := NewPool(PoolConfig{Seeds: []string{"lost:1", "good:1"}, Dial: func(ctx context.Context, addr string) (net.Conn, error) {
		if addr == "good:1" && !chosen.Load() {
			return nil, errors.New("not yet")
		}
		c, err := f.dial(ctx, addr)
		chosen.Store(true) // the lost one was first
		return c, err
	}})
	if err != nil {
		t.Fatal(err)
	}
	r, err := New(Config{Pool: p, HoldTimeout: 20 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- r.Run(ctx) }()
	f.serve("good:1", good)
	defer func() { cancel(); <-ended }()
	if _, err := r.Read(t.Context(), &wire.ReadRequest{Query: dbQuery}); err != nil {
		t.Errorf("%v, at %q", err, r.Server())
	}
}
