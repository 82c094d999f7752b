package store

import (
	"cmp"
	"encoding/json"
	"maps"
	"slices"
	"strings"

	"pgregory.net/rapid"

	"github.com/weftmesh/weft/catalog"
)

// The model of keys, sessions and transactions.

func (m *model) putPair(p catalog.KVPair) catalog.KVPair {
	put(m, m.pairs, p.Key, p, func(p *catalog.KVPair) *catalog.RaftIndex { return &p.RaftIndex })
	return m.pairs[p.Key]
}

// endSessions ends those whose node or check is gone or critical.
func (m *model) endSessions() {
	for id, s := range m.sessions {
		_, live := m.nodes[s.Node]
		for _, c := range s.CheckIDs() {
			row, ok := m.checks[[2]string{s.Node, c}]
			live = live && ok && row.Status != catalog.StatusCritical
		}
		if !live {
			m.endSession(id)
		}
	}
}

func (m *model) endSession(id string) {
	s, ok := m.sessions[id]
	if !ok {
		return
	}
	delete(m.sessions, id)
	for key, p := range m.pairs {
		if p.Session != id {
			continue
		}
		if s.Behavior == catalog.SessionDelete {
			delete(m.pairs, key)
		} else {
			p.Session = ""
			m.putPair(p)
		}
		if s.LockDelay > 0 {
			at := catalog.RaftIndex{CreateIndex: cmp.Or(m.delays[key].CreateIndex, m.index), ModifyIndex: m.index}
			m.delays[key] = catalog.KeyDelay{Key: key, Delay: min(s.LockDelay, catalog.MaxLockDelay), RaftIndex: at}
		}
	}
}

func (m *model) doKV(cmd catalog.Command) (any, error) {
	switch c := cmd.(type) {
	case *catalog.SetKey:
		return m.setKey(c), nil
	case *catalog.DeleteKey:
		return m.deleteKey(c), nil
	case *catalog.DeleteKeys:
		maps.DeleteFunc(m.pairs, func(k string, _ catalog.KVPair) bool { return strings.HasPrefix(k, c.Prefix) })
		return nil, nil
	case *catalog.LockKey:
		return m.lock(c)
	case *catalog.UnlockKey:
		return m.unlock(c), nil
	case *catalog.EndKeyDelays:
		for _, d := range c.Delays {
			if m.delays[d.Key].ModifyIndex == d.ModifyIndex {
				delete(m.delays, d.Key)
			}
		}
		return nil, nil
	case *catalog.CreateSession:
		return nil, m.createSession(c)
	case *catalog.DestroySessions:
		for _, id := range c.IDs {
			m.endSession(id)
		}
		return nil, nil
	case *catalog.Txn:
		return m.txn(c), nil
	default:
		panic("the model does not know the command")
	}
}

func (m *model) createSession(c *catalog.CreateSession) error {
	s := c.Session
	if _, ok := m.sessions[s.ID]; ok {
		return catalog.ErrConflict
	}
	if _, ok := m.nodes[s.Node]; !ok {
		return catalog.ErrInvalid
	}
	for _, id := range s.CheckIDs() {
		if row, ok := m.checks[[2]string{s.Node, id}]; !ok || row.Status == catalog.StatusCritical {
			return catalog.ErrInvalid
		}
	}
	s.RaftIndex = catalog.RaftIndex{CreateIndex: m.index, ModifyIndex: m.index}
	m.sessions[s.ID] = s
	return nil
}

func (m *model) setKey(c *catalog.SetKey) bool {
	old := m.pairs[c.Pair.Key]
	if c.CAS && c.Index != old.ModifyIndex {
		return false
	}
	p := c.Pair
	p.LockIndex, p.Session = 0, old.Session
	m.putPair(p)
	return true
}

func (m *model) deleteKey(c *catalog.DeleteKey) bool {
	old, ok := m.pairs[c.Key]
	if ok && c.CAS && c.Index != old.ModifyIndex {
		return false
	}
	delete(m.pairs, c.Key)
	return true
}

func (m *model) lock(c *catalog.LockKey) (bool, error) {
	p := c.Pair
	if _, ok := m.sessions[p.Session]; !ok {
		return false, catalog.ErrInvalid
	}
	old := m.pairs[p.Key]
	_, delayed := m.delays[p.Key]
	if old.Session != p.Session && (old.Session != "" || delayed) {
		return false, nil
	}
	p.LockIndex = old.LockIndex
	if old.Session == "" {
		p.LockIndex++
	}
	m.putPair(p)
	return true, nil
}

func (m *model) unlock(c *catalog.UnlockKey) bool {
	old, ok := m.pairs[c.Pair.Key]
	if !ok || old.Session != c.Pair.Session {
		return false
	}
	p := c.Pair
	p.LockIndex, p.Session = old.LockIndex, ""
	m.putPair(p)
	return true
}

// txn answers with what of a transaction the model knows: which operations failed,
// or the keys in the results.
func (m *model) txn(c *catalog.Txn) *catalog.TxnResult {
	res := &catalog.TxnResult{}
	for i, op := range c.Ops {
		items, ok := m.op(op)
		m.endSessions()
		if !ok {
			res.Errors = append(res.Errors, catalog.TxnError{OpIndex: i})
		}
		res.Results = append(res.Results, items...)
	}
	if len(res.Errors) > 0 {
		res.Results = nil
	}
	return res
}

func (m *model) op(op catalog.TxnOp) (items []catalog.TxnItem, ok bool) {
	switch {
	case op.Check != nil:
		if _, ok := m.nodes[op.Check.Check.Node]; !ok || !m.putCheck(op.Check.Check.Node, op.Check.Check) {
			return nil, false
		}
		row := m.checks[[2]string{op.Check.Check.Node, op.Check.Check.CheckID}]
		return []catalog.TxnItem{{Check: &row}}, true
	case op.Node != nil:
		m.dropNode(op.Node.Node.Node)
		return nil, true
	}
	kv := op.KV
	key := kv.Pair.Key
	old, exists := m.pairs[key]
	row := func(value bool, ok bool) ([]catalog.TxnItem, bool) {
		p, there := m.pairs[key]
		if !ok || !there {
			return nil, ok
		}
		if !value {
			p.Value = nil
		}
		return []catalog.TxnItem{{KV: &p}}, true
	}
	switch kv.Verb {
	case catalog.TxnSet, catalog.TxnCAS:
		return row(false, m.setKey(&catalog.SetKey{Pair: kv.Pair, CAS: kv.Verb == catalog.TxnCAS, Index: kv.Index}))
	case catalog.TxnDelete, catalog.TxnDeleteCAS:
		return nil, m.deleteKey(&catalog.DeleteKey{Key: key, CAS: kv.Verb == catalog.TxnDeleteCAS, Index: kv.Index})
	case catalog.TxnLock:
		ok, _ := m.lock(&catalog.LockKey{Pair: kv.Pair})
		return row(false, ok)
	case catalog.TxnUnlock:
		return row(false, m.unlock(&catalog.UnlockKey{Pair: kv.Pair}))
	case catalog.TxnGet:
		return row(true, exists)
	case catalog.TxnCheckIndex:
		return row(false, exists && old.ModifyIndex == kv.Index)
	case catalog.TxnCheckSession:
		return row(false, exists && old.Session == kv.Pair.Session)
	case catalog.TxnCheckNotExists:
		return nil, !exists
	default:
		panic(kv.Verb)
	}
}

func (m *model) viewKV(v *catalog.View, q catalog.Query) {
	switch q.Kind {
	case catalog.QueryKey:
		v.Pairs = rowsOf(m.pairs, byPairKey, func(p *catalog.KVPair) bool { return p.Key == q.Name })
	case catalog.QueryKeyTree:
		v.Pairs = rowsOf(m.pairs, byPairKey, func(p *catalog.KVPair) bool { return strings.HasPrefix(p.Key, q.Name) })
	case catalog.QueryKeyNames:
		for key := range m.pairs {
			rest, ok := strings.CutPrefix(key, q.Name)
			if !ok {
				continue
			}
			if before, _, cut := strings.Cut(rest, q.Sub); cut && q.Sub != "" {
				key = q.Name + before + q.Sub
			}
			v.Keys = append(v.Keys, key)
		}
		slices.Sort(v.Keys)
		v.Keys = slices.Compact(v.Keys)
	case catalog.QueryKeyDelays:
		v.Delays = rowsOf(m.delays, func(a, b *catalog.KeyDelay) int { return cmp.Compare(a.Key, b.Key) }, func(*catalog.KeyDelay) bool { return true })
	case catalog.QuerySession:
		v.Sessions = rowsOf(m.sessions, bySessionID, func(s *catalog.Session) bool { return s.ID == q.Name })
	case catalog.QueryNodeSessions:
		v.Sessions = rowsOf(m.sessions, bySessionID, func(s *catalog.Session) bool { return s.Node == q.Name })
	case catalog.QuerySessions:
		v.Sessions = rowsOf(m.sessions, bySessionID, func(*catalog.Session) bool { return true })
	}
}

func byPairKey(a, b *catalog.KVPair) int    { return cmp.Compare(a.Key, b.Key) }
func bySessionID(a, b *catalog.Session) int { return cmp.Compare(a.ID, b.ID) }

// undone tells whether a transaction failed.
func undone(res any) bool {
	r, ok := res.(*catalog.TxnResult)
	return ok && len(r.Errors) > 0
}

// sameResult compares results of commands; the model has no words for failures.
func sameResult(got, want any) bool {
	g, ok := got.(*catalog.TxnResult)
	if !ok {
		return got == want
	}
	wordless := catalog.TxnResult{Results: g.Results}
	for _, e := range g.Errors {
		wordless.Errors = append(wordless.Errors, catalog.TxnError{OpIndex: e.OpIndex})
	}
	a, errA := json.Marshal(&wordless)
	b, errB := json.Marshal(want)
	return errA == nil && errB == nil && string(a) == string(b)
}

var (
	keyNames   = []string{"a", "a/", "a/b", "a/bc", "a/b/c", "a/b/d", "a//x", "b", "ba/r", "é/1"}
	sessionIDs = []string{"sess-1", "sess-2"}
)

func kvQueries() []catalog.Query {
	out := []catalog.Query{{Kind: catalog.QuerySessions}, {Kind: catalog.QueryKeyDelays}}
	for _, k := range append(keyNames, "never") {
		out = append(out, catalog.Query{Kind: catalog.QueryKey, Name: k})
	}
	for _, p := range []string{"", "a", "a/", "a/b", "a/b/", "a/b/c", "b", "ba", "ba/", "é", "\u00e9/", "never", "never/"} {
		out = append(out, catalog.Query{Kind: catalog.QueryKeyTree, Name: p}, catalog.Query{Kind: catalog.QueryKeyNames, Name: p},
			catalog.Query{Kind: catalog.QueryKeyNames, Name: p, Sub: "/"}, catalog.Query{Kind: catalog.QueryKeyNames, Name: p, Sub: "b/"})
	}
	for _, s := range append(sessionIDs, "never") {
		out = append(out, catalog.Query{Kind: catalog.QuerySession, Name: s})
	}
	for _, n := range append(nodeNames, "never") {
		out = append(out, catalog.Query{Kind: catalog.QueryNodeSessions, Name: n})
	}
	return out
}

func drawPair(t *rapid.T) catalog.KVPair {
	return catalog.KVPair{
		Key: pick(t, keyNames, "key"), Value: pick(t, [][]byte{nil, []byte("1"), []byte("2")}, "value"),
		Flags: uint64(rapid.IntRange(0, 1).Draw(t, "flags")),
	}
}

func drawLocked(t *rapid.T) catalog.KVPair {
	p := drawPair(t)
	p.Session = pick(t, sessionIDs, "session")
	return p
}

func drawKVCommand(t *rapid.T, at uint64) catalog.Command {
	cas := rapid.IntRange(0, 2).Draw(t, "cas") == 0
	switch rapid.IntRange(0, 14).Draw(t, "KV command") {
	case 0, 1, 2:
		return &catalog.SetKey{Pair: drawPair(t), CAS: cas, Index: at}
	case 3, 4:
		return &catalog.DeleteKey{Key: pick(t, keyNames, "key"), CAS: cas, Index: at}
	case 5:
		return &catalog.DeleteKeys{Prefix: pick(t, []string{"", "a", "a/b", "a/", "b"}, "prefix")}
	case 6, 7, 8:
		return &catalog.LockKey{Pair: drawLocked(t)}
	case 9:
		return &catalog.UnlockKey{Pair: drawLocked(t)}
	case 10:
		return &catalog.EndKeyDelays{Delays: []catalog.KeyDelay{{Key: pick(t, keyNames, "key"), RaftIndex: catalog.RaftIndex{ModifyIndex: at}}}}
	case 11, 12:
		s := catalog.Session{
			ID: pick(t, sessionIDs, "session"), Node: pick(t, nodeNames, "node"),
			Behavior: pick(t, []string{catalog.SessionRelease, catalog.SessionDelete}, "behavior"),
		}
		if rapid.Bool().Draw(t, "delay") {
			s.LockDelay = 2 * catalog.MaxLockDelay
		}
		for _, id := range checkIDs {
			if rapid.IntRange(0, 3).Draw(t, "depends on "+id) == 0 {
				s.NodeChecks = append(s.NodeChecks, id)
			}
		}
		return &catalog.CreateSession{Session: s}
	case 13:
		return &catalog.DestroySessions{IDs: []string{pick(t, sessionIDs, "session")}}
	default:
		c := &catalog.Txn{}
		for range rapid.IntRange(1, 4).Draw(t, "operations") {
			c.Ops = append(c.Ops, drawOp(t, at))
		}
		return c
	}
}

func drawOp(t *rapid.T, at uint64) catalog.TxnOp {
	switch rapid.IntRange(0, 6).Draw(t, "operation") {
	case 0:
		c := drawCheck(t, pick(t, checkIDs, "check"))
		c.Node = pick(t, nodeNames, "node")
		return catalog.TxnOp{Check: &catalog.CheckOp{Verb: catalog.TxnSet, Check: *c}}
	case 1:
		return catalog.TxnOp{Node: &catalog.NodeOp{Verb: catalog.TxnDelete, Node: catalog.Node{Node: pick(t, nodeNames, "node")}}}
	default:
		verb := pick(t, []catalog.TxnVerb{
			catalog.TxnSet, catalog.TxnSet, catalog.TxnCAS, catalog.TxnDelete, catalog.TxnDeleteCAS, catalog.TxnLock, catalog.TxnUnlock,
			catalog.TxnGet, catalog.TxnCheckIndex, catalog.TxnCheckSession, catalog.TxnCheckNotExists,
		}, "verb")
		return catalog.TxnOp{KV: &catalog.KVOp{Verb: verb, Pair: drawLocked(t), Index: at}}
	}
}
