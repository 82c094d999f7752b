package server

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/catalog/store"
)

// gatewaysEvery is how often the status of gateways is looked at although no entry
// is said to have changed.
const gatewaysEvery = 10 * time.Minute

// gatewayKinds are the kinds of entries that the status of a gateway rests on.
var gatewayKinds = []string{
	catalog.KindAPIGatewayEntry, catalog.KindHTTPRoute, catalog.KindTCPRoute, catalog.KindInlineCertificate,
	catalog.KindFileSystemCertificate, catalog.KindServiceDefaults, catalog.KindProxyDefaults,
	catalog.KindServiceRouter, catalog.KindServiceSplitter, catalog.KindServiceResolver,
}

// gateways keeps the status of gateways and routes: valid or not, bound or not.
type gateways struct {
	store *store.Store
	raft  applier
	now   func() time.Time
	log   *slog.Logger
	dirty chan struct{} // capacity 1
}

func newGateways(s *store.Store, raft applier, now func() time.Time, log *slog.Logger) *gateways {
	return &gateways{store: s, raft: raft, now: now, log: log, dirty: make(chan struct{}, 1)}
}

// follow says when entries change, until ctx ends.
func (g *gateways) follow(ctx context.Context) {
	var wg sync.WaitGroup
	for _, kind := range gatewayKinds {
		wg.Go(func() { g.followKind(ctx, kind) })
	}
	wg.Wait()
}

func (g *gateways) followKind(ctx context.Context, kind string) {
	w := g.store.WatchOwn(catalog.Query{Kind: catalog.QueryConfigEntries, Name: kind})
	for after := uint64(0); ; {
		_, index, err := w.Next(ctx, after)
		switch {
		case ctx.Err() != nil:
			return
		case errors.Is(err, catalog.ErrStale): // a backup was restored
			after = 0
			w = g.store.WatchOwn(catalog.Query{Kind: catalog.QueryConfigEntries, Name: kind})
		case err != nil:
			g.log.Warn("entries of a kind are not followed any more; gateways learn of changes late", "query", kind, "err", err)
			return
		default:
			after = index
		}
		select {
		case g.dirty <- struct{}{}:
		default:
		}
	}
}

func (g *gateways) changed() <-chan struct{} { return g.dirty }

// settle compares every status once. It does all it can, and returns what failed.
func (g *gateways) settle(ctx context.Context) error {
	var in catalog.GatewayEntries
	if err := errors.Join(
		readKind(g.store, catalog.KindAPIGatewayEntry, &in.Gateways),
		readKind(g.store, catalog.KindHTTPRoute, &in.HTTPRoutes),
		readKind(g.store, catalog.KindTCPRoute, &in.TCPRoutes),
	); err != nil {
		return err
	}
	var errs []error
	for _, f := range in.Statuses(storeEntries{g.store}, g.now().UTC()) {
		cmd := &catalog.SetEntryStatus{
			Kind: f.Entry.EntryKind(), Name: f.Entry.EntryName(), Index: f.Entry.Raft().ModifyIndex, Status: f.Status,
		}
		if _, _, err := g.raft.Apply(ctx, cmd); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// readKind reads the entries of a kind, which are of type T.
func readKind[T catalog.ConfigEntry](s *store.Store, kind string, out *[]T) error {
	v, err := s.Read(catalog.Query{Kind: catalog.QueryConfigEntries, Name: kind})
	if err != nil {
		return err
	}
	for _, e := range v.Entries {
		if t, ok := e.ConfigEntry.(T); ok {
			*out = append(*out, t)
		}
	}
	return nil
}

// storeEntries lets pure functions look up entries.
type storeEntries struct{ *store.Store }

// Entry implements catalog.EntrySource.
func (s storeEntries) Entry(kind, name string) catalog.ConfigEntry {
	v, err := s.Read(catalog.Query{Kind: catalog.QueryConfigEntry, Name: kind, Sub: name})
	if err != nil || len(v.Entries) == 0 {
		return nil
	}
	return v.Entries[0].ConfigEntry
}
