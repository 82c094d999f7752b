package httpapi

import (
	"context"
	"errors"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/catalog/wire"
)

// queries reads from the servers with the consistency and waiting that a request
// asks for, and says in headers what it got.
type queries struct {
	servers    Servers
	datacenter string
	self       string // the name of this node
	dev        bool
	seen       *recently
	answers    *answers
}

func newQueries(cfg Config, m *metrics) *queries {
	return &queries{servers: cfg.Servers, datacenter: cfg.Self.Datacenter, self: cfg.Self.NodeName, dev: cfg.Dev, seen: newRecently(4096), answers: newAnswers(m.shared)}
}

// instances is a query for instances, with their central configuration when the
// request asks for it.
func (c *call) instances(kind catalog.QueryKind, name string) catalog.Query {
	q := catalog.Query{Kind: kind, Name: name}
	if c.query.Has("merge-central-config") {
		q.Sub = catalog.SubMerged
	}
	return q
}

// readTimeout bounds a read beyond the time that it may wait: elections included.
const readTimeout = 20 * time.Second

// read answers a query for a request and sets the headers that tell how good the
// answer is. With index it blocks.
func (q *queries) read(c *call, query catalog.Query) (*catalog.View, error) {
	rep, err := q.get(c, query, c.opts.index)
	if err != nil {
		return nil, err
	}
	c.setMeta(rep)
	if c.opts.cached {
		c.setCached(q.seen.hit(asked{c.route.Path, query}), rep.Meta.LastContact)
	}
	return rep.View, nil
}

// asked is a question as it is remembered: two endpoints do not share their answers.
type asked struct {
	path  string
	query catalog.Query
}

// share lets all who wait for v with the same parameters have one answer.
func (q *queries) share(c *call, v *catalog.View, build func() (any, error)) (any, error) {
	if c.query.Get("near") != "" {
		return build() // distances change while the view stays
	}
	return q.answers.shared(c, v, q.dev || c.query.Has("pretty"), build)
}

// peek answers a query for a request without waiting and without headers.
func (q *queries) peek(c *call, query catalog.Query) (*catalog.View, error) {
	rep, err := q.get(c, query, 0)
	if err != nil {
		return nil, err
	}
	return rep.View, nil
}

func (q *queries) get(c *call, query catalog.Query, after uint64) (*wire.ReadReply, error) {
	req := &wire.ReadRequest{Token: c.token, Query: query, Consistency: c.opts.consistency, MinIndex: after}
	timeout := readTimeout
	if after > 0 {
		req.MaxWait = c.opts.wait
		timeout += max(c.opts.wait, crowdWait)
	}
	anew := c.opts.control.revalidate && after == 0 && req.Consistency == wire.Default
	if c.opts.cached && !anew && req.Consistency == wire.Default {
		req.Consistency = wire.Stale // which falls back to what the agent knows
	}
	wanted := req.Consistency
	if after > 0 && c.stage != alone {
		if c.stage == probing && req.Consistency == wire.Stale {
			return nil, errParks // any answer that is newer will do, and the crowd gets it at once
		}
		c.adapt(req)
	}
	ctx, cancel := context.WithTimeout(c.ctx(), timeout)
	defer cancel()
	if anew {
		return viewed(q.revalidated(ctx, c, req))
	}
	rep, err := q.servers.Read(ctx, req)
	if c.stage == overdue && after > 0 && behind(rep, err, after) {
		// What this host holds is not there yet, or older than what the client has.
		req.Consistency, req.MinIndex, req.MaxWait = wanted, 0, 0
		rep, err = q.servers.Read(ctx, req)
	}
	if err != nil {
		return nil, err
	}
	if after == 0 && c.opts.control.outlives(rep.Meta.LastContact) {
		return viewed(q.revalidated(ctx, c, req))
	}
	if c.opts.maxStale > 0 && req.Consistency == wire.Stale && rep.Meta.LastContact > c.opts.maxStale {
		req.Consistency = wire.Default
		if rep, err = q.servers.Read(ctx, req); err != nil {
			return nil, err
		}
	}
	if rep, err = viewed(rep, nil); err != nil {
		return nil, err
	}
	if c.stage == probing && after > 0 && rep.View.Index <= after {
		return nil, errParks
	}
	return rep, nil
}

// viewed refuses an answer that says nothing.
func viewed(rep *wire.ReadReply, err error) (*wire.ReadReply, error) {
	if err == nil && rep.View == nil {
		return nil, catalog.ErrUnavailable
	}
	return rep, err
}

// behind tells whether an answer is none, or older than the index that was waited with.
func behind(rep *wire.ReadReply, err error, after uint64) bool {
	return errors.Is(err, catalog.ErrUnavailable) || err == nil && (rep.View == nil || rep.View.Index < after)
}

// adapt makes a blocking read fit the stage of its call. One that probes asks for
// the answer of now, with the consistency that the client wants; where that is not
// newer than what the client has, everything newer is from after its call, so that
// the crowd it joins need not ask again.
func (c *call) adapt(req *wire.ReadRequest) {
	switch c.stage {
	case probing:
		req.MinIndex, req.MaxWait = 0, 0
	case together:
		req.Consistency, req.MaxWait = wire.Stale, crowdWait
	case overdue:
		req.Consistency, req.MaxWait = wire.Stale, time.Nanosecond
	case alone:
	}
}

// setMeta sets the headers of a read.
func (c *call) setMeta(rep *wire.ReadReply) {
	h := c.w.Header()
	h.Set("X-Consul-Index", strconv.FormatUint(max(rep.View.Index, 1), 10))
	h.Set("X-Consul-LastContact", strconv.FormatInt(rep.Meta.LastContact.Milliseconds(), 10))
	known, backend := rep.Meta.KnownLeader, "blocking-query"
	if c.route.streaming && (c.opts.index > 0 || c.opts.cached) {
		// Consul answers these from its streaming backend, which knows of no leader.
		known, backend = false, "streaming"
	}
	h.Set("X-Consul-KnownLeader", strconv.FormatBool(known))
	h.Set("X-Consul-Query-Backend", backend)
	if c.route.effective {
		h.Set("X-Consul-Effective-Consistency", c.effectiveConsistency())
	}
}

func (c *call) effectiveConsistency() string {
	switch c.opts.consistency {
	case wire.Stale:
		return "stale"
	case wire.Consistent:
		return "consistent"
	default:
		return "leader"
	}
}

// setIndex sets the index alone, for answers of this agent's own.
func setIndex(h http.Header, index uint64) {
	h.Set("X-Consul-Index", strconv.FormatUint(max(index, 1), 10))
}

// recently remembers which questions were asked, bounded: when full, it forgets all.
type recently struct {
	mu    sync.Mutex
	limit int
	asked map[any]struct{}
}

func newRecently(limit int) *recently {
	return &recently{limit: limit, asked: map[any]struct{}{}}
}

// hit tells whether key, which must be comparable, was asked before.
func (r *recently) hit(key any) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, ok := r.asked[key]; ok {
		return true
	}
	if len(r.asked) >= r.limit {
		clear(r.asked)
	}
	r.asked[key] = struct{}{}
	return false
}
