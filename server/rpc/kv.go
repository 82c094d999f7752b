package rpc

import (
	"context"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/catalog/acl"
	"github.com/weftmesh/weft/catalog/wire"
)

// Sessions are the timers of sessions with a TTL.
type Sessions interface {
	// Renew starts the timer of a session anew. It reports false when its time was
	// over and it is being ended.
	Renew(id string) bool
}

// Txn implements wire.Servers.
func (h *Handler) Txn(ctx context.Context, req *wire.TxnRequest) (_ *wire.TxnReply, err error) {
	defer h.metrics.count("Txn", &err)
	cmd := &req.Txn
	if err := cmd.Validate(); err != nil {
		return nil, err
	}
	// What is refused whatever the state is costs no log entry.
	if refused := cmd.Refused(); len(refused) > 0 {
		return &wire.TxnReply{Result: catalog.TxnResult{Errors: refused}}, nil
	}
	if err := h.authorize(req.Token, h.needsOfTxn(cmd)...); err != nil {
		return nil, err
	}
	if err := h.maySpeak(CallerOf(ctx), cmd); err != nil {
		return nil, err
	}
	readOnly := cmd.ReadOnly()
	if !readOnly || req.Consistency != wire.Stale {
		if at, err := h.leader(ctx); err != nil {
			return nil, err
		} else if at != nil {
			return at.Txn(ctx, req)
		}
	}
	if readOnly {
		return h.readTxn(ctx, req)
	}
	index, result, err := h.cfg.Log.Apply(ctx, cmd)
	if err != nil {
		return nil, err
	}
	rep := &wire.TxnReply{Index: index, Meta: h.meta()}
	if r, ok := result.(*catalog.TxnResult); ok {
		rep.Result = *r
	}
	return rep, nil
}

func (h *Handler) readTxn(ctx context.Context, req *wire.TxnRequest) (*wire.TxnReply, error) {
	if req.Consistency != wire.Stale {
		if _, err := h.readable(ctx); err != nil {
			return nil, err
		}
	}
	result, index, err := h.cfg.Store.ReadTxn(&req.Txn)
	if err != nil {
		return nil, err
	}
	return &wire.TxnReply{Result: *result, Index: index, Meta: h.meta()}, nil
}

// RenewSession implements wire.Servers. The timer is set before this server proves
// that it leads: whoever leads later starts all timers later still.
func (h *Handler) RenewSession(ctx context.Context, req *wire.RenewSessionRequest) (_ *wire.RenewSessionReply, err error) {
	defer h.metrics.count("RenewSession", &err)
	q := catalog.Query{Kind: catalog.QuerySession, Name: req.ID}
	if err := q.Validate(); err != nil {
		return nil, err
	}
	if err := h.authorize(req.Token, h.needsOfSessions([]string{req.ID})...); err != nil {
		return nil, err
	}
	if at, err := h.leader(ctx); err != nil {
		return nil, err
	} else if at != nil {
		return at.RenewSession(ctx, req)
	}
	renewed := h.cfg.Sessions.Renew(req.ID)
	if _, err := h.readable(ctx); err != nil {
		return nil, err
	}
	v, err := h.cfg.Store.Read(q)
	if err != nil {
		return nil, err
	}
	if !renewed || len(v.Sessions) == 0 {
		return nil, catalog.NotFoundf("Session id '%s' not found", req.ID)
	}
	return &wire.RenewSessionReply{Session: v.Sessions[0]}, nil
}

// noTimers stands for the timers of a handler without any.
type noTimers struct{}

func (noTimers) Renew(string) bool { return true }

// needsOfKV is needsOf for keys and sessions.
func (h *Handler) needsOfKV(cmd catalog.Command) ([]need, bool) {
	switch c := cmd.(type) {
	case *catalog.SetKey:
		return []need{{acl.Write, acl.Key, c.Pair.Key}}, true
	case *catalog.DeleteKey:
		return []need{{acl.Write, acl.Key, c.Key}}, true
	case *catalog.DeleteKeys:
		return []need{{acl.Write, acl.Key, c.Prefix}}, true
	case *catalog.LockKey:
		return []need{{acl.Write, acl.Key, c.Pair.Key}}, true
	case *catalog.UnlockKey:
		return []need{{acl.Write, acl.Key, c.Pair.Key}}, true
	case *catalog.CreateSession:
		return []need{{acl.Write, acl.Session, c.Session.Node}}, true
	case *catalog.DestroySessions:
		return h.needsOfSessions(c.IDs), true
	default:
		return nil, false
	}
}

// needsOfSessions: who may write the sessions of a node may end and renew them. One
// that does not exist takes nothing.
func (h *Handler) needsOfSessions(ids []string) []need {
	var out []need
	for _, id := range ids {
		v, err := h.cfg.Store.Read(catalog.Query{Kind: catalog.QuerySession, Name: id})
		if err != nil {
			return []need{{acl.Write, acl.Session, ""}}
		}
		for _, s := range v.Sessions {
			out = append(out, need{acl.Write, acl.Session, s.Node})
		}
	}
	return out
}

func (h *Handler) needsOfTxn(cmd *catalog.Txn) []need {
	var out []need
	hosts := make(map[string]*catalog.View)
	for i := range cmd.Ops {
		op := &cmd.Ops[i]
		verb := acl.Write
		if op.ReadOnly() {
			verb = acl.Read
		}
		switch {
		case op.KV != nil:
			out = append(out, need{verb, acl.Key, op.KV.Pair.Key})
		case op.Node != nil:
			out = append(out, need{verb, acl.Node, op.Node.Node.Node})
		case op.Service != nil:
			out = append(out, need{verb, acl.Service, op.Service.Service.Service})
			out = append(out, h.needsOfRow(hosts, verb, op.Service.Node, op.Service.Service.ID, "")...)
		case op.Check != nil:
			out = append(out, h.needsOfRow(hosts, verb, op.Check.Check.Node, op.Check.Check.ServiceID, op.Check.Check.CheckID)...)
		}
	}
	return out
}

// needsOfRow says what it takes to touch the service, or the check, that a node has
// by that ID: the name that the caller gives it may be another. Each node is read
// once, into hosts.
func (h *Handler) needsOfRow(hosts map[string]*catalog.View, verb acl.Verb, node, service, check string) []need {
	whole := []need{{verb, acl.Node, node}}
	v := hosts[node]
	if v == nil {
		var err error
		if v, err = h.cfg.Store.Read(catalog.Query{Kind: catalog.QueryNode, Name: node}); err != nil {
			return whole
		}
		hosts[node] = v
	}
	var out []need
	for _, i := range v.Instances {
		if service != "" && i.Service.ID == service {
			out = append(out, need{verb, acl.Service, i.Service.Service})
		}
		for _, ch := range i.Checks {
			if check != "" && ch.CheckID == check && ch.ServiceID == i.Service.ID {
				out = append(out, need{verb, acl.Service, i.Service.Service})
			}
		}
	}
	if check != "" && len(out) == 0 {
		return whole
	}
	return out
}
