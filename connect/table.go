package connect

import (
	"cmp"
	"crypto/x509"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/connect/tunnel"
)

// ending is how a connection ended.
type ending struct {
	reason Reason
	rule   string // the rule that ended it; empty: the one that had allowed it
	hint   string
	err    error
}

// aborter is a leg of a connection that can be cut at any time, from any
// goroutine, so that its far end sees a reset.
type aborter interface{ abort() }

// ends is who a connection is between. All streams of a tunnel to an instance share one,
// so that a connection that rests costs little more than its counters.
type ends struct {
	svc         *Service
	outbound    bool
	outside     bool // it leaves the mesh: nobody is authenticated
	source      catalog.Name
	destination catalog.Name
	self        string       // SPIFFE ID of this end
	peer        string       // that of the far end
	addr        string       // of the far end
	upstream    catalog.Name // its key
	base        catalog.Name // and that of its destination
	instance    string
	endpoint    *endpoint // outbound: counted as active there
	chain       []*x509.Certificate
	pair        *pairMetrics
}

// row is one connection of the table, from before it is judged to its end.
type row struct {
	*ends
	id      uint64
	started time.Time

	// Bytes from source to destination, and back: of a Conn in and out, else of flow.
	in, out atomic.Int64
	flow    atomic.Pointer[tunnel.Flow]

	mu       sync.Mutex
	countIn  int64 // of the bytes, in the metrics
	countOut int64
	rule     string
	leg      aborter // that of the mesh, where it is a connection of its own
	stream   bool    // one descriptor is its own, that of the application; never changes
	admitted bool
	ended    bool
}

// descriptors is how many the connection has.
func (r *row) descriptors() int64 {
	if r.stream {
		return 1
	}
	return descriptorsOf
}

// carried puts the flow that carries the connection under the row's control, which
// may have ended.
func (r *row) carried(f *tunnel.Flow) {
	r.mu.Lock()
	r.flow.Store(f)
	ended := r.ended
	r.mu.Unlock()
	if ended {
		f.Reset(tunnel.CodeRevoked)
	}
}

// bytes are those from source to destination, and back.
func (r *row) bytes() (in, out int64) {
	f := r.flow.Load()
	switch {
	case f == nil:
		return r.in.Load(), r.out.Load()
	case r.outbound:
		return f.Sent(), f.Received()
	default:
		return f.Received(), f.Sent()
	}
}

// settle brings the metrics up to the bytes carried.
func (r *row) settle() {
	in, out := r.bytes()
	r.mu.Lock()
	defer r.mu.Unlock()
	if in > r.countIn {
		r.pair.bytesIn.Add(float64(in - r.countIn))
		r.countIn = in
	}
	if out > r.countOut {
		r.pair.bytesOut.Add(float64(out - r.countOut))
		r.countOut = out
	}
}

// withdraw takes back a row whose connection did not come about, without a word. It
// reports false when the row has ended. The reservation ends with it.
func (r *row) withdraw() bool {
	r.mu.Lock()
	ended, admitted := r.ended, r.admitted
	r.ended = true
	r.mu.Unlock()
	if ended {
		return false
	}
	r.svc.table.remove(r)
	if admitted {
		r.pair.open.Dec()
	}
	return true
}

// admit marks the row as judged and let through by rule.
func (r *row) admit(rule string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ended {
		return false
	}
	r.rule, r.admitted = rule, true
	r.pair.open.Inc()
	return true
}

// kill cuts both legs and ends the row, unless it has ended.
func (r *row) kill(e ending) { r.finish(e, true) }

// finish ends the row: out of the table, into counters and log. The first call
// decides the reason, all later ones do nothing.
func (r *row) finish(e ending, cut bool) bool {
	r.mu.Lock()
	if r.ended {
		r.mu.Unlock()
		return false
	}
	r.ended = true
	leg := r.leg
	r.leg = nil
	if e.rule == "" {
		e.rule = r.rule
	}
	admitted := r.admitted
	r.mu.Unlock()
	if cut {
		if leg != nil {
			leg.abort()
		}
		if f := r.flow.Load(); f != nil {
			f.Reset(codeOf(e.reason))
		}
	}
	r.svc.ended(r, e, admitted)
	return true
}

func (r *row) status() ConnectionStatus {
	r.mu.Lock()
	rule := r.rule
	r.mu.Unlock()
	in, out := r.bytes()
	return ConnectionStatus{
		ID: r.id, Direction: direction(r.outbound), Source: r.source, Destination: r.destination,
		Peer: r.peer, Remote: r.addr, Instance: r.instance, Rule: rule, Started: r.started,
		BytesIn: in, BytesOut: out,
	}
}

func direction(outbound bool) string {
	if outbound {
		return "outbound"
	}
	return "inbound"
}

// table holds every live connection of a service.
type table struct {
	mu      sync.Mutex
	rows    map[*row]struct{}
	guard   *Guard
	inbound int
	lastID  uint64
	// outbound counts, by upstream, the connections that are open or being opened.
	outbound map[catalog.Name]int
}

// reserve counts a connection that is about to be opened, unless limit (0: none) is
// reached. Its row takes the count over; one that gets no row is released.
func (t *table) reserve(upstream catalog.Name, limit int) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if limit > 0 && t.outbound[upstream] >= limit {
		return false
	}
	if t.outbound == nil {
		t.outbound = map[catalog.Name]int{}
	}
	t.outbound[upstream]++
	return true
}

func (t *table) release(upstream catalog.Name) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.releaseLocked(upstream)
}

func (t *table) releaseLocked(upstream catalog.Name) {
	if t.outbound[upstream]--; t.outbound[upstream] <= 0 {
		delete(t.outbound, upstream)
	}
}

func (t *table) add(r *row) (inbound int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.lastID++
	r.id = t.lastID
	t.rows[r] = struct{}{}
	t.guard.taken.Add(r.descriptors())
	if !r.outbound {
		t.inbound++
	}
	return t.inbound
}

func (t *table) remove(r *row) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if _, ok := t.rows[r]; !ok {
		return
	}
	delete(t.rows, r)
	t.guard.taken.Add(-r.descriptors())
	if r.outbound {
		t.releaseLocked(r.upstream)
	} else {
		t.inbound--
	}
}

// all lists the rows that match, nil for every row. It holds the lock only to copy.
func (t *table) all(match func(*row) bool) []*row {
	t.mu.Lock()
	defer t.mu.Unlock()
	out := make([]*row, 0, len(t.rows))
	for r := range t.rows {
		if match == nil || match(r) {
			out = append(out, r)
		}
	}
	return out
}

func (t *table) inboundCount() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.inbound
}

// peers sums the table by pair, sorted.
func (t *table) peers() []PeerStatus {
	type pair struct {
		outbound bool
		peer     string
	}
	sums := map[pair]*PeerStatus{}
	for _, r := range t.all(nil) {
		k := pair{r.outbound, r.peer}
		p := sums[k]
		if p == nil {
			p = &PeerStatus{Direction: direction(r.outbound), Source: r.source, Destination: r.destination, Peer: r.peer}
			if r.outside {
				p.Destination = outside
			}
			sums[k] = p
		}
		p.Open++
		in, out := r.bytes()
		p.BytesIn += in
		p.BytesOut += out
	}
	out := make([]PeerStatus, 0, len(sums))
	for _, p := range sums {
		out = append(out, *p)
	}
	slices.SortFunc(out, func(a, b PeerStatus) int {
		return cmp.Or(cmp.Compare(a.Direction, b.Direction), cmp.Compare(a.Peer, b.Peer))
	})
	return out
}

// chainVerdicts verifies the chains of live connections against a new bundle, each
// leaf once. That a leaf has expired since its handshake ends nothing.
type chainVerdicts struct {
	w     *world
	now   time.Time
	known map[any]error
}

func (v *chainVerdicts) check(r *row) error {
	if len(r.chain) == 0 {
		return errors.New("the peer's certificate is not known")
	}
	return v.of(r.chain, r.outbound)
}

func (v *chainVerdicts) of(chain []*x509.Certificate, outbound bool) error {
	key := struct {
		leaf     *x509.Certificate
		outbound bool
	}{chain[0], outbound}
	err, ok := v.known[key]
	if !ok {
		err = v.w.trusts(chain, outbound, v.now)
		v.known[key] = err
	}
	return err
}

// trusts verifies the chain of a peer whose handshake is past.
func (w *world) trusts(chain []*x509.Certificate, outbound bool, now time.Time) error {
	if now.After(chain[0].NotAfter) {
		now = chain[0].NotAfter
	}
	verify := w.bundle.VerifyClient
	if outbound {
		verify = w.bundle.VerifyServer
	}
	_, err := verify(chain, now)
	return err
}
