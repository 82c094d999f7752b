package store

import (
	"slices"

	"github.com/weftmesh/weft/catalog"
)

// writer is commands at work, one after the other: a moment of its own, in which the
// index rows are kept in step with the rows that it writes.
type writer struct {
	reader
	txn     txnID
	keys    []string // those of pairs that were written or removed
	index   uint64   // of the command at work
	changed bool
	trial   bool // only whether anything changes is asked, not what
}

func newWriter(m *moment, index uint64) *writer {
	own := &moment{applied: m.applied, roots: slices.Clone(m.roots)}
	return &writer{reader: reader{moment: own, touched: map[string]uint64{}}, txn: nextTxn(), index: index}
}

// finish gives the moment after the last command, whose index is applied. The writer
// is of no use afterwards.
func (w *writer) finish(applied uint64) *moment {
	for key, index := range w.touched {
		row := &indexRow{Key: key, Index: index}
		if index != 0 {
			w.put(w.txn, tableIndex, row)
		} else if _, ok := w.find(tableIndex, key); ok {
			w.drop(w.txn, tableIndex, row)
		}
	}
	w.applied = applied
	return w.moment
}

// decided tells that a trial has nothing more to find out.
func (w *writer) decided() bool { return w.trial && w.changed }

func (w *writer) insert(t *table, row any) {
	w.put(w.txn, t, row)
	w.wrote(t, row)
}

func (w *writer) remove(t *table, row any) {
	w.drop(w.txn, t, row)
	w.wrote(t, row)
}

func (w *writer) wrote(t *table, row any) {
	if t == tableKV {
		w.keys = append(w.keys, pairOf(row).Key)
	}
	w.changed = true
}

// stamp gives the indexes of a row that is written over old, which may be zero.
func (w *writer) stamp(old catalog.RaftIndex) catalog.RaftIndex {
	if old.CreateIndex == 0 {
		old.CreateIndex = w.index
	}
	return catalog.RaftIndex{CreateIndex: old.CreateIndex, ModifyIndex: w.index}
}

// touch says that answers which rest on key change with this command.
func (w *writer) touch(key string) {
	w.touched[key] = w.index
	w.changed = true
}

func (w *writer) touchName(class, name string) { w.touch(classKey(class, name)) }

// retire drops the row of a name that is no more and leaves word that it changed.
func (w *writer) retire(class, name string) {
	if _, ok := w.indexRow(nil, classKey(class, name)); ok {
		w.touched[classKey(class, name)] = 0
	}
	w.touch(extinctKey(class, name))
}

// settle touches the name, or retires it when nothing in the table has it.
func (w *writer) settle(class, name string, t *table, index string, parts ...string) {
	if _, ok := first[any](w.reader, t, index, parts...); !ok {
		w.retire(class, name)
		return
	}
	w.touchName(class, name)
}

// touchInstance is called after the row, its node or one of its checks changed
// and while it is in the table, and so is its node.
func (w *writer) touchInstance(r *serviceRow) {
	w.touchName(classService, r.Service.Service)
	if n := r.connectName(); n != "" {
		w.touchName(classConnect, n)
	}
	w.touchName(classNode, r.Node)
}

// settleInstance is called after the row was changed or went.
func (w *writer) settleInstance(r *serviceRow) {
	w.settle(classService, r.Service.Service, tableServices, byName, r.Service.Service)
	if n := r.connectName(); n != "" {
		w.settle(classConnect, n, tableServices, byConnect, n)
	}
	w.settle(classNode, r.Node, tableNodes, byID, r.Node)
}

// touchInstancesOn does so for every service of a node.
func (w *writer) touchInstancesOn(node string) {
	for _, r := range all[*serviceRow](w.reader, tableServices, ofNode, node) {
		w.touchInstance(r)
	}
}

// putNode writes a node; created is the CreateIndex of the row that it was
// renamed from, else 0.
func (w *writer) putNode(n *catalog.Node, created uint64) {
	old, exists := w.node(n.Node)
	row := *n
	row.RaftIndex = catalog.RaftIndex{CreateIndex: created}
	if exists {
		row.RaftIndex = old.RaftIndex
		if row.ID == "" {
			row.ID = old.ID
		}
		if same(&row, old) {
			return
		}
	}
	row.RaftIndex = w.stamp(row.RaftIndex)
	w.insert(tableNodes, &row)
	w.touch(keyNodes)
	w.touchName(classNode, n.Node)
	if !exists {
		return
	}
	w.touchInstancesOn(n.Node)
	if _, ok := first[*serviceRow](w.reader, tableServices, ofNode, n.Node); ok {
		w.touch(keyInstances)
	}
}

// dropNode removes a node with all that is on it.
func (w *writer) dropNode(name string) {
	n, ok := w.node(name)
	if !ok {
		return
	}
	for _, r := range all[*serviceRow](w.reader, tableServices, ofNode, name) {
		w.dropService(r)
	}
	for _, c := range all[*catalog.Check](w.reader, tableChecks, ofNode, name) {
		w.dropCheck(c)
	}
	w.dropCoordinate(name)
	w.endSessions(byNode, name)
	w.remove(tableNodes, n)
	w.touch(keyNodes)
	w.retire(classNode, name)
}

// putService writes a service. Its checks are left to the caller, who may be about
// to write them: stale tells that those it had show a name or tags that it has no more.
func (w *writer) putService(node string, s *catalog.Service) (stale bool) {
	old, exists := w.service(node, s.ID)
	row := &serviceRow{Node: node}
	svc := *s
	row.Service = &svc
	svc.RaftIndex = catalog.RaftIndex{}
	if n := row.connectName(); n != "" {
		w.tagVirtualIP(&svc, n)
	}
	if exists {
		if same(&svc, old.Service) {
			return false
		}
		svc.RaftIndex = old.Service.RaftIndex
		stale = old.Service.Service != svc.Service || !same(old.Service.Tags, svc.Tags)
	}
	svc.RaftIndex = w.stamp(svc.RaftIndex)
	w.shareService(row)
	w.insert(tableServices, row)
	w.touch(keyInstances)
	w.touchInstance(row)
	if !exists || stale || old.Service.Address != svc.Address {
		w.touch(keySummaries)
	}
	if exists && (old.Service.Service != svc.Service || old.connectName() != row.connectName()) {
		w.settleInstance(old) // it has left a name, or come to speak for another
		if n := old.connectName(); n != "" {
			w.settleVirtualIP(n)
		}
	}
	return stale
}

// refreshChecks gives the checks of a service its present name and tags.
func (w *writer) refreshChecks(node, serviceID string) {
	of, ok := w.service(node, serviceID)
	if !ok {
		return
	}
	for _, c := range all[*catalog.Check](w.reader, tableChecks, byNodeService, node, serviceID) {
		w.putCheck(c, of)
	}
}

// dropService removes a service with its checks.
func (w *writer) dropService(r *serviceRow) {
	for _, c := range all[*catalog.Check](w.reader, tableChecks, byNodeService, r.Node, r.Service.ID) {
		w.dropCheck(c)
	}
	if st, ok := first[*statedRow](w.reader, tableStated, byID, r.Node, r.Service.ID); ok {
		w.remove(tableStated, st)
	}
	w.remove(tableServices, r)
	w.touch(keySummaries)
	w.touch(keyInstances)
	w.settleInstance(r)
	if n := r.connectName(); n != "" {
		w.settleVirtualIP(n)
	}
}

// putCheck writes a check of the node, or, with of, of that service.
func (w *writer) putCheck(c *catalog.Check, of *serviceRow) {
	row := *c
	row.ServiceName, row.ServiceTags = "", nil
	if row.Definition != nil && same(*row.Definition, catalog.CheckDefinition{}) {
		row.Definition = nil
	}
	if of != nil {
		row.ServiceName, row.ServiceTags = of.Service.Service, of.Service.Tags
	}
	old, exists := w.check(c.Node, c.CheckID)
	row.RaftIndex = catalog.RaftIndex{}
	if exists {
		if same(&row, old) {
			return
		}
		row.RaftIndex = old.RaftIndex
	}
	row.RaftIndex = w.stamp(row.RaftIndex)
	w.shareCheck(&row)
	w.insert(tableChecks, &row)
	if exists && (old.ServiceID != row.ServiceID || old.ServiceName != row.ServiceName) {
		w.settleCheck(old)
	} else if exists {
		w.touchName(classStatus, old.Status)
	}
	w.touchCheck(&row)
	if row.Status == catalog.StatusCritical {
		w.endSessions(byCheck, row.Node, row.CheckID)
	}
}

func (w *writer) dropCheck(c *catalog.Check) {
	w.remove(tableChecks, c)
	w.settleCheck(c)
	w.endSessions(byCheck, c.Node, c.CheckID)
}

// touchCheck is called once c is in the table.
func (w *writer) touchCheck(c *catalog.Check) {
	w.touchName(classNodeChecks, c.Node)
	if c.ServiceName != "" {
		w.touchName(classServiceChecks, c.ServiceName)
	}
	w.touchChecked(c)
}

// settleCheck is called once c was changed or is gone.
func (w *writer) settleCheck(c *catalog.Check) {
	w.settle(classNodeChecks, c.Node, tableChecks, ofNode, c.Node)
	if c.ServiceName != "" {
		w.settle(classServiceChecks, c.ServiceName, tableChecks, byName, c.ServiceName)
	}
	w.touchChecked(c)
}

// touchChecked says that the answers change which show c.
func (w *writer) touchChecked(c *catalog.Check) {
	w.touch(keyChecks)
	w.touchName(classStatus, c.Status)
	if c.ServiceID == "" {
		w.touchInstancesOn(c.Node)
		return
	}
	if r, ok := w.service(c.Node, c.ServiceID); ok {
		w.touchInstance(r)
	}
}

// putEntry writes a config entry that this command owns.
func (w *writer) putEntry(e catalog.ConfigEntry) {
	kind, name := e.EntryKind(), e.EntryName()
	old, exists := w.entry(kind, name)
	*e.Raft() = catalog.RaftIndex{}
	if exists {
		if same(e, old) {
			return
		}
		*e.Raft() = *old.Raft()
	}
	*e.Raft() = w.stamp(*e.Raft())
	w.insert(tableEntries, &entryRow{Entry: e})
	w.touchEntry(kind, name, old, e)
	if slices.Contains(kindsWithVirtualIP, kind) {
		w.wantVirtualIP(name)
	}
}

func (w *writer) dropEntry(e catalog.ConfigEntry) {
	w.remove(tableEntries, &entryRow{Entry: e})
	w.touchEntry(e.EntryKind(), e.EntryName(), e)
	if slices.Contains(kindsWithVirtualIP, e.EntryKind()) {
		w.settleVirtualIP(e.EntryName())
	}
}

func (w *writer) touchEntry(kind, name string, versions ...catalog.ConfigEntry) {
	w.touchName(classKind, kind)
	if kind == catalog.KindServiceIntentions {
		w.touchPatterns(name, versions)
	}
	w.settle(entryClass(kind), name, tableEntries, byID, kind, name)
	for _, e := range versions {
		if e == nil {
			continue
		}
		for _, src := range sourceNames(e) {
			w.settle(classSource, src, tableEntries, bySource, src)
		}
		if gw, ok := e.(*catalog.TerminatingGateway); ok {
			w.touchTerminating(gw)
		}
	}
}

// touchPatterns says so when versions of the intentions of a destination name patterns.
// The row is there from the first intention on, so that who watches it is woken by it
// alone.
func (w *writer) touchPatterns(destination catalog.Name, versions []catalog.ConfigEntry) {
	named := catalog.IsPartial(destination)
	for _, e := range versions {
		if e != nil {
			named = named || slices.ContainsFunc(sourceNames(e), catalog.IsPartial)
		}
	}
	if named {
		w.touch(keyPatterns)
	} else if _, ok := w.indexRow(nil, keyPatterns); !ok {
		w.touched[keyPatterns], w.changed = noPattern, true
	}
}
