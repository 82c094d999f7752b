package sidecar

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/connect"
)

// onePort is a port that one proxy at a time can listen on.
type onePort struct {
	mu     sync.Mutex
	holder *portProxy
}

func (o *onePort) take(p *portProxy) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.holder == nil {
		o.holder = p
	}
	return o.holder == p
}

func (o *onePort) release() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.holder = nil
}

func (o *onePort) heldBy(p *portProxy) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.holder == p
}

// portProxy is a fakeProxy that needs a port of its own, tries again until it has it,
// and drains without it.
type portProxy struct {
	fakeProxy
	port *onePort
}

func (p *portProxy) Run(ctx context.Context, src catalog.Watch[*connect.Snapshot]) error {
	listening, stop := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer stop()
	wg.Go(func() {
		for !p.port.take(p) {
			if !sleep(listening, 100*time.Millisecond) {
				return
			}
		}
		<-listening.Done()
		p.port.release()
	})
	return p.fakeProxy.Run(ctx, src)
}

func (p *portProxy) Status() connect.Status {
	st := p.fakeProxy.Status()
	if st.Inbound != nil {
		st.Inbound.Listening = p.port.heldBy(p)
	}
	return st
}

// successor is the Feed of a process that lives beside this one.
type successor struct{ m *Manager }

func (n successor) Follow(ctx context.Context, id string, _ func(context.Context) Carried, take func(Fed)) {
	for sleep(ctx, 100*time.Millisecond) {
		take(Fed{Listens: n.m.Listens(id)})
	}
}

// TestP31PortOfTheNextProcess: a listener that was made while the others were being
// handed over is bound here, and the next process waits for its port. The old one keeps
// it for as long as the other may yet come by it in another way, and gives it up then;
// what it carries goes on.
func TestP31PortOfTheNextProcess(t *testing.T) {
	for _, c := range []struct {
		name   string
		shared bool // the port was not handed over
		grace  time.Duration
		gives  time.Duration
	}{
		{"waited for", true, time.Minute, unheard},
		{"waited for with little grace", true, 3 * time.Second, 3 * time.Second},
		{"handed over", false, time.Minute, 200 * time.Millisecond},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				const carried = 5 * time.Second
				ports := [2]*onePort{{}, {}}
				if c.shared {
					ports[1] = ports[0]
				}
				var proxies [2]*portProxy
				var rigs [2]*rig
				for i := range rigs {
					rigs[i] = newRig(t, "", func(cfg *Config) {
						cfg.start = func(pc connect.ProxyConfig) (proxy, error) {
							proxies[i] = &portProxy{fakeProxy: fakeProxy{cfg: pc, drain: carried}, port: ports[i]}
							return proxies[i], nil
						}
					})
					rigs[i].setHost(sidecarService())
					rigs[i].views.setRoots("R1")
					rigs[i].views.setIntentions("web")
					time.Sleep(time.Second)
				}
				old, next := rigs[0].m, rigs[1].m
				if next.Listens("web-sidecar-proxy") == c.shared {
					t.Fatalf("the next process listens: %v", !c.shared)
				}
				old.GiveUp()
				done := make(chan struct{})
				go func() { defer close(done); old.Drain(t.Context(), successor{next}, c.grace) }()

				time.Sleep(c.gives - 150*time.Millisecond)
				if !ports[0].heldBy(proxies[0]) {
					t.Error("the old process gave its port up too soon")
				}
				time.Sleep(300 * time.Millisecond)
				if ports[0].heldBy(proxies[0]) || !next.Listens("web-sidecar-proxy") {
					t.Error("the old process holds the port that the next one waits for")
				}
				select {
				case <-done:
					t.Error("what it carried was cut")
				default:
				}
				time.Sleep(carried)
				select {
				case <-done:
				default:
					t.Error("the old process does not end")
				}
				for _, r := range rigs {
					r.stop()
				}
			})
		})
	}
}

// saying is the Feed of a process that says what the test has it say.
type saying chan Fed

func (f saying) Follow(ctx context.Context, _ string, _ func(context.Context) Carried, take func(Fed)) {
	for {
		select {
		case <-ctx.Done():
			return
		case said := <-f:
			take(said)
		}
	}
}

// A connection to the mesh port that says nothing keeps no policy from what is carried
// after a hand-over.
func TestPolicyWaitsForNoStranger(t *testing.T) {
	port := freePort(t)
	addr := fmt.Sprintf("127.0.0.1:%d", port)
	r := newRig(t, "", func(cfg *Config) { cfg.MeshPort, cfg.BindAddr = port, "127.0.0.1" })
	r.setHost(sidecarService())
	r.views.setRoots("R1")
	r.views.setIntentions("web")
	var silent net.Conn
	until(t, "the mesh port to listen", func() (err error) {
		silent, err = net.Dial("tcp", addr)
		return err
	})
	defer silent.Close()
	after, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer after.Close()
	if _, err := after.Write([]byte("no TLS")); err != nil {
		t.Fatal(err)
	}
	_, _ = after.Read(make([]byte, 1)) // refused: the silent one was taken before it
	until(t, "the proxy to run", func() error {
		if !r.m.Listens("web-sidecar-proxy") {
			return errors.New("it does not")
		}
		return nil
	})
	r.m.GiveUp()
	says, drained := make(saying), make(chan struct{})
	go func() { defer close(drained); r.m.Drain(t.Context(), says, time.Minute) }()
	soon := time.After(3 * time.Second) // the port waits for longer
	for range 3 {
		select {
		case says <- Fed{Snapshot: &connect.Snapshot{Service: "web", Index: 1}, Listens: true}:
		case <-soon:
			t.Fatal("what the next process says is not taken")
		}
	}
	_ = silent.Close() // the port rests
	<-drained
	r.stop()
}

// stopHook is a fakeProxy that tells when its end begins.
type stopHook struct {
	fakeProxy
	stopped func()
}

func (p *stopHook) Run(ctx context.Context, src catalog.Watch[*connect.Snapshot]) error {
	defer p.stopped()
	return p.fakeProxy.Run(ctx, src)
}

// At the end of an agent its mesh port listens no longer than the proxies behind it.
func TestMeshPortRestsBeforeItsProxies(t *testing.T) {
	port := freePort(t)
	addr := fmt.Sprintf("127.0.0.1:%d", port)
	dial := func() error {
		c, err := net.Dial("tcp", addr)
		if err == nil {
			c.Close()
		}
		return err
	}
	ended := make(chan error, 1)
	r := newRig(t, "", func(cfg *Config) {
		cfg.MeshPort, cfg.BindAddr = port, "127.0.0.1"
		cfg.start = func(pc connect.ProxyConfig) (proxy, error) {
			return &stopHook{fakeProxy: fakeProxy{cfg: pc}, stopped: func() { ended <- dial() }}, nil
		}
	})
	r.setHost(sidecarService())
	r.views.setRoots("R1")
	r.views.setIntentions("web")
	until(t, "the mesh port to listen", dial)
	until(t, "the proxy to run", func() error {
		if !r.m.Listens("web-sidecar-proxy") {
			return errors.New("it does not")
		}
		return nil
	})
	silent, err := net.Dial("tcp", addr) // has said nothing, and holds up nobody
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	r.stop()
	if err := <-ended; !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("who comes while the proxy ends: %v, want a connection that is refused", err)
	}
}

// restHook is a stopHook that tells when it is to rest, too.
type restHook struct {
	stopHook
	rests func()
}

func (p *restHook) RestUpstreams(context.Context) { p.rests() }

// At the end of an agent a proxy takes nobody any more when the first one stops: who was
// taken may be going there.
func TestUpstreamsRestBeforeAProxyStops(t *testing.T) {
	var rested atomic.Bool
	early := make(chan bool, 1)
	r := newRig(t, "", func(cfg *Config) {
		cfg.start = func(pc connect.ProxyConfig) (proxy, error) {
			return &restHook{
				stopHook: stopHook{fakeProxy: fakeProxy{cfg: pc}, stopped: func() { early <- !rested.Load() }},
				rests:    func() { rested.Store(true) },
			}, nil
		}
	})
	r.setHost(sidecarService())
	r.views.setRoots("R1")
	r.views.setIntentions("web")
	until(t, "the proxy to run", func() error {
		if !r.m.Listens("web-sidecar-proxy") {
			return errors.New("it does not")
		}
		return nil
	})
	r.stop()
	if <-early {
		t.Error("it stopped while it took connections")
	}
}

// Nobody hears that a proxy is gone before the host has said what is registered: what a
// drainer carries would be cut.
func TestNoProxyIsGoneBeforeTheHostIsSeen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, "")
		late, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		early := r.m.Snapshot("web-sidecar-proxy")
		if _, _, err := early.Next(late, 0); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("before anything is known: %v", err)
		}
		none := r.m.Snapshot("none")
		r.setHost(sidecarService())
		r.views.setRoots("R1")
		r.views.setIntentions("web")
		if snap, _, err := early.Next(t.Context(), 0); err != nil || snap.Service != "web" {
			t.Errorf("what the proxy enforces: %+v, %v", snap, err)
		}
		for _, w := range []catalog.Watch[*connect.Snapshot]{none, r.m.Snapshot("none")} {
			if _, _, err := w.Next(t.Context(), 0); !errors.Is(err, catalog.ErrNotFound) {
				t.Errorf("a proxy that is not registered: %v", err)
			}
		}
		r.stop()
	})
}
