package rpc

import (
	"context"
	"slices"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/catalog/acl"
	"github.com/weftmesh/weft/catalog/wire"
	"github.com/weftmesh/weft/connect/ca"
	"github.com/weftmesh/weft/connect/identity"
)

// Sync implements wire.Servers.
func (h *Handler) Sync(ctx context.Context, req *wire.SyncRequest) (_ *wire.SyncReply, err error) {
	defer h.metrics.count("Sync", &err)
	if err := (&catalog.SyncNode{State: req.State}).Validate(); err != nil {
		return nil, err
	}
	req = &wire.SyncRequest{Token: req.Token, State: withoutServer(req.State)}
	if err := h.authorize(req.Token, needsOfHost(req.State.Node.Node, req.State.Services, req.State.Checks)...); err != nil {
		return nil, err
	}
	if err := CallerOf(ctx).own(req.State.Node.Node, req.State.Node.ID); err != nil {
		return nil, err
	}
	if at, err := h.leader(ctx); err != nil {
		return nil, err
	} else if at != nil {
		return at.Sync(ctx, req)
	}
	// A server that was deposed without knowing could find its old state equal.
	index, err := h.readable(ctx)
	if err != nil {
		return nil, err
	}
	if h.cfg.Store.Equal(req.State) {
		h.metrics.equal.Inc()
		return &wire.SyncReply{Index: index}, nil
	}
	if err := h.introduce(ctx, req.State.Node.Node); err != nil {
		return nil, err
	}
	index, _, err = h.cfg.Log.Apply(ctx, &catalog.SyncNode{State: req.State})
	if err != nil {
		return nil, err
	}
	return &wire.SyncReply{Index: index}, nil
}

// withoutServer leaves out what a host says of a service with the ID under which the
// leader keeps servers: its checks would make the store refuse the whole statement, or
// hang on the leader's row for good. It is left out before the statement is in the log,
// so that what a log says stays the same.
func withoutServer(s catalog.NodeState) catalog.NodeState {
	s.Services = slices.DeleteFunc(slices.Clone(s.Services), func(s *catalog.Service) bool { return s.ID == catalog.ServerService })
	s.Checks = slices.DeleteFunc(slices.Clone(s.Checks), func(c *catalog.Check) bool { return c.ServiceID == catalog.ServerService })
	return s
}

func (h *Handler) introduce(ctx context.Context, node string) error {
	if h.cfg.Introduce == nil {
		return nil
	}
	v, err := h.cfg.Store.Read(catalog.Query{Kind: catalog.QueryNode, Name: node})
	if err != nil || len(v.Nodes) > 0 {
		return err
	}
	return h.cfg.Introduce(ctx, node)
}

// readable returns once the store shows every write that was acknowledged before,
// and proves that this server leads.
func (h *Handler) readable(ctx context.Context) (uint64, error) {
	index, err := h.cfg.Log.ReadIndex(ctx)
	if err != nil {
		return 0, err
	}
	return index, h.cfg.Store.WaitIndex(ctx, index)
}

// Apply implements wire.Servers.
func (h *Handler) Apply(ctx context.Context, req *wire.ApplyRequest) (_ *wire.ApplyReply, err error) {
	defer h.metrics.count("Apply", &err)
	cmd := req.Command.Command
	if cmd == nil {
		return nil, catalog.Invalidf("apply: no command")
	}
	if _, ok := cmd.(*catalog.Txn); ok {
		return nil, catalog.Invalidf("apply: a transaction goes by Txn, which has room for its results")
	}
	h.complete(cmd)
	if err := h.certRevocationOf(cmd); err != nil {
		return nil, err
	}
	if err := cmd.Validate(); err != nil {
		return nil, err
	}
	if c, ok := cmd.(*catalog.CreateSession); ok {
		if err := catalog.TTLWithin(c.Session.Timeout(), h.cfg.Limits.MinSessionTTL); err != nil {
			return nil, err
		}
	}
	if err := CallerOf(ctx).mayApply(cmd); err != nil {
		return nil, err
	}
	if err := h.maySpeak(CallerOf(ctx), cmd); err != nil {
		return nil, err
	}
	needs, err := h.needsOf(cmd)
	if err == nil {
		err = h.authorize(req.Token, needs...)
	}
	if err != nil {
		return nil, err
	}
	if at, err := h.leader(ctx); err != nil {
		return nil, err
	} else if at != nil {
		return at.Apply(ctx, req)
	}
	done, err := h.mayRevoke(cmd)
	if err != nil {
		return nil, err
	}
	defer done()
	index, result, err := h.cfg.Log.Apply(ctx, cmd)
	if err != nil {
		return nil, err
	}
	ok, isBool := result.(bool)
	reply := &wire.ApplyReply{Index: index, OK: ok || !isBool}
	if set, is := result.(catalog.VirtualIPsSet); is {
		reply.OK, reply.Names = set.Found, set.TakenFrom
	}
	return reply, nil
}

// complete sets what must not be decided while the command is applied.
func (h *Handler) complete(cmd catalog.Command) {
	now := h.cfg.Now().UTC()
	switch c := cmd.(type) {
	case *catalog.SetConfigEntry:
		if c.Entry.ConfigEntry != nil {
			c.Entry.Normalize()
		}
	case *catalog.SetIntention:
		if c.Source.LegacyID == "" {
			return
		}
		if c.Source.LegacyCreateTime == nil {
			c.Source.LegacyCreateTime = &now
		}
		if c.Source.LegacyUpdateTime == nil {
			c.Source.LegacyUpdateTime = &now
		}
	}
}

// Sign implements wire.Servers.
func (h *Handler) Sign(ctx context.Context, req *wire.SignRequest) (_ *wire.SignReply, err error) {
	defer h.metrics.count("Sign", &err)
	// The token is looked at before the request: parsing it costs more.
	if err := h.authorize(req.Token); err != nil {
		return nil, err
	}
	parsed, err := ca.ParseRequest(req.CSR)
	if err != nil {
		return nil, err
	}
	if err := CallerOf(ctx).maySign(parsed.ID); err != nil {
		return nil, err
	}
	if id, is := parsed.ID.(identity.AgentID); is {
		if err := h.notLiving(CallerOf(ctx), id.Node); err != nil {
			return nil, err
		}
	}
	want := need{acl.Write, acl.Operator, ""}
	switch id := parsed.ID.(type) {
	case identity.ServiceID:
		want = need{acl.Write, acl.Service, id.Service}
	case identity.AgentID:
		want = need{acl.Write, acl.Node, id.Node}
	}
	if err := h.authorize(req.Token, want); err != nil {
		return nil, err
	}
	if at, err := h.leader(ctx); err != nil {
		return nil, err
	} else if at != nil {
		return at.Sign(ctx, req)
	}
	if err := h.mayHave(parsed.ID); err != nil {
		return nil, err
	}
	leaf, err := h.cfg.CA.Sign(ctx, parsed)
	if err != nil {
		return nil, err
	}
	return &wire.SignReply{Leaf: *leaf}, nil
}

// SetCAConfig implements wire.Servers.
func (h *Handler) SetCAConfig(ctx context.Context, req *wire.SetCAConfigRequest) (_ *wire.SetCAConfigReply, err error) {
	defer h.metrics.count("SetCAConfig", &err)
	if err := CallerOf(ctx).operate("to configure the certificate authority"); err != nil {
		return nil, err
	}
	if err := h.authorize(req.Token, need{acl.Write, acl.Operator, ""}); err != nil {
		return nil, err
	}
	if at, err := h.leader(ctx); err != nil {
		return nil, err
	} else if at != nil {
		return at.SetCAConfig(ctx, req)
	}
	index, err := h.cfg.CA.Configure(ctx, req.Config)
	if err != nil {
		return nil, err
	}
	return &wire.SetCAConfigReply{Index: index}, nil
}
