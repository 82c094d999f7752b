package server

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/catalog/store"
	"github.com/weftmesh/weft/connect/enroll"
)

// registrar decides which nodes join the cluster, and which connect, by what all
// servers know.
type registrar struct {
	servers    func() []string
	keys       func() [][]byte // nil: gossip has none
	members    func() []catalog.Member
	shun       func(who func(id string) bool) // has gossip take revoked nodes for failed
	log        *slog.Logger
	datacenter string
	// current gives what is revoked, once this server knows all that it knew before it
	// was restarted or, for an agent, that the leader knew when it was new.
	current func(ctx context.Context, server bool) (*catalog.View, error)

	mu      sync.Mutex                   // one publishes at a time
	revoked atomic.Pointer[catalog.View] // of QueryRevocations; nil before the store is there
	// ahead are the nodes that the log revokes in entries of which this server, since it
	// was started, has not heard yet whether they are committed. nil: there are none.
	ahead atomic.Pointer[map[string]bool]
}

var _ enroll.Registrar = (*registrar)(nil)

// Admit implements enroll.Registrar.
func (r *registrar) Admit(ctx context.Context, a enroll.Admission) (enroll.Grant, error) {
	revoked, err := r.current(ctx, a.Renewal != nil && a.Renewal.Role == enroll.RoleServer)
	if err != nil {
		return enroll.Grant{}, enroll.Refuse(enroll.ReasonUnavailable,
			"this server does not know yet what was revoked: it waits for a leader since it was started; ask again, or another server")
	}
	if a.TokenID != "" && revoked.Revoked(catalog.RevokedToken, a.TokenID) {
		return enroll.Grant{}, enroll.Refuse(enroll.ReasonTokenRevoked,
			"the join token %s was revoked; make another with weft join-token", a.TokenID)
	}
	if revoked.Revoked(catalog.RevokedNode, a.NodeID) {
		return enroll.Grant{}, enroll.Refuse(enroll.ReasonNodeRevoked,
			"node %s was revoked; an operator can allow it again, or remove the data directory here and join with a new token as another node", a.NodeID)
	}
	for _, m := range r.members() {
		if err := clash(a, m); err != nil {
			return enroll.Grant{}, err
		}
	}
	g := enroll.Grant{Servers: r.servers()}
	if r.keys != nil {
		g.GossipKeys = r.keys()
	}
	return g, nil
}

// clash refuses a node that would be taken for a living one.
func clash(a enroll.Admission, m catalog.Member) error {
	if m.Status != catalog.MemberAlive {
		return nil
	}
	// The catalog takes IDs that differ in their case for the same, too.
	sameName, sameID := strings.EqualFold(m.Name, a.Node), m.ID != "" && strings.EqualFold(m.ID, a.NodeID)
	const cloned = "was this host cloned from it? Remove the data directory here, and node_id from the configuration, to get an ID of its own"
	switch {
	case sameName && !sameID:
		return enroll.Refuse(enroll.ReasonNameTaken,
			"the name %q is that of a living node with the ID %s at %s, this one has the ID %s; give it another node_name, or stop the other",
			a.Node, m.ID, m.Addr, a.NodeID)
	case sameID && !sameName:
		return enroll.Refuse(enroll.ReasonNodeIDInUse, "the node ID %s is that of the living node %q at %s; "+cloned, a.NodeID, m.Name, m.Addr)
	case sameID && a.Renewal == nil && elsewhere(a.Remote, m.Addr):
		return enroll.Refuse(enroll.ReasonNodeIDInUse,
			"node %q with the ID %s lives at %s, and now one asks from %s; "+cloned+"; if the host has moved, wait until the other members miss it at its old address",
			m.Name, a.NodeID, m.Addr, a.Remote)
	}
	return nil
}

// elsewhere tells whether remote is another host than addr.
func elsewhere(remote net.Addr, addr string) bool {
	t, ok := remote.(*net.TCPAddr)
	ip := net.ParseIP(addr)
	return ok && ip != nil && !t.IP.Equal(ip) && !t.IP.IsLoopback()
}

// admit judges a connection by its certificate alone. A newcomer has none.
func (r *registrar) admit(p enroll.Peer) error {
	if p.Datacenter != r.datacenter {
		return fmt.Errorf("%s: this is datacenter %q; set datacenter in its configuration", p, r.datacenter)
	}
	v := r.revoked.Load()
	switch ahead := r.ahead.Load(); {
	case v == nil:
		return fmt.Errorf("%s: this server does not know yet which nodes were revoked", p)
	case v.Revoked(catalog.RevokedNode, p.NodeID):
		return fmt.Errorf("%s was revoked", p)
	case ahead != nil && (*ahead)[strings.ToLower(p.NodeID)]:
		return fmt.Errorf("%s was revoked by a command in this server's log; it waits for a leader to say whether that holds", p)
	}
	return nil
}

// foretell takes note of a revocation that is in the log and not in the store yet. All
// are told before anybody is judged.
func (r *registrar) foretell(cmd catalog.Command) {
	c, ok := cmd.(*catalog.Revoke)
	if !ok || c.Revocation.Kind != catalog.RevokedNode {
		return
	}
	ahead := r.ahead.Load()
	if ahead == nil {
		ahead = &map[string]bool{}
		r.ahead.Store(ahead)
	}
	(*ahead)[strings.ToLower(c.Revocation.ID)] = true
}

// know takes over what is revoked, unless something newer is known.
func (r *registrar) know(v *catalog.View) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if old := r.revoked.Load(); old == nil || v.Index >= old.Index {
		r.revoked.Store(v)
		r.shun(func(id string) bool { return v.Revoked(catalog.RevokedNode, id) })
	}
}

// settle forgets what the log foretold, once the store has it, or has it not for good.
func (r *registrar) settle(ctx context.Context, caughtUp func(context.Context) error, st *store.Store) {
	if r.ahead.Load() == nil {
		return
	}
	if err := caughtUp(ctx); err != nil {
		return // ctx ended, or this server stops
	}
	v, err := st.Read(catalog.Query{Kind: catalog.QueryRevocations})
	if err != nil {
		return // the store ended
	}
	r.know(v)
	r.ahead.Store(nil)
}

// follow keeps what is revoked at hand until ctx ends, and has the connections of
// nodes that are revoked closed.
func (r *registrar) follow(ctx context.Context, st *store.Store, closeIf func(func(tls.ConnectionState) bool) int) {
	w := st.WatchOwn(catalog.Query{Kind: catalog.QueryRevocations})
	for at := uint64(0); ; {
		v, index, err := w.Next(ctx, at)
		switch {
		case errors.Is(err, catalog.ErrStale): // a backup was restored: all is new
			w, at = st.WatchOwn(catalog.Query{Kind: catalog.QueryRevocations}), 0
			continue
		case err != nil:
			return // ctx or the store ended
		}
		at = index
		r.know(v)
		n := closeIf(func(cs tls.ConnectionState) bool {
			p, err := enroll.PeerOf(cs)
			return err == nil && v.Revoked(catalog.RevokedNode, p.NodeID)
		})
		if n > 0 {
			r.log.Warn("connections of revoked nodes were closed", "connections", n)
		}
	}
}
