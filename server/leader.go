package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strconv"
	"sync"
	"time"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/catalog/store"
	"github.com/weftmesh/weft/server/consensus"
)

const (
	// reconcileEvery is how often the catalog is compared with the members although
	// nothing is said to have changed.
	reconcileEvery = time.Minute
	// authorityEvery is how often the roots are looked at.
	authorityEvery = 10 * time.Minute
	// retryLeast and retryMost bound the pause after a step that failed.
	retryLeast = 100 * time.Millisecond
	retryMost  = 30 * time.Second
)

// leader runs what only the leader does, while this server is it.
type leader struct {
	leadership catalog.Watch[consensus.Leadership]
	authority  *authority
	autopilot  *autopilot
	restored   chan struct{} // has a value when the state was replaced
	members    *reconciler
	gateways   *gateways
	expiry     *expiry
	changed    func() <-chan struct{}
	log        *slog.Logger
	pruner     *pruner
}

func newLeader(s *Server) (*leader, error) {
	membership := membershipOf(s.cfg)
	expiry, err := newExpiry(s.store, s.raft, s.log, s.cfg.Registerer)
	if err != nil {
		return nil, fmt.Errorf("server: %w", err)
	}
	return &leader{
		expiry:     expiry,
		leadership: s.raft.Leadership(), authority: s.authority, changed: membership.Changed, log: s.log,
		gateways: newGateways(s.store, s.raft, time.Now, s.log),
		restored: make(chan struct{}, 1),
		autopilot: &autopilot{
			raft: s.raft, store: s.store, members: membership.Members, cluster: s.cluster, self: s.cfg.NodeID,
			first: s.cfg.Autopilot, now: time.Now, log: s.log, tempo: s.cfg.tempo,
			since: map[string]standing{}, absent: map[string]time.Time{}, barred: map[string]time.Time{},
		},
		pruner: &pruner{store: s.store, raft: s.raft, now: time.Now},
		members: &reconciler{
			store: s.store, raft: s.raft, members: membership.Members, self: s.cfg.NodeName,
			datacenter: s.cfg.Datacenter, now: time.Now, log: s.log,
		},
	}, nil
}

// run follows leadership until ctx ends.
func (l *leader) run(ctx context.Context) {
	for at := uint64(0); ; {
		now, index, err := l.leadership.Next(ctx, at)
		if err != nil {
			return // ctx ended, or Raft did
		}
		at = index
		if !now.Leading {
			continue
		}
		term, cancel := context.WithCancel(ctx)
		var wg sync.WaitGroup
		wg.Go(func() { l.leadOn(term) })
		_, _, err = l.leadership.Next(ctx, at) // any news ends this term of ours
		cancel()
		wg.Wait()
		if err != nil {
			return
		}
	}
}

// leadOn leads, and begins anew each time that the state was replaced.
func (l *leader) leadOn(ctx context.Context) {
	for ctx.Err() == nil {
		spell, cancel := context.WithCancel(ctx)
		var wg sync.WaitGroup
		wg.Go(func() { l.lead(spell) })
		select {
		case <-ctx.Done():
		case <-l.restored:
		}
		cancel()
		wg.Wait()
	}
}

// begun says that the state was replaced, by one that knows nothing of what this
// leader has done.
func (l *leader) begun() {
	select {
	case l.restored <- struct{}{}:
	default:
	}
}

// lead runs the loops of one term of leadership.
func (l *leader) lead(ctx context.Context) {
	var wg sync.WaitGroup
	wg.Go(func() { l.expiry.run(ctx) })
	wg.Go(func() { l.repeat(ctx, "certificate authority", authorityEvery, nil, l.authority.Ensure) })
	wg.Go(func() { l.gateways.follow(ctx) })
	wg.Go(func() { l.repeat(ctx, "gateways", gatewaysEvery, l.gateways.changed, l.gateways.settle) })
	wg.Go(func() { l.repeat(ctx, "revocations", pruneEvery, nil, l.pruner.prune) })
	l.autopilot.begin()
	wg.Go(func() { l.repeat(ctx, "autopilot", l.autopilot.tempo.autopilot, nil, l.autopilot.ensure) })
	l.members.begin()
	l.repeat(ctx, "members", reconcileEvery, l.changed, l.members.reconcile)
	wg.Wait()
}

// repeat does a step now, each time that changed fires, and every so often; after
// a failure it tries again soon.
func (l *leader) repeat(ctx context.Context, what string, every time.Duration, changed func() <-chan struct{}, step func(context.Context) error) {
	pause := retryLeast
	for {
		var fired <-chan struct{}
		if changed != nil {
			fired = changed()
		}
		wait := every
		err := step(ctx)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			l.log.Warn("a duty of the leader failed and is tried again", "duty", what, "err", err)
			wait, pause = pause, min(2*pause, retryMost)
		default:
			pause = retryLeast
		}
		t := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			t.Stop()
			return
		case <-fired:
		case <-t.C:
		}
		t.Stop()
	}
}

func membershipOf(cfg Config) Membership {
	if cfg.Membership != nil {
		return cfg.Membership
	}
	return alone(cfg)
}

// lone is the membership of a server that has none: itself.
type lone struct{ self catalog.Member }

func alone(cfg Config) lone {
	host, port, _ := net.SplitHostPort(cfg.Addr)
	return lone{catalog.Member{
		Name: cfg.NodeName, ID: cfg.NodeID, Addr: host, Status: catalog.MemberAlive,
		Tags: map[string]string{"role": roleServer, "port": port, "build": cfg.Version, "dc": cfg.Datacenter},
	}}
}

func (l lone) Members() []catalog.Member { return []catalog.Member{l.self} }
func (lone) Changed() <-chan struct{}    { return nil }

// Tags of members, as Consul has them.
const (
	roleServer = "consul"
	tagRole    = "role"
	tagPort    = "port"
	tagBuild   = "build"
	tagGRPC    = "grpc_port"
)

// Times after which a host that is not there any more is forgotten.
const (
	// settle is how long a new leader waits before it believes that a host with a
	// node check, of which gossip knows nothing, is gone.
	settle = time.Minute
	// reapAfter is how long a failed host stays in the catalog.
	reapAfter = 72 * time.Hour
)

// reconciler makes the catalog agree with gossip: which hosts there are, whether
// their agents are alive, and which of them are servers. It owns the node check
// and the server rows; all else of a host is its agent's to say.
type reconciler struct {
	store      *store.Store
	raft       applier
	members    func() []catalog.Member
	self       string
	datacenter string
	now        func() time.Time
	log        *slog.Logger

	mu      sync.Mutex
	since   time.Time            // leading
	missing map[string]time.Time // hosts that failed or are unknown, since when this leader knows
}

// begin starts a term of leadership.
func (r *reconciler) begin() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.since, r.missing = r.now(), map[string]time.Time{}
}

// reconcile compares everything once. It does all it can, and returns what failed.
func (r *reconciler) reconcile(ctx context.Context) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	var errs []error
	known := map[string]bool{}
	for _, m := range r.members() {
		known[m.Name] = true
		errs = append(errs, r.member(ctx, m))
	}
	errs = append(errs, r.strangers(ctx, known))
	return errors.Join(errs...)
}

// introduce makes the rows of a host that gossip knows and the catalog does not.
// It comes before the first statement of the host's agent, so that its services are
// never seen without the check that says whether it is alive, and so that who makes
// the row of a node does not depend on who is quicker.
func (r *reconciler) introduce(ctx context.Context, node string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	have, err := r.read(node)
	if err != nil || have.node != nil {
		return err
	}
	for _, m := range r.members() {
		if m.Name == node && m.Status == catalog.MemberAlive {
			return r.alive(ctx, m, have)
		}
	}
	return nil
}

func (r *reconciler) member(ctx context.Context, m catalog.Member) error {
	row, err := r.read(m.Name)
	if err != nil {
		return err
	}
	switch m.Status {
	case catalog.MemberAlive:
		delete(r.missing, m.Name)
		return r.alive(ctx, m, row)
	case catalog.MemberFailed:
		return r.failed(ctx, m.Name, row)
	case catalog.MemberLeaving, catalog.MemberLeft:
		if m.Name == r.self || row.node == nil {
			return nil
		}
		return r.forget(ctx, m.Name, "it left")
	default:
		return nil
	}
}

// rows are what the catalog has of a host, as far as it is the leader's.
type rows struct {
	node   *catalog.Node
	check  *catalog.Check
	server *catalog.Service
}

func (r *reconciler) read(node string) (rows, error) {
	var out rows
	v, err := r.store.Read(catalog.Query{Kind: catalog.QueryNode, Name: node})
	if err != nil {
		return out, err
	}
	if len(v.Nodes) > 0 {
		out.node = v.Nodes[0]
	}
	for _, i := range v.Instances {
		if i.Service != nil && i.Service.ID == catalog.ServerService && i.Service.Service == catalog.ServerService {
			out.server = i.Service
		}
	}
	checks, err := r.store.Read(catalog.Query{Kind: catalog.QueryNodeChecks, Name: node})
	if err != nil {
		return out, err
	}
	for _, c := range checks.Checks {
		if c.CheckID == catalog.NodeCheckID {
			out.check = c
		}
	}
	return out, nil
}

func nodeCheck(node string, status catalog.Status, output string) *catalog.Check {
	return &catalog.Check{
		Node: node, CheckID: catalog.NodeCheckID, Name: catalog.NodeCheckName, Status: status, Output: output,
	}
}

func sameCheck(have, want *catalog.Check) bool {
	return have != nil && have.Status == want.Status && have.Output == want.Output
}

// alive: the host has a row, a check that passes, and a service when it is a server.
func (r *reconciler) alive(ctx context.Context, m catalog.Member, have rows) error {
	check := nodeCheck(m.Name, catalog.StatusPassing, catalog.NodeCheckAlive)
	var server *catalog.Service
	if m.Tags[tagRole] == roleServer {
		server = serverService(m)
	}
	if server == nil && have.server != nil {
		cmd := &catalog.Deregister{Node: m.Name, ServiceID: catalog.ServerService}
		if _, _, err := r.raft.Apply(ctx, cmd); err != nil {
			return err
		}
	}
	sameHost := have.node != nil && (m.ID == "" || have.node.ID == m.ID)
	if sameHost && sameCheck(have.check, check) && sameServer(have.server, server) {
		return nil
	}
	otherHost := have.node != nil && !sameHost
	cmd := &catalog.Register{
		// A row that is there, or comes in this moment, is the agent's statement: it
		// knows better.
		SkipNodeUpdate: !otherHost,
		Node:           &catalog.Node{ID: m.ID, Node: m.Name, Address: m.Addr, Datacenter: r.datacenter},
		Service:        server,
		Checks:         []*catalog.Check{check},
	}
	if otherHost {
		// Another host has taken the name: what the catalog has of the old one's
		// health is not about this one.
		if err := r.critical(ctx, m.Name, have); err != nil {
			return err
		}
	}
	return r.register(ctx, cmd)
}

func (r *reconciler) register(ctx context.Context, cmd *catalog.Register) error {
	if err := cmd.Validate(); err != nil {
		return err
	}
	_, _, err := r.raft.Apply(ctx, cmd)
	return err
}

// serverService is the service under which a server stands in the catalog.
func serverService(m catalog.Member) *catalog.Service {
	port, err := strconv.ParseUint(m.Tags[tagPort], 10, 16)
	if err != nil {
		return nil
	}
	meta := map[string]string{
		"version": m.Tags[tagBuild], "raft_version": "3", "non_voter": "false", "read_replica": "false",
		"serf_protocol_current": "2", "serf_protocol_min": "1", "serf_protocol_max": "5",
	}
	if p := m.Tags[tagGRPC]; p != "" {
		meta["grpc_port"] = p
	}
	return &catalog.Service{
		ID: catalog.ServerService, Service: catalog.ServerService, Port: int(port), Meta: meta,
		Weights: &catalog.Weights{Passing: 1, Warning: 1},
	}
}

func sameServer(have, want *catalog.Service) bool {
	if have == nil || want == nil {
		return have == nil && want == nil
	}
	if have.Port != want.Port || len(have.Meta) != len(want.Meta) {
		return false
	}
	for k, v := range want.Meta {
		if have.Meta[k] != v {
			return false
		}
	}
	return true
}

// failed: the host stays, with a critical check, until it is reaped.
func (r *reconciler) failed(ctx context.Context, name string, have rows) error {
	if have.node == nil || name == r.self {
		return nil
	}
	since, ok := r.missing[name]
	if !ok {
		since = r.now()
		r.missing[name] = since
	}
	if r.now().Sub(since) >= reapAfter {
		return r.forget(ctx, name, "it was not seen for "+reapAfter.String())
	}
	return r.critical(ctx, name, have)
}

func (r *reconciler) critical(ctx context.Context, name string, have rows) error {
	check := nodeCheck(name, catalog.StatusCritical, catalog.NodeCheckFailed)
	if sameCheck(have.check, check) {
		return nil
	}
	r.log.Warn("a host does not answer", "node", name)
	return r.register(ctx, &catalog.Register{
		SkipNodeUpdate: true, Node: &catalog.Node{Node: name, Datacenter: r.datacenter}, Checks: []*catalog.Check{check},
	})
}

func (r *reconciler) forget(ctx context.Context, name, why string) error {
	r.log.Info("a host is removed from the catalog", "node", name, "reason", why)
	delete(r.missing, name)
	_, _, err := r.raft.Apply(ctx, &catalog.Deregister{Node: name})
	return err
}

// strangers sees to hosts with a node check of which gossip knows nothing: they
// left while nobody led, or this server has not met them yet.
func (r *reconciler) strangers(ctx context.Context, known map[string]bool) error {
	if r.now().Sub(r.since) < settle {
		return nil
	}
	v, err := r.store.Read(catalog.Query{Kind: catalog.QueryChecks, Name: catalog.StatusAny})
	if err != nil {
		return err
	}
	var errs []error
	for _, c := range v.Checks {
		if c.CheckID != catalog.NodeCheckID || known[c.Node] {
			continue
		}
		have, err := r.read(c.Node)
		if err == nil {
			err = r.failed(ctx, c.Node, have)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}
