package remote

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/test/bufconn"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/catalog/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var dbQuery = catalog.Query{Kind: catalog.QueryConnect, Name: "db"}

// fakeServers answers from one Latest view and counts what it is asked.
type fakeServers struct {
	wire.Servers // calls that no test makes

	mu      sync.Mutex
	view    *catalog.View
	changed chan struct{}
	fail    error // of every call
	kill    chan struct{}

	reads, streams, applies, syncs, signs atomic.Int64
	readHook                              func()
	lastWatch                             wire.WatchRequest
}

func newFake(index uint64) *fakeServers {
	f := &fakeServers{changed: make(chan struct{}), kill: make(chan struct{})}
	f.view = viewAt(index, "e1")
	return f
}

func viewAt(index uint64, epoch string) *catalog.View {
	return &catalog.View{
		Query: dbQuery, Index: index, Epoch: epoch,
		Nodes: []*catalog.Node{{Node: fmt.Sprintf("n%d", index)}},
	}
}

func (f *fakeServers) set(v *catalog.View) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.view = v
	close(f.changed)
	f.changed = make(chan struct{})
}

func (f *fakeServers) setFail(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fail = err
}

// breakStreams ends every open stream.
func (f *fakeServers) breakStreams() {
	f.mu.Lock()
	defer f.mu.Unlock()
	close(f.kill)
	f.kill = make(chan struct{})
}

func (f *fakeServers) Read(_ context.Context, _ *wire.ReadRequest) (*wire.ReadReply, error) {
	f.reads.Add(1)
	f.mu.Lock()
	v, err, hook := f.view, f.fail, f.readHook
	f.mu.Unlock()
	if hook != nil {
		hook()
	}
	if err != nil {
		return nil, err
	}
	return &wire.ReadReply{View: v, Meta: wire.Meta{KnownLeader: true}}, nil
}

func (f *fakeServers) Watch(ctx context.Context, req *wire.WatchRequest, send func(*wire.WatchEvent) error) error {
	f.streams.Add(1)
	f.mu.Lock()
	f.lastWatch = *req
	f.mu.Unlock()
	after, epoch := req.After, req.Epoch
	for {
		f.mu.Lock()
		v, changed, kill, fail := f.view, f.changed, f.kill, f.fail
		f.mu.Unlock()
		if fail != nil {
			return fail
		}
		ev := &wire.WatchEvent{Current: v.Index, Epoch: v.Epoch, Meta: wire.Meta{KnownLeader: true}}
		if v.Index > after || v.Epoch != epoch {
			ev.View = v
			after, epoch = v.Index, v.Epoch
		}
		if err := send(ev); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-kill:
			return fmt.Errorf("the server stops: %w", catalog.ErrUnavailable)
		case <-changed:
		}
	}
}

func (f *fakeServers) Apply(context.Context, *wire.ApplyRequest) (*wire.ApplyReply, error) {
	f.applies.Add(1)
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fail != nil {
		return nil, f.fail
	}
	return &wire.ApplyReply{Index: 7, OK: true}, nil
}

func (f *fakeServers) Sync(_ context.Context, req *wire.SyncRequest) (*wire.SyncReply, error) {
	f.syncs.Add(1)
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fail != nil {
		return nil, f.fail
	}
	return &wire.SyncReply{Index: uint64(len(req.State.Node.Node))}, nil
}

func (f *fakeServers) Sign(context.Context, *wire.SignRequest) (*wire.SignReply, error) {
	f.signs.Add(1)
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fail != nil {
		return nil, f.fail
	}
	return &wire.SignReply{}, nil
}

// inProcess makes a Remote that calls f directly, for tests of time.
func inProcess(t *testing.T, f *fakeServers, change ...func(*Config)) *Remote {
	t.Helper()
	cfg := Config{Dial: func(context.Context) (net.Conn, error) { return nil, errors.New("not dialled") }}
	for _, c := range change {
		c(&cfg)
	}
	cfg, err := cfg.withDefaults()
	if err != nil {
		t.Fatal(err)
	}
	m, err := newMetrics(nil)
	if err != nil {
		t.Fatal(err)
	}
	r := build(cfg, nil, f, m)
	t.Cleanup(func() { _ = r.Close() })
	return r
}

func next(t *testing.T, w catalog.Watch[*catalog.View], after uint64) (*catalog.View, uint64) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	v, i, err := w.Next(ctx, after)
	if err != nil {
		t.Fatalf("next after %d: %v", after, err)
	}
	return v, i
}

// TestOverTheWire runs the real client against a real gRPC server in memory,
// through a restart of that server.
func TestOverTheWire(t *testing.T) {
	f := newFake(10)
	var mu sync.Mutex
	var lis *bufconn.Listener
	serve := func() *grpc.Server {
		l := bufconn.Listen(1 << 16)
		srv := grpc.NewServer()
		wire.Register(srv, f)
		go func() { _ = srv.Serve(l) }()
		mu.Lock()
		lis = l
		mu.Unlock()
		return srv
	}
	srv := serve()
	r, err := New(Config{Dial: func(ctx context.Context) (net.Conn, error) {
		mu.Lock()
		l := lis
		mu.Unlock()
		return l.DialContext(ctx)
	}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Close() }()

	w := r.Watch(dbQuery)
	v, i := next(t, w, 0)
	if v.Index != 10 || i != 10 || v.Nodes[0].Node != "n10" {
		t.Fatalf("got %+v at %d", v, i)
	}
	idx, err := r.Sync(t.Context(), catalog.NodeState{Node: &catalog.Node{Node: "four"}})
	if err != nil || idx != 4 {
		t.Fatalf("sync: %d, %v", idx, err)
	}

	srv.Stop()
	f.set(viewAt(20, "e1"))
	stale, err := r.Read(t.Context(), &wire.ReadRequest{Query: dbQuery, Consistency: wire.Stale})
	if err != nil || stale.View.Index != 10 || stale.Meta.KnownLeader {
		t.Fatalf("stale read with no server: %+v, %v", stale, err)
	}
	srv = serve()
	defer srv.Stop()
	if v, i = next(t, w, i); v.Index != 20 || i != 20 {
		t.Fatalf("after the restart: %d at %d", v.Index, i)
	}
	f.mu.Lock()
	resumed := f.lastWatch
	f.mu.Unlock()
	if resumed.After != 10 || resumed.Epoch != "e1" {
		t.Errorf("the stream was resumed from %d %q, want 10 e1", resumed.After, resumed.Epoch)
	}
	rep, err := r.Read(t.Context(), &wire.ReadRequest{Query: dbQuery})
	if err != nil || rep.View.Index != 20 || !rep.Meta.KnownLeader {
		t.Fatalf("default read: %+v, %v", rep, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := r.Run(ctx); err != nil {
		t.Errorf("run: %v", err)
	}
	if _, _, err := w.Next(t.Context(), 0); !errors.Is(err, catalog.ErrUnavailable) {
		t.Errorf("next after the end: %v", err)
	}
}

func TestViewIsSharedAndLingers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(5)
		r := inProcess(t, f)
		var wg sync.WaitGroup
		for range 1000 {
			wg.Go(func() { next(t, r.Watch(dbQuery), 5) })
		}
		synctest.Wait()
		f.set(viewAt(6, "e1"))
		wg.Wait()
		if n := f.streams.Load(); n != 1 {
			t.Fatalf("%d streams for a thousand watchers, want 1", n)
		}
		time.Sleep(29 * time.Second)
		next(t, r.Watch(dbQuery), 0)
		if n := f.streams.Load(); n != 1 {
			t.Fatalf("the view did not linger: %d streams", n)
		}
		time.Sleep(31 * time.Second)
		synctest.Wait()
		if n := len(r.views.open); n != 0 {
			t.Fatalf("%d views open after the linger", n)
		}
		_ = r.Close()
	})
}

func TestViewOutlivesTheServers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(5)
		r := inProcess(t, f)
		next(t, r.Watch(dbQuery), 0)
		f.setFail(catalog.ErrUnavailable)
		f.breakStreams()
		time.Sleep(24 * time.Hour)
		rep, err := r.Read(t.Context(), &wire.ReadRequest{Query: dbQuery, Consistency: wire.Stale})
		if err != nil {
			t.Fatal(err)
		}
		if rep.View.Index != 5 || rep.Meta.KnownLeader || rep.Meta.LastContact < 23*time.Hour {
			t.Errorf("got index %d, meta %+v", rep.View.Index, rep.Meta)
		}
		start := time.Now()
		if _, err = r.Read(t.Context(), &wire.ReadRequest{Query: dbQuery}); !errors.Is(err, catalog.ErrUnavailable) {
			t.Errorf("default read with no server: %v", err)
		}
		if held := time.Since(start); held < 5*time.Second || held > 8*time.Second {
			t.Errorf("the read was held for %s, want about 7 s", held)
		}
		f.setFail(nil)
		f.set(viewAt(6, "e1"))
		if v, _ := next(t, r.Watch(dbQuery), 5); v.Index != 6 {
			t.Errorf("after the servers came back: %d", v.Index)
		}
		time.Sleep(time.Minute)
		_ = r.Close()
	})
}

// TestStaleReadLearnsThatServersAreBack: nobody watches, so only reads can tell.
func TestStaleReadLearnsThatServersAreBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(5)
		r := inProcess(t, f)
		stale := &wire.ReadRequest{Query: dbQuery, Consistency: wire.Stale}
		for _, step := range []struct {
			fail error
			set  uint64
			want []uint64 // one read each
		}{{nil, 5, []uint64{5}}, {catalog.ErrUnavailable, 6, []uint64{5, 5}}, {nil, 7, []uint64{5, 7}}} {
			f.setFail(step.fail)
			f.set(viewAt(step.set, "e1"))
			for _, want := range step.want {
				rep, err := r.Read(t.Context(), stale)
				if err != nil || rep.View.Index != want {
					t.Fatalf("got %+v, %v, want %d", rep, err, want)
				}
				synctest.Wait()
			}
		}
		_ = r.Close()
	})
}

func TestIndexNeverFalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(100)
		r := inProcess(t, f)
		w := r.Watch(dbQuery)
		_, i := next(t, w, 0)

		f.set(viewAt(90, "e1")) // a server that lags
		f.breakStreams()
		synctest.Wait()
		if v, at := next(t, w, 0); v.Index != 100 || at != i {
			t.Fatalf("fell back to %d", v.Index)
		}
		f.set(viewAt(40, "e2")) // an old backup was restored
		f.breakStreams()
		v, at := next(t, w, i)
		if v.Index != 40 || at <= i {
			t.Fatalf("after the restore: index %d at %d, want 40 above %d", v.Index, at, i)
		}
		// Dropped and opened again, the view goes on counting.
		time.Sleep(time.Minute)
		synctest.Wait()
		f.set(viewAt(41, "e2"))
		if v, again := next(t, w, at); v.Index != 41 || again <= at {
			t.Fatalf("reopened: index %d at %d, want 41 above %d", v.Index, again, at)
		}
		_ = r.Close()
	})
}

func TestBlockingRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(10)
		r := inProcess(t, f)
		read := func(min uint64, wait time.Duration) (*wire.ReadReply, error) {
			return r.Read(t.Context(), &wire.ReadRequest{Query: dbQuery, MinIndex: min, MaxWait: wait})
		}
		start := time.Now()
		rep, err := read(10, 30*time.Second)
		if err != nil || rep.View.Index != 10 || time.Since(start) != 30*time.Second {
			t.Fatalf("timed out: %+v, %v after %s", rep, err, time.Since(start))
		}
		if rep, err = read(3, time.Minute); err != nil || rep.View.Index != 10 {
			t.Fatalf("behind: %+v, %v", rep, err)
		}
		var wg sync.WaitGroup
		for range 3000 {
			wg.Go(func() {
				if rep, err := read(10, 5*time.Minute); err != nil || rep.View.Index != 11 {
					t.Errorf("got %+v, %v", rep, err)
				}
			})
		}
		synctest.Wait()
		f.set(viewAt(11, "e1"))
		wg.Wait()
		if n := f.streams.Load(); n != 1 {
			t.Errorf("%d streams for three thousand blocked reads, want 1", n)
		}
		// A restored backup ends the wait, whatever the indexes say.
		wg.Go(func() {
			if rep, err := read(11, time.Hour); err != nil || rep.View.Epoch != "e2" || rep.View.Index != 3 {
				t.Errorf("after the restore: %+v, %v", rep, err)
			}
		})
		synctest.Wait()
		f.set(viewAt(3, "e2"))
		wg.Wait()
		_ = r.Close()
	})
}

// TestLaggingViewDoesNotAnswer: the stream is stuck at 10 while the leader is at
// 12; a reader that asks for more than 5 must see 12.
func TestLaggingViewDoesNotAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(10)
		r := inProcess(t, f)
		next(t, r.Watch(dbQuery), 0)
		f.mu.Lock()
		f.view = viewAt(12, "e1") // no stream is told
		f.mu.Unlock()
		rep, err := r.Read(t.Context(), &wire.ReadRequest{Query: dbQuery, MinIndex: 5})
		if err != nil || rep.View.Index != 12 {
			t.Fatalf("default: %+v, %v", rep, err)
		}
		rep, err = r.Read(t.Context(), &wire.ReadRequest{Query: dbQuery, MinIndex: 5, Consistency: wire.Stale})
		if err != nil || rep.View.Index != 10 {
			t.Fatalf("stale: %+v, %v", rep, err)
		}
		_ = r.Close()
	})
}

func TestReadsJoinOnlyWhatBeginsLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(1)
		gate := make(chan struct{})
		f.readHook = func() { <-gate }
		r := inProcess(t, f)
		var got [2]atomic.Uint64
		var wg sync.WaitGroup
		read := func(i int) {
			rep, err := r.Read(t.Context(), &wire.ReadRequest{Query: dbQuery})
			if err != nil {
				t.Error(err)
				return
			}
			got[i].Store(rep.View.Index)
		}
		wg.Go(func() { read(0) })
		synctest.Wait() // it has looked at the store, and not answered yet
		f.mu.Lock()
		f.view = viewAt(2, "e1")
		f.mu.Unlock()
		for range 50 {
			wg.Go(func() { read(1) })
		}
		synctest.Wait()
		close(gate)
		wg.Wait()
		if a, b := got[0].Load(), got[1].Load(); a != 1 || b != 2 {
			t.Errorf("got %d and %d: a read joined one that began before it", a, b)
		}
		if n := f.reads.Load(); n != 2 {
			t.Errorf("%d reads, want 2", n)
		}
		_ = r.Close()
	})
}

func TestRetries(t *testing.T) {
	put := func(r *Remote) error {
		_, err := r.Apply(context.Background(), &wire.ApplyRequest{})
		return err
	}
	sync := func(r *Remote) error {
		_, err := r.Sync(context.Background(), catalog.NodeState{Node: &catalog.Node{Node: "n"}})
		return err
	}
	sign := func(r *Remote) error {
		_, err := r.Sign(context.Background(), &wire.SignRequest{})
		return err
	}
	for name, tc := range map[string]struct {
		call  func(*Remote) error
		fail  error
		again bool
	}{
		"a write without leader":              {put, catalog.ErrNoLeader, true},
		"a write of unknown outcome":          {put, catalog.ErrUnavailable, false},
		"a refused write":                     {put, catalog.ErrConflict, false},
		"an idempotent call":                  {sign, catalog.ErrUnavailable, true},
		"an idempotent call, no leader":       {sign, catalog.ErrNoLeader, true},
		"a statement, soon out of date":       {sync, catalog.ErrUnavailable, false},
		"an idempotent statement, if refused": {sync, catalog.ErrInvalid, false},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFake(1)
				r := inProcess(t, f)
				f.setFail(fmt.Errorf("once: %w", tc.fail))
				timer := time.AfterFunc(2*time.Second, func() { f.setFail(nil) })
				defer timer.Stop()
				err := tc.call(r)
				tries := f.applies.Load() + f.syncs.Load() + f.signs.Load()
				if tc.again && (err != nil || tries < 2) {
					t.Errorf("%d tries, %v: want it tried until it works", tries, err)
				}
				if !tc.again && (!errors.Is(err, tc.fail) || tries != 1) {
					t.Errorf("%d tries, %v: want one and its error", tries, err)
				}
				_ = r.Close()
			})
		})
	}
}

func TestLimitsAndRefusals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(4)
		r := inProcess(t, f, func(c *Config) { c.MaxViews = 2 })
		q := func(name string) catalog.Query { return catalog.Query{Kind: catalog.QueryConnect, Name: name} }
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		for _, n := range []string{"a", "b"} {
			wg.Go(func() { _, _, _ = r.Watch(q(n)).Next(ctx, 99) })
		}
		synctest.Wait()
		if _, _, err := r.Watch(q("c")).Next(t.Context(), 0); !errors.Is(err, catalog.ErrTooLarge) {
			t.Errorf("a third view: %v", err)
		}
		if rep, err := r.Read(t.Context(), &wire.ReadRequest{Query: q("c"), MinIndex: 1}); err != nil || rep.View.Index != 4 {
			t.Errorf("a blocking read beyond the limit: %+v, %v", rep, err)
		}
		cancel()
		wg.Wait()
		next(t, r.Watch(q("c")), 0) // room was made: nobody waits for a or b
		if _, err := r.Read(t.Context(), &wire.ReadRequest{Query: catalog.Query{Kind: "nonsense"}}); !errors.Is(err, catalog.ErrInvalid) {
			t.Errorf("nonsense: %v", err)
		}
		if _, _, err := r.Watch(catalog.Query{Kind: catalog.QueryConnect}).Next(t.Context(), 0); !errors.Is(err, catalog.ErrInvalid) {
			t.Errorf("a watch without a name: %v", err)
		}
		f.setFail(catalog.ErrDenied)
		if _, _, err := r.Watch(q("d")).Next(t.Context(), 0); !errors.Is(err, catalog.ErrDenied) {
			t.Errorf("denied: %v", err)
		}
		f.setFail(nil)
		next(t, r.Watch(q("d")), 0) // asking again asks the servers again
		_ = r.Close()
	})
	if _, err := New(Config{}); err == nil {
		t.Error("a remote without a way to a server was made")
	}
}

// freezable is a connection whose far end can stop without a word.
type freezable struct {
	net.Conn
	frozen atomic.Bool
	closed chan struct{}
	once   sync.Once
}

func (f *freezable) Read(p []byte) (int, error) {
	n, err := f.Conn.Read(p)
	if f.frozen.Load() {
		<-f.closed
		return 0, net.ErrClosed
	}
	return n, err
}

func (f *freezable) Write(p []byte) (int, error) {
	if f.frozen.Load() {
		return len(p), nil // the kernel of a frozen host takes some
	}
	return f.Conn.Write(p)
}

func (f *freezable) Close() error {
	f.once.Do(func() { close(f.closed) })
	return f.Conn.Close()
}

// TestFrozenServerIsNoticed: a view does not stand still because the server that
// fed it froze.
func TestFrozenServerIsNoticed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(5)
		l := &pipes{conns: make(chan net.Conn), closed: make(chan struct{})}
		srv := grpc.NewServer(grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true}))
		wire.Register(srv, f)
		var serving sync.WaitGroup
		serving.Go(func() { _ = srv.Serve(l) })
		var first atomic.Pointer[freezable]
		r, err := New(Config{Dial: func(ctx context.Context) (net.Conn, error) {
			ours, theirs := net.Pipe()
			select {
			case l.conns <- theirs:
			case <-ctx.Done():
				return nil, ctx.Err()
			}
			c := &freezable{Conn: ours, closed: make(chan struct{})}
			first.CompareAndSwap(nil, c)
			return c, nil
		}})
		if err != nil {
			t.Fatal(err)
		}
		w := r.Watch(dbQuery)
		if v, _ := next(t, w, 0); v.Index != 5 {
			t.Fatalf("index %d", v.Index)
		}
		time.Sleep(3 * time.Minute) // quiet, and alive: no reason to drop it
		synctest.Wait()
		if n := f.streams.Load(); n != 1 {
			t.Errorf("%d streams without a reason", n)
		}
		first.Load().frozen.Store(true)
		f.set(viewAt(6, "e1"))
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		began := time.Now()
		if v, _, err := w.Next(ctx, 5); err != nil || v.Index != 6 {
			t.Errorf("the view stands still: %v", err)
		}
		if took := time.Since(began); took > 2*(pingAfter+pingTimeout) {
			t.Errorf("noticed after %s", took)
		}
		if err := r.Close(); err != nil {
			t.Error(err)
		}
		srv.Stop()
		serving.Wait()
	})
}

// pipes is a listener of connections within the test.
type pipes struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func (l *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}
func (l *pipes) Close() error   { l.once.Do(func() { close(l.closed) }); return nil }
func (l *pipes) Addr() net.Addr { return &net.UnixAddr{} }
