package remote

import (
	"context"
	"net"
	"sync"
	"testing"
	"time"
)

// freezing is a connection that passes nothing on once it is frozen.
type freezing struct {
	net.Conn
	frozen chan struct{}
	ended  chan struct{}
	once   sync.Once
}

func (f *freezing) Read(b []byte) (int, error) {
	n, err := f.Conn.Read(b)
	select {
	case <-f.frozen:
		<-f.ended
		return 0, net.ErrClosed
	default:
		return n, err
	}
}

func (f *freezing) Close() error {
	f.once.Do(func() { close(f.ended) })
	return f.Conn.Close()
}

// TestSilentServer: a server that says nothing any more, while its connection stays,
// is left for another, and what was asked of it is asked there.
func TestSilentServer(t *testing.T) {
	f := newFarm(t)
	a, b := newFake(10), newFake(10)
	f.serve("a:1", a)
	f.serve("b:1", b)
	frozen := make(chan struct{})
	p, err := NewPool(PoolConfig{Dial: func(ctx context.Context, addr string) (net.Conn, error) {
		c, err := f.dial(ctx, addr)
		if err == nil && addr == "a:1" {
			c = &freezing{Conn: c, frozen: frozen, ended: make(chan struct{})}
		}
		return c, err
	}})
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
	close(frozen)
	p.Learn(servers("a:1", "b:1"), 3)
	b.set(viewAt(11, "e1"))
	began := time.Now()
	if v, _ := next(t, w, i); v.Index != 11 || r.Server() != "b:1" {
		t.Fatalf("index %d from %q", v.Index, r.Server())
	}
	t.Logf("left after %s", time.Since(began).Round(time.Millisecond))
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
