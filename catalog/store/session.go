package store

import (
	"github.com/weftmesh/weft/catalog"
)

func (r reader) session(id string) (*catalog.Session, bool) {
	return first[*catalog.Session](r, tableSessions, byID, id)
}

// sessionChecks are the checks that a session depends on, as they are found.
func sessionChecks(s *catalog.Session) [][]string {
	seen := map[string]bool{}
	var keys [][]string
	for _, id := range s.CheckIDs() {
		if !seen[id] {
			seen[id] = true
			keys = append(keys, []string{s.Node, id})
		}
	}
	return keys
}

func (w *writer) createSession(c *catalog.CreateSession) error {
	s := c.Session
	if _, ok := w.session(s.ID); ok {
		return catalog.Conflictf("session %s: it exists already", s.ID)
	}
	if _, ok := w.node(s.Node); !ok {
		return catalog.Invalidf("Missing node registration")
	}
	for _, id := range s.CheckIDs() {
		ch, ok := w.check(s.Node, id)
		if !ok {
			return catalog.Invalidf("Missing check '%s' registration", id)
		}
		if ch.Status == catalog.StatusCritical {
			return catalog.Invalidf("Check '%s' is in %s state", id, ch.Status)
		}
	}
	s.RaftIndex = w.stamp(catalog.RaftIndex{})
	w.insert(tableSessions, &s)
	w.touchSession(&s)
	return nil
}

func (w *writer) touchSession(s *catalog.Session) {
	w.touch(keySessions)
	w.settle(classSession, s.ID, tableSessions, byID, s.ID)
	w.settle(classNodeSessions, s.Node, tableSessions, byNode, s.Node)
}

// endSessions ends every session that an index of the table finds.
func (w *writer) endSessions(index string, parts ...string) {
	for _, s := range all[*catalog.Session](w.reader, tableSessions, index, parts...) {
		w.endSession(s)
	}
}

// endSession removes a session and lets go of what it holds.
func (w *writer) endSession(s *catalog.Session) {
	w.remove(tableSessions, s)
	w.touchSession(s)
	for _, q := range all[*catalog.PreparedQuery](w.reader, tableQueries, bySession, s.ID) {
		w.remove(tableQueries, q)
		w.touch(keyQueries)
	}
	held := all[*catalog.KVPair](w.reader, tableKV, bySession, s.ID)
	if s.Behavior == catalog.SessionDelete {
		w.dropPairs(held...)
	} else {
		for _, p := range held {
			free := *p
			free.Session = ""
			w.putPair(free)
		}
	}
	delay := min(s.LockDelay, catalog.MaxLockDelay)
	if delay <= 0 {
		return
	}
	for _, p := range held {
		d := &catalog.KeyDelay{Key: p.Key, Delay: delay}
		if old, ok := w.delay(p.Key); ok {
			d.RaftIndex = old.RaftIndex
		}
		d.RaftIndex = w.stamp(d.RaftIndex)
		w.insert(tableDelays, d)
		w.touch(keyDelays)
	}
}
