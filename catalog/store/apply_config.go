package store

import (
	"github.com/weftmesh/weft/catalog"
)

// ownEntry makes a normalized copy of a command's entry, which then is the store's.
func ownEntry(e catalog.Entry) (catalog.ConfigEntry, error) {
	b, err := e.MarshalBinary()
	if err != nil {
		return nil, catalog.Invalidf("%s %s: %w", e.EntryKind(), e.EntryName(), err)
	}
	var own catalog.Entry
	if err := own.UnmarshalBinary(b); err != nil {
		return nil, err
	}
	own.Normalize()
	return own.ConfigEntry, own.Validate()
}

// casLost tells whether a check-and-set on a thing last changed at modified,
// 0 for none, has lost.
func casLost(cas bool, index, modified uint64) bool { return cas && index != modified }

func (w *writer) modifiedEntry(kind, name string) uint64 {
	if e, ok := w.entry(kind, name); ok {
		return e.Raft().ModifyIndex
	}
	return 0
}

func (w *writer) setEntry(c *catalog.SetConfigEntry) (any, error) {
	e, err := ownEntry(c.Entry)
	if err != nil {
		return nil, err
	}
	if casLost(c.CAS, c.Index, w.modifiedEntry(e.EntryKind(), e.EntryName())) {
		return false, nil
	}
	if s, ok := e.(catalog.StatusEntry); ok {
		*s.EntryStatus() = w.entryStatus(e.EntryKind(), e.EntryName())
	}
	w.putEntry(e)
	if err := w.checkReferences(e.EntryKind(), e.EntryName()); err != nil {
		return nil, err
	}
	return true, nil
}

// entryStatus is the status of an entry as the leader left it.
func (w *writer) entryStatus(kind, name string) catalog.EntryStatus {
	if old, ok := w.entry(kind, name); ok {
		return *old.(catalog.StatusEntry).EntryStatus()
	}
	return catalog.EntryStatus{}
}

func (w *writer) setEntryStatus(c *catalog.SetEntryStatus) (any, error) {
	old, ok := w.entry(c.Kind, c.Name)
	if !ok || old.Raft().ModifyIndex != c.Index {
		return false, nil
	}
	e, err := ownEntry(catalog.Entry{ConfigEntry: old})
	if err != nil {
		return nil, err
	}
	s, ok := e.(catalog.StatusEntry)
	if !ok {
		return nil, catalog.Invalidf("set status: %s %s has none", c.Kind, c.Name)
	}
	*s.EntryStatus() = c.Status
	w.putEntry(e)
	return true, nil
}

func (w *writer) deleteEntry(c *catalog.DeleteConfigEntry) (any, error) {
	if casLost(c.CAS, c.Index, w.modifiedEntry(c.Kind, c.Name)) {
		return false, nil
	}
	if e, ok := w.entry(c.Kind, c.Name); ok {
		w.dropEntry(e)
		if err := w.checkReferences(c.Kind, c.Name); err != nil {
			return nil, err
		}
	}
	return true, nil
}

func (w *writer) serviceIntentions(destination catalog.Name) (*catalog.ServiceIntentions, bool) {
	e, ok := w.entry(catalog.KindServiceIntentions, destination)
	if !ok {
		return nil, false
	}
	return e.(*catalog.ServiceIntentions), true
}

func (w *writer) setIntention(c *catalog.SetIntention) error {
	e := &catalog.ServiceIntentions{Name: c.Destination}
	if old, ok := w.serviceIntentions(c.Destination); ok {
		e = old.Clone()
	}
	src := c.Source
	at := findSource(e, src.Name, src.Peer)
	switch {
	case at < 0:
		e.Sources = append(e.Sources, &src)
	case c.CreateOnly:
		return catalog.Conflictf("Sources[%d] defines %q more than once", len(e.Sources), src.Name)
	default:
		e.Sources[at] = &src
	}
	// A copy once more, as Normalize may write below the command's source.
	e = e.Clone()
	e.Normalize()
	if err := e.Validate(); err != nil {
		return err
	}
	w.putEntry(e)
	return w.checkReferences(catalog.KindServiceIntentions, e.Name)
}

func findSource(e *catalog.ServiceIntentions, name catalog.Name, peer string) int {
	for i, s := range e.Sources {
		if s.Name == name && s.Peer == peer {
			return i
		}
	}
	return -1
}

func (w *writer) deleteIntention(c *catalog.DeleteIntention) {
	if c.ID != "" {
		for _, row := range all[*entryRow](w.reader, tableEntries, byKind, catalog.KindServiceIntentions) {
			e := row.Entry.(*catalog.ServiceIntentions)
			for i, s := range e.Sources {
				if s.LegacyID == c.ID {
					w.deleteSource(e, i)
					return
				}
			}
		}
		return
	}
	if e, ok := w.serviceIntentions(c.Destination); ok {
		if at := findSource(e, c.Source, c.SourcePeer); at >= 0 {
			w.deleteSource(e, at)
		}
	}
}

func (w *writer) deleteSource(e *catalog.ServiceIntentions, at int) {
	if len(e.Sources) == 1 {
		w.dropEntry(e)
		return
	}
	left := e.Clone()
	left.Sources = append(left.Sources[:at], left.Sources[at+1:]...)
	// Sources that went are those of the old entry alone: putEntry touches both.
	w.putEntry(left)
}

func (w *writer) setCAConfig(c *catalog.SetCAConfig) bool {
	old, exists := w.caConfig()
	var was catalog.CAConfig
	if exists {
		was = *old
	}
	if casLost(c.CAS, c.Index, was.ModifyIndex) {
		return false
	}
	row := c.Config
	if was.ClusterID != "" {
		row.ClusterID = was.ClusterID
	}
	if exists && same(&row, old) {
		return true
	}
	row.RaftIndex = w.stamp(was.RaftIndex)
	w.insert(tableCA, &row)
	w.touch(keyCAConfig)
	if row.ClusterID != was.ClusterID {
		w.touch(keyClusterID)
	}
	return true
}

// setRoots takes as Index either when the roots last changed or the index of the
// view that they were read from: both say that nobody changed them since.
func (w *writer) setRoots(c *catalog.SetRoots) bool {
	changed, _ := w.indexRow(nil, keyRoots)
	view := w.queryIndex(nil, catalog.Query{Kind: catalog.QueryRoots})
	if c.Index != changed && c.Index != view {
		return false
	}
	want := make(map[string]bool, len(c.Roots))
	touched := false
	for _, r := range c.Roots {
		want[r.ID] = true
		old, exists := first[*catalog.Root](w.reader, tableRoots, byID, r.ID)
		if exists && same(r, old) {
			continue
		}
		row := *r
		row.RaftIndex = catalog.RaftIndex{}
		if exists {
			row.RaftIndex = old.RaftIndex
		}
		row.RaftIndex = w.stamp(row.RaftIndex)
		w.insert(tableRoots, &row)
		touched = true
	}
	for _, old := range w.roots() {
		if !want[old.ID] {
			w.remove(tableRoots, old)
			touched = true
		}
	}
	if touched {
		w.touch(keyRoots)
	}
	return true
}
