package store

import (
	"errors"

	"github.com/weftmesh/weft/catalog"
)

// errUndone tells Apply that a transaction failed: its result counts, its writes do not.
var errUndone = errors.New("the transaction is undone")

// ReadTxn answers a transaction that changes nothing, as of one moment, which the
// index names.
func (s *Store) ReadTxn(c *catalog.Txn) (*catalog.TxnResult, uint64, error) {
	if err := c.Validate(); err != nil {
		return nil, 0, err
	}
	if !c.ReadOnly() {
		return nil, 0, catalog.Invalidf("transaction: it does not only read")
	}
	// A writer that is thrown away: one code path for both ways.
	m := s.state.Load().now.Load()
	w := newWriter(m, m.applied+1)
	result, _ := w.transaction(c) // that it failed is in the result
	return result, max(m.applied, 1), nil
}

func (w *writer) transaction(c *catalog.Txn) (*catalog.TxnResult, error) {
	result := &catalog.TxnResult{}
	for i := range c.Ops {
		op := &c.Ops[i]
		err := op.Validate()
		var items []catalog.TxnItem
		if err == nil {
			items, err = w.operation(op)
		}
		if err != nil {
			result.Errors = append(result.Errors, catalog.TxnError{OpIndex: i, What: err.Error()})
			continue
		}
		result.Results = append(result.Results, items...)
	}
	if len(result.Errors) > 0 {
		result.Results = nil
		return result, errUndone
	}
	return result, nil
}

func (w *writer) operation(op *catalog.TxnOp) ([]catalog.TxnItem, error) {
	switch {
	case op.KV != nil:
		return w.kvOp(op.KV)
	case op.Node != nil:
		n, err := w.nodeOp(op.Node)
		return item(catalog.TxnItem{Node: n}, n == nil, err)
	case op.Service != nil:
		s, err := w.serviceOp(op.Service)
		return item(catalog.TxnItem{Service: s}, s == nil, err)
	default:
		c, err := w.checkOp(op.Check)
		return item(catalog.TxnItem{Check: c}, c == nil, err)
	}
}

func item(i catalog.TxnItem, none bool, err error) ([]catalog.TxnItem, error) {
	if err != nil || none {
		return nil, err
	}
	return []catalog.TxnItem{i}, nil
}

func (w *writer) kvOp(op *catalog.KVOp) ([]catalog.TxnItem, error) {
	key := op.Pair.Key
	switch op.Verb {
	case catalog.TxnGetTree:
		var out []catalog.TxnItem
		for _, p := range w.pairs(key) {
			out = append(out, catalog.TxnItem{KV: p})
		}
		return out, nil
	case catalog.TxnGet, catalog.TxnGetOrEmpty:
		p, ok := w.pair(key)
		switch {
		case !ok && op.Verb == catalog.TxnGet:
			return nil, noKey(key)
		case !ok:
			p = &catalog.KVPair{Key: key}
		}
		return []catalog.TxnItem{{KV: p}}, nil
	case catalog.TxnDelete, catalog.TxnDeleteCAS:
		if !w.deleteKey(&catalog.DeleteKey{Key: key, CAS: op.Verb == catalog.TxnDeleteCAS, Index: op.Index}) {
			return nil, catalog.Conflictf("failed to delete key %q, index is stale", key)
		}
		return nil, nil
	case catalog.TxnDeleteTree:
		w.deleteKeys(key)
		return nil, nil
	case catalog.TxnCheckNotExists:
		if _, ok := w.pair(key); ok {
			return nil, catalog.Conflictf("key %q exists", key)
		}
		return nil, nil
	}
	p, err := w.kvRow(op)
	if err != nil {
		return nil, err
	}
	bare := *p
	bare.Value = nil
	return []catalog.TxnItem{{KV: &bare}}, nil
}

func noKey(key string) error { return catalog.NotFoundf("key %q doesn't exist", key) }

// kvRow does the operations that give the row of the key, without its value.
func (w *writer) kvRow(op *catalog.KVOp) (*catalog.KVPair, error) {
	key := op.Pair.Key
	switch op.Verb {
	case catalog.TxnSet, catalog.TxnCAS:
		p, ok := w.setKey(&catalog.SetKey{Pair: op.Pair, CAS: op.Verb == catalog.TxnCAS, Index: op.Index})
		if !ok {
			return nil, catalog.Conflictf("failed to set key %q, index is stale", key)
		}
		return p, nil
	case catalog.TxnLock:
		p, ok, err := w.lockKey(&catalog.LockKey{Pair: op.Pair})
		if err != nil || ok {
			return p, err
		}
		if _, held := w.delay(key); held {
			return nil, catalog.Conflictf("failed to lock key %q, the lock delay of its last holder is not over", key)
		}
		return nil, catalog.Conflictf("failed to lock key %q, lock is already held", key)
	case catalog.TxnUnlock:
		p, ok := w.unlockKey(&catalog.UnlockKey{Pair: op.Pair})
		if !ok {
			return nil, catalog.Conflictf("failed to unlock key %q, lock isn't held, or is held by another session", key)
		}
		return p, nil
	}
	p, ok := w.pair(key)
	switch {
	case !ok:
		return nil, noKey(key)
	case op.Verb == catalog.TxnCheckSession && p.Session != op.Pair.Session:
		return nil, catalog.Conflictf("failed session check for key %q, current session %q != %q", key, p.Session, op.Pair.Session)
	case op.Verb == catalog.TxnCheckIndex && p.ModifyIndex != op.Index:
		return nil, catalog.Conflictf("failed index check for key %q, current modify index %d != %d", key, p.ModifyIndex, op.Index)
	default:
		return p, nil
	}
}

func (w *writer) nodeOp(op *catalog.NodeOp) (*catalog.Node, error) {
	name := op.Node.Node
	old, exists := w.node(name)
	if name == "" {
		name = op.Node.ID
		old, exists = w.nodeByID(name)
	}
	var modified uint64
	if exists {
		modified = old.ModifyIndex
	}
	stale := casLost(true, op.Node.ModifyIndex, modified)
	switch op.Verb {
	case catalog.TxnGet:
		if !exists {
			return nil, catalog.NotFoundf("node %q doesn't exist", name)
		}
		return old, nil
	case catalog.TxnDelete, catalog.TxnDeleteCAS:
		if op.Verb == catalog.TxnDeleteCAS && exists && stale {
			return nil, catalog.Conflictf("failed to delete node %q, index is stale", name)
		}
		w.dropNode(name)
		return nil, nil
	}
	if op.Verb == catalog.TxnCAS && stale {
		return nil, catalog.Conflictf("failed to set node %q, index is stale", name)
	}
	if err := w.claimNode(&op.Node); err != nil {
		return nil, err
	}
	row, _ := w.node(name)
	return row, nil
}

func (w *writer) serviceOp(op *catalog.ServiceOp) (*catalog.Service, error) {
	id := op.Service.ID
	old, exists := w.service(op.Node, id)
	var modified uint64
	if exists {
		modified = old.Service.ModifyIndex
	}
	stale := casLost(true, op.Service.ModifyIndex, modified)
	switch op.Verb {
	case catalog.TxnGet:
		if !exists {
			return nil, catalog.NotFoundf("service %q on node %q doesn't exist", id, op.Node)
		}
		return old.Service, nil
	case catalog.TxnDelete, catalog.TxnDeleteCAS:
		if op.Verb == catalog.TxnDeleteCAS && exists && stale {
			return nil, catalog.Conflictf("failed to delete service %q on node %q, index is stale", id, op.Node)
		}
		if exists {
			w.dropService(old)
		}
		return nil, nil
	}
	if op.Verb == catalog.TxnCAS && stale {
		return nil, catalog.Conflictf("failed to set service %q on node %q, index is stale", id, op.Node)
	}
	if _, ok := w.node(op.Node); !ok {
		return nil, catalog.NotFoundf("Missing node registration: node %q doesn't exist", op.Node)
	}
	if w.putService(op.Node, &op.Service) {
		w.refreshChecks(op.Node, id)
	}
	row, _ := w.service(op.Node, id)
	return row.Service, nil
}

func (w *writer) checkOp(op *catalog.CheckOp) (*catalog.Check, error) {
	node, id := op.Check.Node, op.Check.CheckID
	old, exists := w.check(node, id)
	var modified uint64
	if exists {
		modified = old.ModifyIndex
	}
	stale := casLost(true, op.Check.ModifyIndex, modified)
	switch op.Verb {
	case catalog.TxnGet:
		if !exists {
			return nil, catalog.NotFoundf("check %q on node %q doesn't exist", id, node)
		}
		return old, nil
	case catalog.TxnDelete, catalog.TxnDeleteCAS:
		if op.Verb == catalog.TxnDeleteCAS && exists && stale {
			return nil, catalog.Conflictf("failed to delete check %q on node %q, index is stale", id, node)
		}
		if exists {
			w.dropCheck(old)
		}
		return nil, nil
	}
	if op.Verb == catalog.TxnCAS && stale {
		return nil, catalog.Conflictf("failed to set check %q on node %q, index is stale", id, node)
	}
	if _, ok := w.node(node); !ok {
		return nil, catalog.NotFoundf("Missing node registration: node %q doesn't exist", node)
	}
	if err := w.registerCheck(node, &op.Check); err != nil {
		return nil, err
	}
	row, _ := w.check(node, id)
	return row, nil
}
