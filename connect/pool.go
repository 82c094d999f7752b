package connect

import (
	"cmp"
	"crypto/sha256"
	"crypto/x509"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/weftmesh/weft/connect/identity"
	"github.com/weftmesh/weft/connect/tunnel"
)

const (
	tendEvery   = 10 * time.Second
	idleTunnel  = 90 * time.Second // without a stream
	quietTunnel = 2 * tendEvery    // without a stream or a byte, after bulk

	// A tunnel is the work of one processor, and its bulk stands in the way of what is
	// short: where one moves so much, later connections get another.
	bulkSample = 50 * time.Millisecond
	bulkRate   = 32 << 20 // bytes a second
	maxPerFar  = 4        // tunnels to an instance, for that reason

	// bulkMemory is for how long connections to an instance are spread over tunnels after
	// it has moved bulk: what begins together shows only later what it will be.
	bulkMemory = 10 * time.Minute
)

// instanceKey is the far end of a tunnel: who it must be, and where.
type instanceKey struct {
	addr string
	id   identity.ServiceID
}

// outboundTunnel is a tunnel to an instance.
type outboundTunnel struct {
	link  tunnel.Link
	key   instanceKey
	cred  *credential // ours, of its handshake
	chain []*x509.Certificate
	since time.Time
	last  atomic.Pointer[ends] // of a stream

	// Guarded by the pool.
	bundle *identity.Bundle // the last one that trusted chain
	moved  uint64           // bytes, when last looked at
	active time.Time        // when they last moved
	empty  time.Time        // when it was last seen with a stream
	seen   uint64           // bytes, when its rate was last asked for
	seenAt time.Time
	bulk   bool // it moved much then
}

// instance is what the pool knows of a far end.
type instance struct {
	tunnels []*outboundTunnel
	dialing []*dialing
	turn    int       // of those who wait for one of dialing
	bulkAt  time.Time // when it last moved bulk
	plain   bool      // it spoke no tunnels when last asked
	noALPN  time.Time // it refused to be asked, and is not until then
}

// askAgain is after how long an instance that knows no protocols is offered some
// again: it may be another program by then, and its refusal was not authenticated.
const askAgain = 10 * time.Minute

// dialing is a handshake under way that others wait for.
type dialing struct {
	done   chan struct{}
	t      *outboundTunnel
	err    error
	beside bool // others stand: its failure fails nobody
}

// tunnels holds those of a proxy, both ways.
type tunnels struct {
	mu        sync.Mutex
	instances map[instanceKey]*instance
	inbound   map[*inboundTunnel]struct{}
	leaves    map[[sha256.Size]byte]int // inbound, by certificate
	closed    bool                      // none any more
	over      func(line, error)         // is told of each that ended, and why
}

func (t *tunnels) init(over func(line, error)) {
	t.over = over
	t.instances = map[instanceKey]*instance{}
	t.inbound = map[*inboundTunnel]struct{}{}
	t.leaves = map[[sha256.Size]byte]int{}
}

func isDone(l tunnel.Link) bool {
	select {
	case <-l.Done():
		return true
	default:
		return false
	}
}

// choice is the tunnel that a new stream should take, nil where there is none.
type choice struct {
	*outboundTunnel
	more bool // all carry bulk: one more is to be made, for those who come later
	wait bool // so many are usual for the instance that this stream should get a new one
	live int  // that could be chosen
}

// ready chooses a tunnel for a new stream of cred: one that carries no bulk, if there is
// one. While an instance is known for bulk it is the emptiest, and there are as many as
// processors can work for; else the fullest, as what shares a tunnel shares its records.
func (t *tunnels) ready(key instanceKey, cred *credential, w *world, now time.Time) choice {
	t.mu.Lock()
	defer t.mu.Unlock()
	in := t.instances[key]
	if in == nil {
		return choice{}
	}
	return in.choose(cred, w, now)
}

func (in *instance) choose(cred *credential, w *world, now time.Time) (c choice) {
	streams := 0
	spread := in.spread(now)
	for _, o := range in.tunnels {
		if o.cred != cred || o.bundle != w.bundle {
			continue
		}
		st := o.link.Status()
		if st.Draining || st.Streams >= st.Limit {
			continue
		}
		c.live++
		bulk := o.busy(st, now)
		if bulk {
			in.bulkAt = now
		}
		best := c.outboundTunnel
		emptier := (spread || bulk) == (st.Streams < streams)
		if best == nil || best.bulk && !bulk || best.bulk == bulk && emptier {
			c.outboundTunnel, streams = o, st.Streams
		}
	}
	if c.outboundTunnel != nil {
		c.wait = spread && streams > 0 && c.live < usualTunnels()
		c.more = c.bulk && !c.wait && c.live < maxPerFar && len(in.dialing) == 0
	}
	return c
}

// take gives a tunnel that stands, or the caller's own task to make one, or one that is
// being made; nothing where the instance speaks no tunnels. Without wait one that stands
// will do.
func (t *tunnels) take(key instanceKey, cred *credential, w *world, now time.Time, wait bool) (found *outboundTunnel, mine, under *dialing) {
	t.mu.Lock()
	defer t.mu.Unlock()
	in := t.instance(key)
	c := in.choose(cred, w, now)
	if c.outboundTunnel != nil && (!c.wait || !wait) {
		return c.outboundTunnel, nil, nil
	}
	usual := 1
	if in.spread(now) {
		usual = usualTunnels()
	}
	switch {
	case in.plain:
		return nil, nil, nil
	case len(in.dialing) == 0, len(in.dialing)+c.live < usual:
		return nil, in.begin(c.outboundTunnel != nil), nil
	}
	in.turn++
	return nil, nil, in.dialing[in.turn%len(in.dialing)]
}

func (in *instance) begin(beside bool) *dialing {
	d := &dialing{done: make(chan struct{}), beside: beside}
	in.dialing = append(in.dialing, d)
	return d
}

// begin is for one more tunnel; nil where one is being made, or none would be.
func (t *tunnels) begin(key instanceKey) *dialing {
	t.mu.Lock()
	defer t.mu.Unlock()
	in := t.instance(key)
	if len(in.dialing) > 0 || in.plain {
		return nil
	}
	return in.begin(true)
}

// made tells those who wait how it went.
func (t *tunnels) made(key instanceKey, d *dialing, o *outboundTunnel, err error) {
	t.mu.Lock()
	in := t.instance(key)
	in.dialing = slices.DeleteFunc(in.dialing, func(o *dialing) bool { return o == d })
	d.t, d.err = o, err
	t.mu.Unlock()
	close(d.done)
}

// serves tells whether the tunnel takes a stream of cred in the world w.
func (t *tunnels) serves(o *outboundTunnel, cred *credential, w *world) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return o.cred == cred && o.bundle == w.bundle && o.open()
}

// open tells whether the tunnel takes another stream.
func (o *outboundTunnel) open() bool {
	st := o.link.Status()
	return !st.Draining && st.Streams < st.Limit
}

// spread tells whether the instance is known for bulk.
func (in *instance) spread(now time.Time) bool {
	return !in.bulkAt.IsZero() && now.Sub(in.bulkAt) < bulkMemory
}

// usualTunnels is how many an instance has that is known for bulk.
func usualTunnels() int { return min(runtime.GOMAXPROCS(0), maxPerFar) }

// busy tells whether the tunnel moves bulk, as of a moment ago. A tunnel without streams
// moves nothing, and many requests are no bulk.
func (o *outboundTunnel) busy(st tunnel.Status, now time.Time) bool {
	switch dur := now.Sub(o.seenAt); {
	case st.Streams == 0:
		o.bulk = false
	case dur < bulkSample:
		return o.bulk
	default:
		o.bulk = st.Grown > 0 && float64(st.Bytes-o.seen) > bulkRate*dur.Seconds()
	}
	o.seen, o.seenAt = st.Bytes, now
	return o.bulk
}

// instance gives what is known of a far end. The caller holds t.mu.
func (t *tunnels) instance(key instanceKey) *instance {
	in := t.instances[key]
	if in == nil {
		in = &instance{}
		t.instances[key] = in
	}
	return in
}

// put adds a tunnel; those of older certificates or trust to the same instance drain.
func (t *tunnels) put(o *outboundTunnel) {
	t.mu.Lock()
	defer t.mu.Unlock()
	o.active, o.empty = o.since, o.since
	in := t.instance(o.key)
	in.plain, in.noALPN = false, time.Time{}
	for _, old := range in.tunnels {
		if old.cred != o.cred || old.bundle != o.bundle {
			old.link.Drain(tunnel.CodeDraining)
		}
	}
	in.tunnels = append(in.tunnels, o)
	if t.closed {
		_ = o.link.Close()
	}
}

// enter takes a place for an inbound tunnel. The limit on connections is for its streams.
func (t *tunnels) enter(i *inboundTunnel) bool {
	leaf := sha256.Sum256(i.chain[0].Raw)
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.leaves[leaf] >= maxTunnelsPerLeaf {
		t.pruneInbound()
	}
	if t.leaves[leaf] >= maxTunnelsPerLeaf {
		return false
	}
	t.leaves[leaf]++
	t.inbound[i] = struct{}{}
	return true
}

func (t *tunnels) leave(i *inboundTunnel) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.forget(i)
}

func (t *tunnels) forget(i *inboundTunnel) {
	if _, ok := t.inbound[i]; !ok {
		return
	}
	delete(t.inbound, i)
	leaf := sha256.Sum256(i.chain[0].Raw)
	if t.leaves[leaf]--; t.leaves[leaf] == 0 {
		delete(t.leaves, leaf)
	}
}

// pruneInbound forgets those that have ended, and tells of streams that nobody judged.
func (t *tunnels) pruneInbound() {
	for i := range t.inbound {
		l := i.link.Load()
		if l == nil {
			continue
		}
		i.tellUnjudged((*l).Status().Unjudged)
		if isDone(*l) {
			t.forget(i)
			t.over(i.line(), (*l).Status().Err)
		}
	}
}

// tend drains what is of no use any more, as of the world w, and forgets what ended:
// tunnels of an old certificate, to instances that are gone, without streams for a
// while, and sooner those that had bulk, as crypto/tls keeps its large buffers.
func (t *tunnels) tend(w *world, cred *credential, now time.Time) {
	listed := map[instanceKey]bool{}
	for _, up := range w.upstreams {
		for i := range up.Instances {
			e := &up.Instances[i]
			listed[instanceKey{e.Addr, up.peer(e)}] = true
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.pruneInbound()
	for key, in := range t.instances {
		in.tunnels = slices.DeleteFunc(in.tunnels, func(o *outboundTunnel) bool {
			done := isDone(o.link)
			if done {
				t.over(line{outbound: true, source: w.service(), destination: key.id.Service, self: w.name, peer: key.id.String(), addr: key.addr}, o.link.Status().Err)
			}
			return done
		})
		for _, o := range in.tunnels {
			if o.busy(o.link.Status(), now) {
				in.bulkAt = now
			}
			if !listed[key] || o.cred != cred || o.idle(now) {
				o.link.Drain(tunnel.CodeDraining)
			}
		}
		if !listed[key] && len(in.tunnels) == 0 && len(in.dialing) == 0 {
			delete(t.instances, key)
		}
	}
}

func (o *outboundTunnel) idle(now time.Time) bool {
	st := o.link.Status()
	if st.Streams > 0 {
		o.empty = now
	}
	if st.Bytes != o.moved {
		o.moved, o.active = st.Bytes, now
	}
	// One with streams is kept: beside it another would stand, and it until they end.
	return now.Sub(o.empty) >= idleTunnel || st.Streams == 0 && st.Bulk && now.Sub(o.active) >= quietTunnel
}

// trust closes the tunnels whose peers the world no longer trusts. Their streams are
// rows and have been judged already. Event loops want the pool meanwhile, so it is not
// held: who comes now looks by itself once its tunnel is listed, in the world of now.
func (t *tunnels) trust(w *world, now time.Time) {
	if w.bundle == nil {
		return // nothing passes, and trust may come back
	}
	type doubtful struct {
		o      *outboundTunnel
		bundle *identity.Bundle
	}
	var outbound []doubtful
	var inbound []*inboundTunnel
	t.mu.Lock()
	for _, in := range t.instances {
		for _, o := range in.tunnels {
			if o.bundle != w.bundle {
				outbound = append(outbound, doubtful{o, o.bundle})
			}
		}
	}
	for i := range t.inbound {
		if i.link.Load() != nil {
			inbound = append(inbound, i)
		}
	}
	t.mu.Unlock()
	verdicts := chainVerdicts{w: w, now: now, known: map[any]error{}}
	for _, d := range outbound { // first: none takes a stream until it is through
		t.judged(d.o, d.bundle, w, verdicts.of(d.o.chain, true))
	}
	for _, i := range inbound {
		if verdicts.of(i.chain, false) != nil {
			_ = (*i.link.Load()).Close()
		}
	}
}

// judged closes the tunnel where w does not trust its peer, which the bundle before did.
func (t *tunnels) judged(o *outboundTunnel, before *identity.Bundle, w *world, err error) {
	if err != nil {
		_ = o.link.Close() // it reports nothing
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if o.bundle == before { // else it was judged meanwhile
		o.bundle = w.bundle
	}
}

// recheck is trust for a tunnel that has just been put: who withdrew trust during its
// handshake, in an older world, did not see it.
func (t *tunnels) recheck(o *outboundTunnel, w *world, now time.Time) error {
	t.mu.Lock()
	before := o.bundle
	t.mu.Unlock()
	if w.bundle == nil || before == w.bundle {
		return nil // as for those that stand
	}
	err := w.trusts(o.chain, true, now)
	t.judged(o, before, w, err)
	return err
}

// drainInbound lets sources go elsewhere.
func (t *tunnels) drainInbound() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for i := range t.inbound {
		if l := i.link.Load(); l != nil {
			(*l).Drain(tunnel.CodeDraining)
		}
	}
}

// drainOutbound ends those that no application is on its way into any more.
func (t *tunnels) drainOutbound() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, in := range t.instances {
		for _, o := range in.tunnels {
			if !o.link.Status().Draining {
				o.link.Drain(tunnel.CodeDraining)
			}
		}
	}
}

// open counts those that have not ended.
func (t *tunnels) open() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.pruneInbound()
	n := len(t.inbound)
	for _, in := range t.instances {
		for _, o := range in.tunnels {
			if !isDone(o.link) {
				n++
			}
		}
	}
	return n
}

// join puts the link of an inbound tunnel where all can see it; false when it came
// too late, and is closed.
func (t *tunnels) join(i *inboundTunnel, l tunnel.Link) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	i.link.Store(&l)
	if t.closed {
		_ = l.Close()
	}
	return !t.closed
}

// close cuts all, and those that come.
func (t *tunnels) close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.closed = true
	for i := range t.inbound {
		if l := i.link.Load(); l != nil {
			_ = (*l).Close()
		}
	}
	for _, in := range t.instances {
		for _, o := range in.tunnels {
			_ = o.link.Close()
		}
	}
}

// status lists those that have not ended, sorted.
func (t *tunnels) status() []TunnelStatus {
	t.mu.Lock()
	defer t.mu.Unlock()
	var out []TunnelStatus
	add := func(dir, peer, addr string, since time.Time, l tunnel.Link) {
		if st := l.Status(); !isDone(l) {
			out = append(out, TunnelStatus{dir, peer, addr, st.Streams, st.Draining, since})
		}
	}
	for i := range t.inbound {
		if l := i.link.Load(); l != nil {
			add(direction(false), i.peer, i.addr, i.since, *l)
		}
	}
	for _, in := range t.instances {
		for _, o := range in.tunnels {
			add(direction(true), o.key.id.String(), o.key.addr, o.since, o.link)
		}
	}
	slices.SortFunc(out, func(a, b TunnelStatus) int {
		return cmp.Or(cmp.Compare(a.Direction, b.Direction), cmp.Compare(a.Peer, b.Peer), cmp.Compare(a.Addr, b.Addr), a.Since.Compare(b.Since))
	})
	return out
}
