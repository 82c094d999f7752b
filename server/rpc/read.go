package rpc

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/catalog/wire"
)

const defaultWait = 5 * time.Minute

// Read implements wire.Servers.
func (h *Handler) Read(ctx context.Context, req *wire.ReadRequest) (_ *wire.ReadReply, err error) {
	defer h.metrics.count("Read", &err)
	if err := req.Query.Validate(); err != nil {
		return nil, err
	}
	if err := h.authorize(req.Token, needsOfQuery(req.Query)...); err != nil {
		return nil, err
	}
	switch req.Consistency {
	case wire.Stale:
	case wire.Default, wire.Consistent:
		at, err := h.leader(ctx)
		switch {
		case err != nil:
			return nil, err
		case at == nil:
			_, err = h.readable(ctx)
		case h.cfg.LeaderIndex == nil:
			return at.Read(ctx, req)
		default:
			err = h.follow(ctx)
		}
		if err != nil {
			return nil, err
		}
	default:
		return nil, catalog.Invalidf("read %s: consistency %q is not known", req.Query, req.Consistency)
	}
	v, err := h.newer(ctx, req)
	if err != nil {
		return nil, err
	}
	return &wire.ReadReply{View: v, Meta: h.meta()}, nil
}

// follow returns once the store of this server, which does not lead, shows every
// write that was acknowledged before.
func (h *Handler) follow(ctx context.Context) error {
	index, err := h.cfg.LeaderIndex(ctx)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, followWait, errBehind)
	defer cancel()
	return h.cfg.Store.WaitIndex(ctx, index)
}

// followWait is how long a read waits for a server that is behind its leader, or that
// was removed and will never have what is asked for.
const followWait = 10 * time.Second

var errBehind = fmt.Errorf("%w: this server is behind the leader; ask another", catalog.ErrUnavailable)

// newer waits for a view newer than the request's, and gives the one there is when
// the wait is over.
func (h *Handler) newer(ctx context.Context, req *wire.ReadRequest) (*catalog.View, error) {
	v, err := h.cfg.Store.Read(req.Query)
	if err != nil || req.MinIndex == 0 || v.Index > req.MinIndex {
		return v, err
	}
	done, err := h.wait()
	if err != nil {
		return nil, err
	}
	defer done()
	wait := req.MaxWait
	if wait <= 0 {
		wait = defaultWait
	}
	waiting, cancel := context.WithTimeout(ctx, min(wait, h.cfg.Limits.MaxWait))
	defer cancel()
	next, _, err := h.cfg.Store.Watch(req.Query).Next(waiting, req.MinIndex)
	switch {
	case err == nil:
		return next, nil
	case ctx.Err() != nil:
		return nil, context.Cause(ctx)
	case waiting.Err() != nil, errors.Is(err, catalog.ErrStale): // time is up, or a backup was restored
		return h.cfg.Store.Read(req.Query)
	default:
		return nil, err
	}
}

// Watch implements wire.Servers. It answers from the state of this server,
// whoever leads; Meta says how good that is.
func (h *Handler) Watch(ctx context.Context, req *wire.WatchRequest, send func(*wire.WatchEvent) error) (err error) {
	defer h.metrics.count("Watch", &err)
	if err := req.Query.Validate(); err != nil {
		return err
	}
	if err := h.authorize(req.Token, needsOfQuery(req.Query)...); err != nil {
		return err
	}
	done, err := h.wait()
	if err != nil {
		return err
	}
	defer done()
	if h.cfg.CaughtUp != nil {
		if err := h.cfg.CaughtUp(ctx); err != nil {
			return err
		}
	}
	s := &stream{h: h, query: req.Query, send: send, epoch: h.cfg.Store.Epoch()}
	if req.Epoch == s.epoch {
		s.after = req.After
	}
	return s.run(ctx)
}

// stream is one watch under way.
type stream struct {
	h     *Handler
	query catalog.Query
	send  func(*wire.WatchEvent) error

	epoch   string
	after   uint64    // index of the view that the reader holds
	current uint64    // what it was last told to know everything up to
	meta    wire.Meta // as it was last told
	spoke   bool
}

func (s *stream) run(ctx context.Context) error {
	for {
		err := s.follow(ctx, s.h.cfg.Store.Watch(s.query))
		if !errors.Is(err, catalog.ErrStale) {
			return err
		}
		// A backup was restored: the indexes that the reader has mean nothing now.
		s.epoch, s.after, s.current = s.h.cfg.Store.Epoch(), 0, 0
	}
}

// follow sends views and, in between, word that nothing changed. It ends with an
// error always.
func (s *stream) follow(ctx context.Context, w catalog.Watch[*catalog.View]) error {
	for {
		if err := s.progress(); err != nil {
			return err
		}
		waiting, cancel := context.WithTimeout(ctx, s.h.cfg.Limits.Progress)
		v, index, err := w.Next(waiting, s.after)
		quiet := waiting.Err() != nil
		cancel()
		switch {
		case err == nil:
			if err := s.sendView(v, index); err != nil {
				return err
			}
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case !quiet:
			return err
		}
	}
}

func (s *stream) sendView(v *catalog.View, index uint64) error {
	s.spoke, s.after, s.current, s.meta = true, index, index, s.h.meta()
	if at, current, epoch, err := s.h.cfg.Store.Current(s.query); err == nil && at == index && epoch == v.Epoch {
		s.current = max(index, current)
	}
	ev := &wire.WatchEvent{View: v, Current: s.current, Epoch: v.Epoch, Meta: s.meta}
	if err := s.send(ev); err != nil {
		return err
	}
	if later := wire.LaterEvent(ev); later != nil {
		return s.send(later)
	}
	return nil
}

// progress tells the reader, when that is news, up to where it knows everything
// and how good that is.
func (s *stream) progress() error {
	view, current, epoch, err := s.h.cfg.Store.Current(s.query)
	if err != nil || epoch != s.epoch || view != s.after {
		return err // there is something to send first
	}
	current = max(current, view) // an empty store is at 0, and views begin at 1
	meta := s.h.meta()
	if s.spoke && current == s.current && meta.KnownLeader == s.meta.KnownLeader && meta.KnownLeader {
		return nil
	}
	s.spoke, s.current, s.meta = true, current, meta
	return s.send(&wire.WatchEvent{Current: current, Epoch: epoch, Meta: meta})
}
