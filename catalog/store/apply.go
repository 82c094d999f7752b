package store

import (
	"errors"
	"fmt"

	"github.com/weftmesh/weft/catalog"
)

// Apply changes the store by one command and returns its result, as the
// command's documentation has it. index is that of the log entry; it must grow
// from call to call, and be above 1, the index of what was never there (Raft's
// first entry is no command). A command that the state refuses, or whose type this version
// does not know, changes nothing but the index, and its error wraps a sentinel.
//
// The command must not be changed afterwards: the store keeps parts of it.
func (s *Store) Apply(index uint64, cmd catalog.Command) (any, error) {
	out := s.ApplyBatch([]Entry{{index, cmd}})
	return out[0].Value, out[0].Err
}

// Entry is a command and the index of its log entry.
type Entry struct {
	Index   uint64
	Command catalog.Command
}

// Result is what applying one entry gave.
type Result struct {
	Value any
	Err   error
}

// ApplyBatch does for each entry, in their order, what Apply does, and gives their
// results. The state, its indexes included, is that of applying them one by one;
// readers see those in between only where an entry was refused.
func (s *Store) ApplyBatch(entries []Entry) []Result {
	s.writes.Lock()
	defer s.writes.Unlock()
	out := make([]Result, len(entries))
	st := s.state.Load()
	for done := 0; done < len(entries); {
		n, last := st.applySome(entries[done:], out[done:])
		if last != 0 {
			st.applied.Set(last, struct{}{})
		}
		done += n
	}
	return out
}

// applySome applies entries up to the first that fails, that one included, which
// leaves its index only. It gives their number and the index of the last, 0 when
// nothing was written.
func (st *state) applySome(entries []Entry, out []Result) (n int, last uint64) {
	w := newWriter(st.now.Load(), 0)
	had := w.lastIndex()
	for i, e := range entries {
		if out[i].Err = follows(e.Index, max(had, last)); out[i].Err != nil {
			continue
		}
		last, w.index = e.Index, e.Index
		value, err := w.apply(e.Command)
		if err == nil {
			out[i].Value = value
			continue
		}
		// What this one wrote goes with all else of the transaction: the others are
		// applied again.
		w = newWriter(st.now.Load(), 0)
		w.again(entries[:i], out)
		if errors.Is(err, errUndone) {
			out[i].Value = value
		} else {
			out[i].Err = err
		}
		st.commit(w, last)
		return i + 1, last
	}
	if last != 0 {
		st.commit(w, last)
	}
	return len(entries), last
}

// again applies entries that were applied once, from the same state, without an error.
func (w *writer) again(entries []Entry, out []Result) {
	for i, e := range entries {
		if out[i].Err != nil {
			continue // it was not applied
		}
		w.index = e.Index
		if _, err := w.apply(e.Command); err != nil {
			panic(fmt.Sprintf("store: log entry %d fails when it is applied again: %v", e.Index, err))
		}
	}
}

// follows refuses an index that cannot come after last.
func follows(index, last uint64) error {
	switch {
	case index <= 1:
		return catalog.Invalidf("log entry %d: commands begin at index 2", index)
	case index <= last:
		return catalog.Conflictf("log entry %d: the store is at %d already", index, last)
	}
	return nil
}

func (w *writer) apply(cmd catalog.Command) (any, error) {
	switch c := cmd.(type) {
	case *catalog.SyncNode:
		return nil, w.syncNode(c)
	case *catalog.Register:
		return nil, w.register(c)
	case *catalog.Deregister:
		w.deregister(c)
		return nil, nil
	case *catalog.SetConfigEntry:
		return w.setEntry(c)
	case *catalog.DeleteConfigEntry:
		return w.deleteEntry(c)
	case *catalog.SetEntryStatus:
		return w.setEntryStatus(c)
	case *catalog.SetIntention:
		return nil, w.setIntention(c)
	case *catalog.DeleteIntention:
		w.deleteIntention(c)
		return nil, nil
	case *catalog.SetCAConfig:
		return w.setCAConfig(c), nil
	case *catalog.SetRoots:
		return w.setRoots(c), nil
	case *catalog.Txn:
		return w.transaction(c)
	default:
		return w.applyKV(cmd)
	}
}

func (w *writer) applyKV(cmd catalog.Command) (any, error) {
	switch c := cmd.(type) {
	case *catalog.SetKey:
		_, ok := w.setKey(c)
		return ok, nil
	case *catalog.DeleteKey:
		return w.deleteKey(c), nil
	case *catalog.DeleteKeys:
		w.deleteKeys(c.Prefix)
		return nil, nil
	case *catalog.LockKey:
		_, ok, err := w.lockKey(c)
		return ok, err
	case *catalog.UnlockKey:
		_, ok := w.unlockKey(c)
		return ok, nil
	case *catalog.EndKeyDelays:
		w.endKeyDelays(c)
		return nil, nil
	case *catalog.CreateSession:
		return nil, w.createSession(c)
	case *catalog.DestroySessions:
		for _, id := range c.IDs {
			w.endSessions(byID, id)
		}
		return nil, nil
	default:
		return w.applyOperator(cmd)
	}
}

// leaderService and leaderCheck are the rows of a host that its agent does not
// speak for: a statement neither writes nor removes them.
func leaderService(s *catalog.Service) bool {
	return s.Service == catalog.ServerService && s.ID == catalog.ServerService
}

func leaderCheck(c *catalog.Check) bool { return c.CheckID == catalog.NodeCheckID }

func (w *writer) syncNode(c *catalog.SyncNode) error {
	node := c.State.Node.Node
	if err := w.claimNode(c.State.Node); err != nil {
		return err
	}
	services := make(map[string]bool, len(c.State.Services))
	for _, s := range c.State.Services {
		if w.decided() {
			return nil
		}
		if leaderService(s) {
			continue
		}
		services[s.ID] = true
		w.putService(node, w.keepOverriddenTags(node, s))
	}
	// Checks first: one that moved to another service must not go with its old one.
	if err := w.syncChecks(node, c.State.Checks); err != nil {
		return err
	}
	for _, r := range all[*serviceRow](w.reader, tableServices, ofNode, node) {
		if !services[r.Service.ID] && !leaderService(r.Service) {
			w.dropService(r)
		}
	}
	return nil
}

func (w *writer) syncChecks(node string, stated []*catalog.Check) error {
	checks := make(map[string]bool, len(stated))
	for _, ch := range stated {
		if w.decided() {
			return nil
		}
		if leaderCheck(ch) {
			continue
		}
		checks[ch.CheckID] = true
		if err := w.registerCheck(node, ch); err != nil {
			return err
		}
	}
	for _, ch := range all[*catalog.Check](w.reader, tableChecks, ofNode, node) {
		if of, ok := w.service(node, ch.ServiceID); ok && leaderService(of.Service) {
			continue
		}
		if !checks[ch.CheckID] && !leaderCheck(ch) {
			w.dropCheck(ch)
		}
	}
	return nil
}

// keepOverriddenTags gives the service as the catalog shall have it: with
// EnableTagOverride, tags that others set stay until the agent states new ones.
func (w *writer) keepOverriddenTags(node string, s *catalog.Service) *catalog.Service {
	stated, had := first[*statedRow](w.reader, tableStated, byID, node, s.ID)
	if !s.EnableTagOverride {
		if had {
			w.remove(tableStated, stated)
		}
		return s
	}
	old, exists := w.service(node, s.ID)
	if had && exists && same(stated.Tags, s.Tags) {
		kept := *s
		kept.Tags = old.Service.Tags
		return &kept
	}
	w.insert(tableStated, &statedRow{Node: node, ServiceID: s.ID, Tags: s.Tags})
	return s
}

func (w *writer) register(c *catalog.Register) error {
	node := c.Node.Node
	if _, exists := w.node(node); !exists || !c.SkipNodeUpdate {
		if err := w.claimNode(c.Node); err != nil {
			return err
		}
	}
	stale := c.Service != nil && w.putService(node, c.Service)
	for _, ch := range c.Checks {
		if err := w.registerCheck(node, ch); err != nil {
			return err
		}
	}
	if stale {
		w.refreshChecks(node, c.Service.ID)
	}
	return nil
}

func (w *writer) registerCheck(node string, c *catalog.Check) error {
	row := *c
	row.Node = node
	if row.ServiceID == "" {
		w.putCheck(&row, nil)
		return nil
	}
	of, ok := w.service(node, row.ServiceID)
	if !ok {
		return catalog.NotFoundf("check %q: the service ID %q is not registered on node %s", c.CheckID, c.ServiceID, node)
	}
	w.putCheck(&row, of)
	return nil
}

// claimNode writes the node row. The ID says which host it is: under another
// name the host was renamed, and what stood under the old one goes. A name that
// another host holds is given up only by a host that is not alive.
func (w *writer) claimNode(n *catalog.Node) error {
	if n.ID == "" {
		w.putNode(n, 0)
		return nil
	}
	if holder, ok := w.node(n.Node); ok && holder.ID != "" && !sameID(holder.ID, n.ID) {
		alive, ok := w.check(n.Node, catalog.NodeCheckID)
		if ok && alive.Status == catalog.StatusPassing {
			return catalog.Conflictf("node %s: the name is held by a live host with ID %s; give the host with ID %s another node_name",
				n.Node, holder.ID, n.ID)
		}
	}
	var created uint64
	if old, ok := w.nodeByID(n.ID); ok && old.Node != n.Node {
		created = old.CreateIndex
		w.dropNode(old.Node)
	}
	w.putNode(n, created)
	return nil
}

func (w *writer) deregister(c *catalog.Deregister) {
	switch {
	case c.ServiceID != "":
		if r, ok := w.service(c.Node, c.ServiceID); ok {
			w.dropService(r)
		}
	case c.CheckID != "":
		if ch, ok := w.check(c.Node, c.CheckID); ok {
			w.dropCheck(ch)
		}
	default:
		w.dropNode(c.Node)
	}
}
