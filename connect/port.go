package connect

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/weftmesh/weft/connect/identity"
)

// PortConfig configures a Port.
type PortConfig struct {
	Addr    string // host:port
	Logger  *slog.Logger
	Metrics *Metrics
	Guard   *Guard
	// AccessLog says whether refusals get a line.
	AccessLog AccessLog
	// Sockets keeps what the port listens on for the next process; nil: nobody does.
	Sockets Sockets
}

// Port is one inbound address for many proxies of a host. Whom a connection is for is
// read from the server name that its first message asks for, in Consul's form; nothing
// is computed for one that asks for nobody here.
type Port struct {
	cfg     PortConfig
	number  string
	l       *listener
	gate    *gate
	journal journal
	metrics *Metrics
	serving sync.WaitGroup

	mu      sync.Mutex
	proxies map[string][]*Proxy // by server name
	next    int
	takers  map[*Proxy]taker
	news    chan struct{} // closed when a proxy comes

	resting, rested chan struct{}
	rest            sync.Once
}

// taker serves a connection for a proxy.
type taker struct {
	name  string
	serve func(w *wire, place *ticket)
}

// helloTimeout bounds the wait for the first message.
const helloTimeout = 5 * time.Second

// comingTime is for how long proxies are waited for after a port was taken over from
// an earlier process, in which all of them were.
const comingTime = 5 * time.Second

// NewPort checks the configuration. Run binds.
func NewPort(cfg PortConfig) (*Port, error) {
	_, port, err := net.SplitHostPort(cfg.Addr)
	if err != nil {
		return nil, fmt.Errorf("mesh port: %w", err)
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	if cfg.Metrics == nil {
		cfg.Metrics = NewMetrics(nil)
	}
	if cfg.Guard == nil {
		cfg.Guard = NewGuard(GuardConfig{})
	}
	p := &Port{
		cfg: cfg, number: port, metrics: cfg.Metrics, gate: newGate(4*maxHandshakes, maxHandshakesPerSource),
		proxies: map[string][]*Proxy{}, takers: map[*Proxy]taker{}, news: make(chan struct{}),
		resting: make(chan struct{}), rested: make(chan struct{}),
	}
	p.journal.access.Store(&p.cfg.AccessLog)
	p.journal.init(cfg.Logger, time.Now)
	return p, nil
}

// Rest ends the serving before Run ends. When it returns and ctx has not ended, every
// connection that was taken is with the proxy that it is for. Run must have been called.
func (p *Port) Rest(ctx context.Context) {
	p.rest.Do(func() { close(p.resting) })
	select {
	case <-p.rested:
	case <-ctx.Done():
	}
}

// Run serves until ctx ends. Connections that were handed over go on.
func (p *Port) Run(ctx context.Context) error {
	defer close(p.rested)
	l := &listener{spec: spec{addr: p.cfg.Addr}, owner: "the mesh port", log: p.cfg.Logger, admit: p.gate.wait, sockets: p.cfg.Sockets}
	l.serve = func(c net.Conn) {
		w := newWire(c)
		if p.cfg.Guard.tooHigh(w) {
			p.refuse(w, ReasonLimit, errNoDescriptors)
			return
		}
		place := p.gate.enter(w)
		p.serving.Go(func() { p.serve(w, place) })
	}
	p.mu.Lock()
	p.l = l
	p.mu.Unlock()
	l.start(ctx)
	select {
	case <-ctx.Done():
	case <-p.resting:
	}
	l.stop()
	p.serving.Wait()
	return nil
}

// serves tells whether addr is on this port.
func (p *Port) serves(addr string) bool {
	if p == nil {
		return false
	}
	_, port, err := net.SplitHostPort(addr)
	return err == nil && port == p.number
}

// attach hands connections that ask for name to t; another name that the proxy had
// is given up.
func (p *Port) attach(proxy *Proxy, t taker) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.detachLocked(proxy)
	p.takers[proxy] = t
	p.proxies[t.name] = append(p.proxies[t.name], proxy)
	close(p.news)
	p.news = make(chan struct{})
}

func (p *Port) detach(proxy *Proxy) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.detachLocked(proxy)
}

func (p *Port) detachLocked(proxy *Proxy) {
	t, ok := p.takers[proxy]
	if !ok {
		return
	}
	delete(p.takers, proxy)
	var left []*Proxy
	for _, o := range p.proxies[t.name] {
		if o != proxy {
			left = append(left, o)
		}
	}
	if len(left) == 0 {
		delete(p.proxies, t.name)
		return
	}
	p.proxies[t.name] = left
}

// find gives the proxy that a server name asks for: the name of a service, before
// which a subset may stand. Instances of one service take turns.
func (p *Port) find(asked string) (taker, bool) {
	asked = strings.ToLower(asked)
	p.mu.Lock()
	defer p.mu.Unlock()
	list := p.proxies[asked]
	if list == nil {
		_, rest, _ := strings.Cut(asked, ".")
		list = p.proxies[rest]
	}
	if len(list) == 0 {
		return taker{}, false
	}
	p.next++
	return p.takers[list[p.next%len(list)]], true
}

// await is find that waits for a proxy which is about to come, until gone.
func (p *Port) await(asked string, gone <-chan struct{}) (taker, bool) {
	var late <-chan time.Time
	for {
		p.mu.Lock()
		news, l := p.news, p.l
		p.mu.Unlock()
		t, ok := p.find(asked)
		if ok {
			return t, true
		}
		if late == nil {
			left := l.sinceInherited(comingTime)
			if left <= 0 {
				return t, false
			}
			timer := time.NewTimer(left)
			defer timer.Stop()
			late = timer.C
		}
		select {
		case <-news:
		case <-gone:
			return taker{}, false
		case <-late:
			return p.find(asked)
		}
	}
}

func (p *Port) status() *ListenerStatus {
	p.mu.Lock()
	l := p.l
	p.mu.Unlock()
	if l == nil {
		return &ListenerStatus{Addr: p.cfg.Addr, Error: "the mesh port is not served yet"}
	}
	return l.status()
}

// Addr is where the port listens, "" while it does not.
func (p *Port) Addr() string {
	if st := p.status(); st.Listening {
		return st.Addr
	}
	return ""
}

var (
	errNoDescriptors = errors.New("this process has no descriptors left for the mesh: raise LimitNOFILE, or lower max_inbound_connections")
	errNoServerName  = &identity.VerifyError{
		Reason: identity.ReasonWrongService, Detail: "it asks for no server name, by which the services of this port are told apart",
	}
)

func (p *Port) serve(w *wire, place *ticket) {
	if place == nil {
		p.refuse(w, ReasonLimit, fmt.Errorf("%d handshakes of this address are under way", p.gate.perSource))
		return
	}
	asked, err := readServerName(w)
	if err != nil {
		place.leave()
		if w.evicted() {
			err = errMadeRoom
		}
		if !w.spoke.Load() && errors.Is(err, io.EOF) {
			_ = w.Close() // a look whether the port is open
			return
		}
		p.metrics.handshakeFailed(false, identity.ReasonOf(err))
		p.refuse(w, ReasonTLSFailed, err)
		return
	}
	t, ok := p.await(asked, w.gone)
	if !ok {
		place.leave()
		err := error(&identity.VerifyError{
			Reason: identity.ReasonWrongService, Detail: "it asks for " + strconv.Quote(clip(asked)) + ", and no proxy of that service shares this port",
		})
		if w.evicted() {
			err = errMadeRoom
		}
		p.metrics.handshakeFailed(false, identity.ReasonOf(err))
		p.refuse(w, ReasonTLSFailed, err)
		return
	}
	t.serve(w, place)
}

func (p *Port) refuse(w *wire, why Reason, err error) {
	addr := w.RemoteAddr().String()
	w.abort()
	p.metrics.pair(false, "", "").count(why)
	p.journal.post(line{reason: why, addr: addr, err: err})
}

// readServerName reads the first message of a handshake with the parser that will read
// it again, and leaves it to be read again. Nothing is written and nothing computed.
func readServerName(w *wire) (string, error) {
	if err := w.SetDeadline(time.Now().Add(helloTimeout)); err != nil {
		return "", err
	}
	w.most = maxHandshake
	rec := &recorder{Conn: w}
	name, seen := "", errors.New("seen")
	err := tls.Server(rec, &tls.Config{
		MinVersion: tls.VersionTLS12, // the proxy itself decides
		GetConfigForClient: func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
			name = hello.ServerName
			return nil, seen
		},
	}).HandshakeContext(context.Background())
	switch {
	case !errors.Is(err, seen):
		return "", err
	case name == "":
		return "", errNoServerName
	}
	w.early = rec.got
	return name, w.SetDeadline(time.Time{})
}

// recorder keeps what is read and drops what is written.
type recorder struct {
	net.Conn
	got []byte
}

// Read implements net.Conn.
func (r *recorder) Read(p []byte) (int, error) {
	n, err := r.Conn.Read(p)
	r.got = append(r.got, p[:n]...)
	return n, err
}

// Write implements net.Conn.
func (r *recorder) Write(p []byte) (int, error) { return len(p), nil }
