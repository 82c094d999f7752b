package remote

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/catalog/wire"
)

// Waiting times of a blocking read, as Consul's.
const (
	defaultWait = 5 * time.Minute
	maxWait     = 10 * time.Minute
	// staleTry is how long a stale read waits for the servers when it has an answer at hand.
	staleTry = time.Second
)

// Read answers a query. Without MinIndex it asks the servers; a stale read that
// gets no answer is answered with what this host last knew. With MinIndex it
// waits, up to MaxWait (0: 5 minutes), in the view that all readers of the query
// share, and then gives the answer there is.
//
// Default and consistent reads never give an answer older than the leader's at
// the moment of the call, except a blocking one whose wait ran out.
func (r *Remote) Read(ctx context.Context, req *wire.ReadRequest) (*wire.ReadReply, error) {
	if err := req.Query.Validate(); err != nil {
		return nil, err
	}
	key := readKey{viewKey{req.Query, req.Token}, req.Consistency}
	if req.MinIndex == 0 {
		return r.readNow(ctx, key)
	}
	v, err := r.views.acquire(key.viewKey)
	if errors.Is(err, catalog.ErrTooLarge) {
		return r.readThrough(ctx, req) // more queries than views: let a server wait
	}
	if err != nil {
		return nil, err
	}
	defer r.views.release(v)
	return r.readNewer(ctx, key, v, req.MinIndex, req.MaxWait)
}

// readOnce is one try of a read, for the coalescer.
func (r *Remote) readOnce(ctx context.Context, key readKey) (*wire.ReadReply, error) {
	rep, err := once(ctx, r, "read", r.pace.callTimeout(), func(ctx context.Context) (*wire.ReadReply, error) {
		return r.servers.Read(ctx, &wire.ReadRequest{Token: key.token, Query: key.query, Consistency: key.consistency})
	})
	switch {
	case err == nil:
		rep = r.views.keep(key.viewKey, rep)
	case errors.Is(err, catalog.ErrUnavailable) && ctx.Err() == nil:
		r.views.heard(err)
	}
	return rep, err
}

func (r *Remote) readNow(ctx context.Context, key readKey) (*wire.ReadReply, error) {
	if key.consistency == wire.Stale {
		if rep, ok := r.readHeld(ctx, key); ok {
			return rep, nil
		}
	}
	return retry(ctx, r, "read", retryAny, func(ctx context.Context) (*wire.ReadReply, error) {
		return r.fresh.get(ctx, key)
	})
}

// readHeld answers a stale read from what this host knows, when the servers are
// known to be gone or do not answer soon.
func (r *Remote) readHeld(ctx context.Context, key readKey) (*wire.ReadReply, bool) {
	if _, ok := r.views.last(key.viewKey); !ok {
		return nil, false
	}
	if r.views.isDown() {
		r.fresh.kick(key) // finds out, for the next reader, whether they are back
	} else {
		try, cancel := context.WithTimeout(ctx, staleTry)
		defer cancel()
		if rep, err := r.fresh.get(try, key); err == nil {
			return rep, true
		} else if refused(err) {
			return nil, false
		}
		if try.Err() != nil && ctx.Err() == nil { // the next reader need not wait as long
			r.views.heard(fmt.Errorf("read: no answer in %s: %w", staleTry, catalog.ErrUnavailable))
		}
	}
	held, ok := r.views.last(key.viewKey)
	if ok && held.Meta.KnownLeader {
		// The stream has not noticed yet what the try just found.
		marked := *held
		marked.Meta.KnownLeader = false
		held = &marked
	}
	return held, ok
}

// readThrough lets a server do the waiting.
func (r *Remote) readThrough(ctx context.Context, req *wire.ReadRequest) (*wire.ReadReply, error) {
	through := *req
	through.MaxWait = clampWait(req.MaxWait)
	return once(ctx, r, "read", through.MaxWait+r.pace.callTimeout(), func(ctx context.Context) (*wire.ReadReply, error) {
		return r.servers.Read(ctx, &through)
	})
}

// readNewer waits in v for an answer newer than minIndex.
//
// That answer must not be older than the leader's at the time of the call, and v
// may lag. So a read that may not be stale first asks the servers once, together
// with everybody who asks the same: if their answer is not newer than minIndex,
// whatever v shows above minIndex is from after the call.
func (r *Remote) readNewer(ctx context.Context, key readKey, v *view, minIndex uint64, wait time.Duration) (*wire.ReadReply, error) {
	waiting, cancel := context.WithTimeout(ctx, clampWait(wait))
	defer cancel()
	base := &wire.ReadReply{}
	if key.consistency != wire.Stale {
		rep, err := r.readNow(ctx, key)
		if err != nil || rep.View.Index > minIndex {
			return rep, err
		}
		base = rep
	}
	seen, after := v.latest.Get()
	if base.View == nil {
		base.View = seen
	}
	if base.View == nil && r.views.isDown() { // known from before this start, perhaps
		if held, ok := r.views.last(key.viewKey); ok {
			if base = held; held.View.Index > minIndex {
				return held, nil
			}
		}
	}
	lagging := seen != nil && base.View.Epoch != seen.Epoch // v has yet to learn of the epoch that base is of
	if seen != nil && !lagging && seen.Index > minIndex {
		return v.reply(seen), nil
	}
	for {
		cur, at, err := v.latest.Next(waiting, after)
		switch {
		case err != nil && ctx.Err() != nil:
			return nil, context.Cause(ctx)
		case err != nil && waiting.Err() != nil:
			return v.newest(base)
		case err != nil:
			return nil, err
		}
		after = at
		if base.View == nil {
			base.View = cur
		}
		if cur.Epoch == base.View.Epoch && cur.Index <= minIndex {
			continue
		}
		if lagging && cur.Epoch == seen.Epoch {
			continue
		}
		return v.reply(cur), nil
	}
}

// reply gives cur with how good it is now.
func (v *view) reply(cur *catalog.View) *wire.ReadReply {
	_, meta := v.current()
	return &wire.ReadReply{View: cur, Meta: meta}
}

// newest gives what v holds, or base where v is behind it.
func (v *view) newest(base *wire.ReadReply) (*wire.ReadReply, error) {
	cur, meta := v.current()
	switch {
	case cur != nil && (base.View == nil || cur.Epoch == base.View.Epoch && cur.Index >= base.View.Index):
		return &wire.ReadReply{View: cur, Meta: meta}, nil
	case base.View != nil:
		return base, nil
	default:
		return nil, catalog.ErrUnavailable
	}
}

func clampWait(d time.Duration) time.Duration {
	if d <= 0 {
		return defaultWait
	}
	return min(d, maxWait)
}
