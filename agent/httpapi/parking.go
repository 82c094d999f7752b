package httpapi

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/http"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"
)

// parking holds the clients whose blocked queries wait. net/http keeps two
// goroutines and three buffers for each request under way; a parked client costs
// its connection and one small goroutine that notices when it leaves. All who ask
// the same question are one crowd: one call waits for the answer, which is put into
// bytes once and written to each by one system call. Then the connection goes back
// to net/http, when the client sends its next request.
//
// It is the listener by which those connections come back.
type parking struct {
	handler *handler
	ctx     context.Context // of every request of the server
	addr    net.Addr
	back    chan net.Conn
	done    chan struct{}
	stop    func()
	// first lets a delivery pass before the next requests of those it woke: the
	// last to be told would otherwise wait for the first to ask again.
	first sync.RWMutex

	mu      sync.Mutex
	closed  bool
	crowds  map[crowdKey]*crowd
	clients map[*parked]struct{}
	present sync.WaitGroup // clients and crowds
}

// crowdKey is all that an answer depends on.
type crowdKey struct {
	path, query, token string
	gzip               bool
}

// crowd is those who wait for one answer.
type crowd struct {
	key     crowdKey
	request *http.Request
	route   *Route
	tail    string
	cancel  context.CancelFunc
	members map[*parked]struct{} // guarded by parking.mu
}

// crowdWait bounds one wait of a crowd, which goes on as long as somebody is in it.
const crowdWait = 5 * time.Minute

type parkingKey struct{}

func newParking(ctx context.Context, h *handler, addr net.Addr) *parking {
	l := &parking{
		handler: h, ctx: ctx, addr: addr, back: make(chan net.Conn), done: make(chan struct{}),
		crowds: map[crowdKey]*crowd{}, clients: map[*parked]struct{}{},
	}
	l.stop = sync.OnceFunc(func() { close(l.done) })
	return l
}

// Accept implements net.Listener.
func (l *parking) Accept() (net.Conn, error) {
	select {
	case c := <-l.back:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (l *parking) Close() error {
	l.stop()
	return nil
}

// Addr implements net.Listener.
func (l *parking) Addr() net.Addr { return l.addr }

// shut closes the connections that wait for nothing, and returns when the others
// were answered, or cut off at the end of ctx. The context of the requests has
// ended, so that every crowd is being told.
func (l *parking) shut(ctx context.Context) {
	l.stop()
	l.mu.Lock()
	l.closed = true
	clients := make([]*parked, 0, len(l.clients))
	for p := range l.clients {
		clients = append(clients, p)
	}
	l.mu.Unlock()
	for _, p := range clients {
		p.closeIdle()
	}
	left := make(chan struct{})
	go func() {
		l.present.Wait()
		close(left)
	}()
	select {
	case <-left:
		return
	case <-ctx.Done():
	}
	for _, p := range clients {
		_ = p.conn.Close() // ends its writes too; the client is told by that
	}
	<-left
}

// parkingOf gives where the client of a request may wait, nil where it cannot:
// connections whose bytes are not ours to write, and requests with more to come.
// Distances change while a crowd waits, so those who sort by them wait alone.
func parkingOf(c *call) *parking {
	l, _ := c.r.Context().Value(parkingKey{}).(*parking)
	r := c.r
	if l == nil || r.ProtoMajor != 1 || r.ProtoMinor < 1 || r.Close || r.TLS != nil ||
		r.Method != http.MethodGet || !strings.Contains(r.URL.RawQuery, "index=") || r.ContentLength != 0 || c.route.stream || r.URL.Query().Has("near") {
		return nil
	}
	return l
}

// park takes the client of c out of the hands of net/http. It reports false when
// that is not possible, and then nothing has happened.
func (l *parking) park(c *call, begin time.Time) bool {
	conn, buf, err := http.NewResponseController(c.w).Hijack()
	if err != nil {
		return false
	}
	ahead, _ := buf.Reader.Peek(buf.Reader.Buffered()) // they are there
	p := &parked{lot: l, conn: withAhead(conn, bytes.Clone(ahead)), raw: rawOf(conn), begin: begin, route: c.route.Path}
	if _, more := p.conn.(*readAhead); more {
		p.heard = heardMore
	}
	if l.handler.debugging() {
		p.request = c.r.Method + " " + loggable(c.r.URL)
	}
	if p.raw == nil || !l.join(c, p) {
		p.refuse()
	}
	return true
}

// join puts p into its crowd, which begins to wait if p is the first.
func (l *parking) join(c *call, p *parked) bool {
	query := c.query
	query.Del("wait")
	key := crowdKey{c.r.URL.Path, query.Encode(), c.token, acceptsGzip(c.r.Header.Get("Accept-Encoding"))}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return false
	}
	cr := l.crowds[key]
	if cr == nil {
		ctx, cancel := context.WithCancel(l.ctx)
		cr = &crowd{key: key, route: c.route, tail: c.tail, cancel: cancel, members: map[*parked]struct{}{}}
		cr.request = c.r.WithContext(ctx)
		cr.request.Body = http.NoBody
		l.crowds[key] = cr
		l.present.Go(func() { l.run(ctx, cr) })
	}
	p.crowd = cr
	cr.members[p] = struct{}{}
	l.clients[p] = struct{}{}
	l.present.Add(1)
	l.handler.metrics.waiting.Inc()
	p.timer = time.AfterFunc(c.opts.wait, p.expire)
	if p.heard == heardNothing {
		go p.listen()
	}
	return true
}

// run waits for what cr waits for, and tells its members.
func (l *parking) run(ctx context.Context, cr *crowd) {
	defer cr.cancel()
	for {
		begin := time.Now()
		a := l.handler.answerAgain(cr.request, cr, together)
		l.mu.Lock()
		if time.Since(begin) >= crowdWait && ctx.Err() == nil {
			l.mu.Unlock()
			continue // nothing new: each member has a clock of its own
		}
		if l.crowds[cr.key] == cr {
			delete(l.crowds, cr.key)
		}
		members := make([]*parked, 0, len(cr.members))
		for p := range cr.members {
			members = append(members, p)
		}
		clear(cr.members)
		l.mu.Unlock()
		l.deliver(members, a)
		return
	}
}

// deliver answers members, on as many processors as there are. Those whose
// connection does not take the answer at once hold nobody up.
func (l *parking) deliver(members []*parked, a *page) {
	l.first.Lock() // never for long: no write waits
	defer l.first.Unlock()
	parts := min(runtime.GOMAXPROCS(0), 1+len(members)/64)
	var parting sync.WaitGroup
	for i := range parts {
		part := members[i*len(members)/parts : (i+1)*len(members)/parts]
		parting.Go(func() {
			for _, p := range part {
				p.answer(a)
			}
		})
	}
	parting.Wait()
}

// leave takes p out of its crowd; a crowd that nobody is in ends.
func (l *parking) leave(p *parked) {
	l.mu.Lock()
	defer l.mu.Unlock()
	cr := p.crowd
	delete(cr.members, p)
	if len(cr.members) == 0 && l.crowds[cr.key] == cr {
		delete(l.crowds, cr.key)
		cr.cancel()
	}
}

// forget ends the stay of p.
func (l *parking) forget(p *parked) {
	l.mu.Lock()
	delete(l.clients, p)
	l.mu.Unlock()
	l.present.Done()
}

// takeBack gives a connection to net/http, which reads the next request from it.
func (l *parking) takeBack(c net.Conn) {
	l.first.RLock()
	l.first.RUnlock() //nolint:staticcheck // to wait is all that is wanted
	select {
	case l.back <- c:
	case <-l.done:
		_ = c.Close() // it is between two requests
	}
}

// page is an answer as it goes over the wire.
type page struct {
	header http.Header
	status int
	body   bytes.Buffer
	wire   []byte
	last   bool // the connection ends with it
}

// Header implements http.ResponseWriter.
func (a *page) Header() http.Header { return a.header }

// WriteHeader implements http.ResponseWriter.
func (a *page) WriteHeader(status int) {
	if a.status == 0 {
		a.status = status
	}
}

// Write implements http.ResponseWriter.
func (a *page) Write(b []byte) (int, error) {
	a.WriteHeader(http.StatusOK)
	return a.body.Write(b)
}

// finish makes the bytes of the answer.
func (a *page) finish() {
	a.WriteHeader(http.StatusOK)
	a.header.Set("Content-Length", strconv.Itoa(a.body.Len()))
	a.header.Set("Date", time.Now().UTC().Format(http.TimeFormat))
	if a.last {
		a.header.Set("Connection", "close")
	}
	b := bytes.NewBuffer(make([]byte, 0, a.body.Len()+1024))
	fmt.Fprintf(b, "HTTP/1.1 %d %s\r\n", a.status, http.StatusText(a.status))
	_ = a.header.Write(b) // to memory
	b.WriteString("\r\n")
	b.Write(a.body.Bytes())
	a.wire, a.body = b.Bytes(), bytes.Buffer{}
}
