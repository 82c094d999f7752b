package central

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"reflect"
	"sync"
	"time"

	"github.com/weftmesh/weft/agent/local"
	"github.com/weftmesh/weft/catalog"
)

// Config configures a Merger.
type Config struct {
	// Views watches what the servers know. Required.
	Views func(q catalog.Query) catalog.Watch[*catalog.View]
	// DataDir keeps what was known; empty: memory only.
	DataDir string
	// Patience is how long a statement waits for entries that it needs and that the
	// servers have not told yet: 1 s.
	Patience time.Duration
	Logger   *slog.Logger
}

// Merger merges central configuration into the services of a host.
type Merger struct {
	cfg  Config
	log  *slog.Logger
	file *entriesFile // nil: nothing is kept
	out  catalog.Latest[*local.Host]

	mu      sync.Mutex
	entries map[entryKey]catalog.ConfigEntry // nil for those that do not exist
	told    map[entryKey]bool                // by a server, since this agent started
	news    chan struct{}                    // closed and replaced when told or entries change
	follows map[entryKey]context.CancelFunc
}

type entryKey struct{ kind, name string }

// New reads what was known last.
func New(cfg Config) (*Merger, error) {
	if cfg.Views == nil {
		return nil, errors.New("central configuration: Views must be set")
	}
	if cfg.Patience == 0 {
		cfg.Patience = time.Second
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	m := &Merger{
		cfg: cfg, log: cfg.Logger, entries: map[entryKey]catalog.ConfigEntry{}, told: map[entryKey]bool{},
		news: make(chan struct{}), follows: map[entryKey]context.CancelFunc{},
	}
	if cfg.DataDir == "" {
		return m, nil
	}
	m.file = newEntriesFile(cfg.DataDir)
	known, err := m.file.load()
	if err != nil {
		m.log.Warn("the last central configuration cannot be read; proxies are configured without until a server tells", "file", m.file.path, "err", err)
	}
	for _, e := range known {
		m.entries[entryKey{e.EntryKind(), e.EntryName()}] = e.ConfigEntry
	}
	return m, nil
}

// Watch follows the host with its central configuration merged in. It has a value
// once Run has seen the host.
func (m *Merger) Watch() catalog.Watch[*local.Host] { return &m.out }

// Merge gives the host its central configuration as it is known now.
func (m *Merger) Merge(h *local.Host) *local.Host {
	if h == nil {
		return nil
	}
	src := m.source()
	var services map[string]*catalog.Service
	for id, s := range h.Services {
		merged := catalog.MergeCentral(src, s)
		if merged == s {
			continue
		}
		if services == nil {
			services = maps.Clone(h.Services)
		}
		services[id] = merged
	}
	if services == nil {
		return h
	}
	out := *h
	out.Services = services
	return &out
}

// source is what is known of entries now, for catalog.MergeCentral. It notes what
// is asked for.
func (m *Merger) source() *source {
	m.mu.Lock()
	defer m.mu.Unlock()
	return &source{entries: maps.Clone(m.entries), wanted: map[entryKey]bool{}}
}

type source struct {
	entries map[entryKey]catalog.ConfigEntry
	wanted  map[entryKey]bool
}

// Entry implements catalog.EntrySource.
func (s *source) Entry(kind, name string) catalog.ConfigEntry {
	k := entryKey{kind, name}
	s.wanted[k] = true
	return s.entries[k]
}

// Run follows the entries that the services of the host need until ctx ends. changed
// is called when what they are merged into changes.
func (m *Merger) Run(ctx context.Context, hosts catalog.Watch[*local.Host], changed func()) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()

	var mu sync.Mutex // of what follows
	var host *local.Host
	publish := func(now *local.Host, fromServers bool) {
		mu.Lock()
		defer mu.Unlock()
		if now != nil {
			host = now
		}
		if host == nil {
			return
		}
		merged := m.Merge(host)
		last, _ := m.out.Get()
		if fromServers && last != nil && reflect.DeepEqual(last.Services, merged.Services) {
			return
		}
		m.out.Publish(merged)
		if fromServers {
			changed()
		}
	}
	follow := func(ctx context.Context, k entryKey) {
		wg.Go(func() { m.follow(ctx, k, func() { publish(nil, true) }) })
	}
	if m.file != nil {
		wg.Go(func() { m.keep(ctx) })
	}
	for after := uint64(0); ; {
		h, index, err := hosts.Next(ctx, after)
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		after = index
		m.want(ctx, h, follow)
		publish(h, false)
	}
}

// want follows what the host needs, and nothing else.
func (m *Merger) want(ctx context.Context, h *local.Host, follow func(context.Context, entryKey)) {
	src := m.source()
	for _, s := range h.Services {
		catalog.MergeCentral(src, s)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for k, stop := range m.follows {
		if !src.wanted[k] {
			stop()
			delete(m.follows, k)
			delete(m.told, k)
		}
	}
	maps.DeleteFunc(m.entries, func(k entryKey, _ catalog.ConfigEntry) bool { return !src.wanted[k] })
	for k := range src.wanted {
		if m.follows[k] == nil {
			kctx, stop := context.WithCancel(ctx)
			m.follows[k] = stop
			follow(kctx, k)
		}
	}
}

// follow keeps one entry current.
func (m *Merger) follow(ctx context.Context, k entryKey, news func()) {
	const pause = 5 * time.Second
	w := m.cfg.Views(catalog.Query{Kind: catalog.QueryConfigEntry, Name: k.kind, Sub: k.name})
	for after := uint64(0); ; {
		v, index, err := w.Next(ctx, after)
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			m.log.Warn("a config entry that proxies need is refused; they keep what they knew", "id", k.kind+"/"+k.name, "err", err)
			select {
			case <-ctx.Done():
				return
			case <-time.After(pause):
			}
			continue
		}
		after = index
		var e catalog.ConfigEntry
		if len(v.Entries) > 0 {
			e = v.Entries[0].ConfigEntry
		}
		if m.learn(ctx, k, e) {
			news()
		}
	}
}

func (m *Merger) learn(ctx context.Context, k entryKey, e catalog.ConfigEntry) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if ctx.Err() != nil {
		return false // nobody wants it any more
	}
	m.entries[k], m.told[k] = e, true
	close(m.news)
	m.news = make(chan struct{})
	return true
}

// Syncer states services to the servers with their central configuration merged in.
func (m *Merger) Syncer(to local.Syncer) local.Syncer { return syncer{m, to} }

type syncer struct {
	m  *Merger
	to local.Syncer
}

// Sync implements local.Syncer.
func (s syncer) Sync(ctx context.Context, want catalog.NodeState) (uint64, error) {
	s.m.await(ctx, want.Services)
	src := s.m.source()
	services := make([]*catalog.Service, len(want.Services))
	for i, svc := range want.Services {
		services[i] = catalog.MergeCentral(src, svc)
	}
	want.Services = services
	return s.to.Sync(ctx, want)
}

// await waits, not for long, until the servers have told of every entry that the
// services need: stating them without and then again with would make everybody who
// watches them look twice.
func (m *Merger) await(ctx context.Context, services []*catalog.Service) {
	ctx, cancel := context.WithTimeout(ctx, m.cfg.Patience)
	defer cancel()
	src := m.source()
	for _, s := range services {
		catalog.MergeCentral(src, s)
	}
	for {
		m.mu.Lock()
		missing, news := false, m.news
		for k := range src.wanted {
			_, known := m.entries[k]
			missing = missing || (!known && !m.told[k])
		}
		m.mu.Unlock()
		if !missing {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-news:
		}
	}
}
