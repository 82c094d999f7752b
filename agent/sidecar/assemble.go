package sidecar

import (
	"context"
	"log/slog"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/weftmesh/weft/agent/local"
	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/connect"
)

// sidecar is one registered proxy: it assembles its snapshots and, unless the
// proxy is external, runs it.
type sidecar struct {
	cfg      Config
	id       string
	service  catalog.Name // the identity; it never changes
	external bool
	file     *snapshotFile // nil: nothing is kept
	log      *slog.Logger
	cancel   context.CancelCauseFunc

	assembling     context.Context // of the making and keeping of snapshots
	stopAssembling context.CancelFunc
	busy           sync.WaitGroup // with that

	out     catalog.Latest[*connect.Snapshot]
	dirty   chan struct{} // capacity 1: something that the snapshot is made of changed
	over    chan struct{} // closed when it has ended, and drained
	fed     fed           // while this process drains
	outside outside       // of one that runs outside the agent

	mu        sync.Mutex
	in        inputs
	basis     basis // of the policy in in
	progress  progress
	roots     bool // known, from a server or from disk
	intends   bool
	old       map[catalog.QueryKind]bool           // parts that are from disk, and that a server may know better
	followers map[catalog.Query]context.CancelFunc // of what upstreams need
	empty     map[catalog.Name]emptyUpstream
	problems  []string
	current   proxy // nil while it does not run
	failure   string
}

func newSidecar(cfg Config, reg *catalog.Service) *sidecar {
	s := &sidecar{
		cfg:      cfg,
		id:       reg.ID,
		service:  reg.Proxy.DestinationServiceName,
		external: local.IsExternal(reg),
		log:      cfg.Logger.With("id", reg.ID, "service", reg.Proxy.DestinationServiceName),
		dirty:    make(chan struct{}, 1),
		over:     make(chan struct{}),
		fed:      fed{news: make(chan struct{}, 1)},
		in: inputs{
			proxy: reg, datacenter: cfg.Datacenter, locality: cfg.Locality, bindAddr: cfg.BindAddr, drain: cfg.DrainTimeout,
			advertise: cfg.Advertise,
			world:     newWorld(),
		},
		followers: map[catalog.Query]context.CancelFunc{},
		empty:     map[catalog.Name]emptyUpstream{},
	}
	s.assembling, s.stopAssembling = context.WithCancel(context.Background())
	if s.external {
		s.in.accessLog = &cfg.AccessLog
	}
	if cfg.DataDir != "" {
		s.file = newSnapshotFile(cfg.DataDir, reg.ID)
	}
	return s
}

// canBecome tells whether reg is this proxy with other settings. Another identity,
// or another process to run it, is another proxy.
func (s *sidecar) canBecome(reg *catalog.Service) bool {
	return reg.Proxy.DestinationServiceName == s.service && local.IsExternal(reg) == s.external
}

func (s *sidecar) setProxy(reg *catalog.Service, rest string, checks []local.ExposedCheck) {
	s.mu.Lock()
	same := reflect.DeepEqual(s.in.proxy, reg) && s.in.rest == rest && slices.Equal(s.in.checks, checks)
	s.in.proxy, s.in.rest, s.in.checks = reg, rest, checks
	s.mu.Unlock()
	if !same {
		s.poke()
	}
}

func (s *sidecar) poke() {
	select {
	case s.dirty <- struct{}{}:
	default:
	}
}

// assemble makes snapshots until ctx ends: at once on the first change, then as
// often as changes come, each from everything known by then.
func (s *sidecar) assemble(ctx context.Context) {
	var wg sync.WaitGroup
	defer wg.Wait()
	follow := func(ctx context.Context, q catalog.Query, take func(*catalog.View)) {
		wg.Go(func() { s.follow(ctx, q, take) })
	}
	follow(ctx, catalog.Query{Kind: catalog.QueryRoots}, s.takeRoots)
	follow(ctx, catalog.Query{Kind: catalog.QueryIntentionsDest, Name: s.service}, s.takeIntentions)

	grace := time.NewTimer(s.cfg.Grace)
	defer grace.Stop()
	nag := time.NewTimer(time.Hour)
	defer nag.Stop()
	patient := true // upstreams that are not known yet hold the first snapshot back
	s.poke()
	for {
		select {
		case <-ctx.Done():
			return
		case <-grace.C:
			patient = false
		case <-nag.C:
		case <-s.dirty:
		}
		s.followUpstreams(ctx, follow)
		s.publish(patient)
		if wait := s.warnEmpty(); wait > 0 {
			nag.Reset(wait)
		}
	}
}

// follow hands each version of a view to take. Errors are those that the view
// itself does not retry; they are retried here, slowly.
func (s *sidecar) follow(ctx context.Context, q catalog.Query, take func(*catalog.View)) {
	const pauseMin, pauseMax = 200 * time.Millisecond, 10 * time.Second
	w := s.cfg.Views(q)
	var after uint64
	pause := pauseMin
	for {
		v, index, err := w.Next(ctx, after)
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			s.log.Warn("a view that the proxy needs is refused; it keeps what it knew", "query", q.String(), "err", err)
			if !sleep(ctx, pause) {
				return
			}
			pause = min(pause*2, pauseMax)
			continue
		}
		after, pause = index, pauseMin
		s.mu.Lock()
		take(v)
		s.mu.Unlock()
		s.poke()
	}
}

// takeRoots keeps the roots known when the servers have none yet.
func (s *sidecar) takeRoots(v *catalog.View) {
	if domain, roots, signing, ok := rootsOf(v); ok {
		s.in.trustDomain, s.in.policy.roots, s.in.signingRoot = domain, roots, signing
		s.in.revokedSerials, s.in.revokedIDs = catalog.RevokedCerts(v.RevokedCerts)
		s.learned(v)
		s.roots = true
		delete(s.old, catalog.QueryRoots)
	}
}

func (s *sidecar) takeIntentions(v *catalog.View) {
	s.in.intentions, s.in.fallback = v.Intentions, v.Default
	s.learned(v)
	s.intends = true
	delete(s.old, catalog.QueryIntentionsDest)
}

// upstreams names those that the registration names now and that can be reached, and
// those that nobody named.
func (s *sidecar) upstreams() map[catalog.Name]bool {
	out := map[catalog.Name]bool{}
	for i := range s.in.proxy.Proxy.Upstreams {
		up := &s.in.proxy.Proxy.Upstreams[i]
		if ok, _ := watchable(up, s.cfg.Datacenter); ok {
			out[upstreamName(up)] = true
		}
	}
	if d := s.in.destinations(); d != nil {
		for _, name := range d.implicit {
			out[name] = true
		}
	}
	return out
}

// followUpstreams watches the chains of the upstreams of now and the instances that
// they lead to, in transparent mode also what says which those are, and nothing else.
func (s *sidecar) followUpstreams(ctx context.Context, follow func(context.Context, catalog.Query, func(*catalog.View))) {
	s.mu.Lock()
	defer s.mu.Unlock()
	upstreams := s.upstreams()
	want := map[catalog.Query]bool{}
	if transparent(s.in.proxy) {
		for _, q := range reachQueries(s.service) {
			want[q] = true
		}
	}
	for name := range upstreams {
		want[s.definition(name)] = true
		for _, service := range s.in.services(name, s.cfg.Datacenter) {
			want[catalog.Query{Kind: catalog.QueryConnect, Name: service}] = true
		}
	}
	for q, stop := range s.followers {
		if !want[q] {
			stop()
			delete(s.followers, q)
			s.in.forget(q)
		}
	}
	for name := range s.in.last {
		if !upstreams[name] {
			delete(s.in.last, name)
		}
	}
	for name := range s.empty {
		if !upstreams[name] {
			delete(s.empty, name)
		}
	}
	for q := range want {
		if s.followers[q] != nil {
			continue
		}
		qctx, stop := context.WithCancel(ctx)
		s.followers[q] = stop
		follow(qctx, q, func(v *catalog.View) {
			if qctx.Err() == nil {
				s.in.learn(q, v)
			}
		})
	}
}

// definition asks what an upstream is: the chain of a service, or a prepared query.
func (s *sidecar) definition(name catalog.Name) catalog.Query {
	if query, ok := strings.CutPrefix(name, queryPrefix); ok {
		return catalog.Query{Kind: catalog.QueryPreparedQuery, Name: query}
	}
	return catalog.ChainOptions{Datacenter: s.cfg.Datacenter}.Query(name)
}

// publish makes a snapshot, if enough is known for one and it says something new.
// Without roots and intentions there is none: a proxy must not guess its policy.
// The policy of before a restart is not enforced either as long as a server may
// answer soon: a deny that came in between has to hold from the first connection.
func (s *sidecar) publish(patient bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	last, index := s.out.Get()
	if !s.roots || !s.intends || (patient && last == nil && (len(s.old) > 0 || !s.upstreamsKnown())) {
		return
	}
	snap, problems := build(s.in)
	for i := range snap.Upstreams {
		if up := &snap.Upstreams[i]; s.in.known(up.Name, s.cfg.Datacenter) {
			s.in.remember(up)
		}
	}
	s.report(problems)
	if last != nil {
		snap.Index = last.Index
		if reflect.DeepEqual(last, snap) {
			s.madeOf(last.Index)
			return
		}
	} else if s.file != nil {
		index = s.file.index // go on counting where the last run of the agent stopped
	}
	snap.Index = index + 1
	s.madeOf(snap.Index)
	s.out.Set(snap.Index, snap)
}

func (s *sidecar) upstreamsKnown() bool {
	if transparent(s.in.proxy) && !s.in.told() {
		return false
	}
	for name := range s.upstreams() {
		if !s.in.known(name, s.cfg.Datacenter) {
			return false
		}
	}
	return true
}

// report logs what of a registration cannot be done, once.
func (s *sidecar) report(problems []string) {
	for _, p := range problems {
		if !slices.Contains(s.problems, p) {
			s.log.Warn("the registration of a proxy cannot be honoured in full", "reason", p)
		}
	}
	s.problems = problems
}

// emptyUpstream is an upstream that has nobody to serve it.
type emptyUpstream struct {
	since time.Time
	said  bool
}

// emptyGrace is for how long an upstream may be empty before it is worth a line:
// its sidecar may be starting beside ours.
const emptyGrace = 2 * time.Second

// warnEmpty names, once, each upstream that stays without an instance. It returns
// when to look again, 0 for never.
func (s *sidecar) warnEmpty() (wait time.Duration) {
	snap, _ := s.out.Get()
	if snap == nil {
		return 0
	}
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range snap.Upstreams {
		name := snap.Upstreams[i].Name
		if len(snap.Upstreams[i].Instances) > 0 || snap.Upstreams[i].Implicit {
			delete(s.empty, name)
			continue
		}
		e, known := s.empty[name]
		if !known {
			e.since = now
		}
		left := emptyGrace - now.Sub(e.since)
		switch {
		case e.said:
		case left > 0:
			wait = max(wait, left)
		default:
			e.said = true
			s.log.Warn("no healthy instance of an upstream; connections to it are refused", "upstream", name,
				"hint", "register "+name+" with a sidecar, or see its checks: weft catalog nodes -service "+name)
		}
		s.empty[name] = e
	}
	return wait
}

// seed takes over what was enforced before the agent restarted. Settings of the
// registration are not among it: those are current.
func (s *sidecar) seed() {
	if s.file == nil {
		return
	}
	snap, err := s.file.load()
	if err != nil {
		s.log.Warn("the last snapshot of a proxy cannot be read; the proxy waits for a server", "file", s.file.path, "err", err)
		return
	}
	if snap == nil || snap.Service != s.service || snap.Datacenter != s.cfg.Datacenter || snap.TrustDomain == "" || len(snap.Roots) == 0 {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.in.policy = policy{
		trustDomain: snap.TrustDomain, roots: snap.Roots, signingRoot: snap.SigningRoot,
		revokedSerials: snap.RevokedSerials, revokedIDs: snap.RevokedIDs,
		intentions: snap.Intentions, fallback: snap.Default,
	}
	s.roots, s.intends = true, true
	s.old = map[catalog.QueryKind]bool{catalog.QueryRoots: true, catalog.QueryIntentionsDest: true}
	for i := range snap.Upstreams {
		s.in.remember(&snap.Upstreams[i])
	}
	s.in.before = snap
}

func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
