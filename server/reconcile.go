package server

import (
	"context"
	"errors"
	"log/slog"
	"strconv"
	"sync"
	"time"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/catalog/store"
)

const (
	// settle is how long a new leader waits before it believes that a host with a
	// node check, of which gossip knows nothing, is gone, and how long it misses a host
	// itself before it removes it.
	settle = time.Minute
	// defaultReapAfter is how long a failed host stays in the catalog.
	defaultReapAfter = 72 * time.Hour
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
	reapAfter  time.Duration // how long a failed host stays
	log        *slog.Logger
	doubts     *doubts // may be nil
	// suspect has a host checked, and reports false where too many are; may be nil.
	suspect func(suspect) bool

	mu     sync.Mutex
	since  time.Time            // leading
	known  map[string]bool      // hosts that gossip knew when it was last looked, in this term
	missed map[string]time.Time // since when gossip holds hosts for failed, in this term
}

// begin starts a term of leadership.
func (r *reconciler) begin() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.since, r.known, r.missed = r.now(), nil, map[string]time.Time{}
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
	errs = append(errs, r.forgotten(ctx, known), r.strangers(ctx, known))
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

// look compares one host, and returns what could not be written.
func (r *reconciler) look(ctx context.Context, node string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	var errs []error
	for _, m := range r.members() {
		if m.Name != node {
			continue
		}
		if err := r.member(ctx, m); err != nil && ctx.Err() == nil {
			r.log.Warn("the check of a host could not be changed; it is tried again", "node", node, "err", err)
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func (r *reconciler) member(ctx context.Context, m catalog.Member) error {
	row, err := r.read(m.Name)
	if err != nil {
		return err
	}
	switch m.Status {
	case catalog.MemberAlive:
		if m.Name != r.self && r.doubts.about(m) {
			return r.critical(ctx, m.Name, row)
		}
		if r.unproven(m, row) || r.renamed(m, row) {
			return nil
		}
		delete(r.missed, m.Name)
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

// unproven tells whether a host that gossip holds for alive may be one of whose crash an
// earlier leader knew, and has it checked: only then it passes. Of one that gossip has
// missed since this leader leads, gossip's word is new.
func (r *reconciler) unproven(m catalog.Member, have rows) bool {
	if m.Name == r.self || r.suspect == nil || have.check == nil || have.check.Status != catalog.StatusCritical {
		return false
	}
	if _, missed := r.missed[m.Name]; missed || r.doubts.cleared(m) {
		return false
	}
	return r.suspect(suspect{m.Name, m.ID})
}

// renamed tells whether the catalog has a host that gossip knows by this name under
// another one. Its agent said that, and gossip may hold the former name for alive for a
// while: to write that one would take from the host what its agent stated. If it is gossip
// that is ahead, the agent's next statement brings the new name (introduce).
func (r *reconciler) renamed(m catalog.Member, have rows) bool {
	return have.node == nil && m.ID != "" && r.store.NodeOf(m.ID) != ""
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
	missed, ok := r.missed[name]
	if !ok {
		missed = r.now()
		r.missed[name] = missed
	}
	// The check keeps since when, as leaders change more often than hosts are reaped. But
	// the check may be of a backup that was restored just now, and the host only restarts.
	if c := have.check; c != nil && c.Status == catalog.StatusCritical && c.Since > 0 &&
		r.now().Sub(time.UnixMilli(c.Since)) >= r.reapAfter && r.now().Sub(missed) >= settle {
		return r.forget(ctx, name, "it was not seen for "+r.reapAfter.String())
	}
	return r.critical(ctx, name, have)
}

func (r *reconciler) critical(ctx context.Context, name string, have rows) error {
	check := nodeCheck(name, catalog.StatusCritical, catalog.NodeCheckFailed)
	check.Since = r.now().UnixMilli()
	if have.node == nil || sameCheck(have.check, check) && r.dated(have.check.Since) {
		return nil
	}
	r.log.Warn("a host does not answer", "node", name)
	return r.register(ctx, &catalog.Register{
		SkipNodeUpdate: true, Node: &catalog.Node{Node: name, Datacenter: r.datacenter}, Checks: []*catalog.Check{check},
	})
}

// dated tells whether a time is one that a host can be missed since: a leader of an
// earlier version kept none, and one whose clock was wrong may have kept any.
func (r *reconciler) dated(since int64) bool {
	return since > 0 && time.UnixMilli(since).Sub(r.now()) <= r.reapAfter
}

func (r *reconciler) forget(ctx context.Context, name, why string) error {
	r.log.Info("a host is removed from the catalog", "node", name, "reason", why)
	delete(r.missed, name)
	_, _, err := r.raft.Apply(ctx, &catalog.Deregister{Node: name})
	return err
}

// forgotten removes the hosts that gossip knew as failed and knows no more: their time
// is over, or an operator said so.
func (r *reconciler) forgotten(ctx context.Context, known map[string]bool) error {
	before := r.known
	r.known = known
	var errs []error
	for name := range before {
		if known[name] || name == r.self {
			continue
		}
		have, err := r.read(name)
		if err == nil && have.node != nil && have.check != nil {
			err = r.forget(ctx, name, "gossip has forgotten it")
		}
		if err != nil {
			known[name] = true // once more, the next time
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
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
