package store

import (
	"slices"
	"strings"

	"github.com/weftmesh/weft/catalog"
)

func pairOf(row any) *catalog.KVPair { return row.(*catalog.KVPair) }

func (r reader) pair(key string) (*catalog.KVPair, bool) {
	return first[*catalog.KVPair](r, tableKV, byID, key)
}

func (r reader) pairs(prefix string) []*catalog.KVPair {
	return slices.Collect(r.pairsFrom(prefix, prefix))
}

// keyNames lists the keys with the prefix. With a separator, a key is cut after the
// first one beyond the prefix, and what is cut alike is there once; such keys are
// stepped over and not walked.
func (r reader) keyNames(prefix, separator string) []string {
	var out []string
	for more, from := true, prefix; more; {
		more = false
		for p := range r.pairsFrom(from, prefix) {
			end := -1
			if separator != "" {
				end = strings.Index(p.Key[len(prefix):], separator)
			}
			if end < 0 {
				out = append(out, p.Key)
				continue
			}
			cut := p.Key[:len(prefix)+end+len(separator)]
			out = append(out, cut)
			from = after(cut)
			more = from != ""
			break
		}
	}
	return out
}

// modifiedPair is the index at which a key last changed, 0 when there is none.
func (r reader) modifiedPair(key string) uint64 {
	if p, ok := r.pair(key); ok {
		return p.ModifyIndex
	}
	return 0
}

// putPair writes a key and returns the row that is there now.
func (w *writer) putPair(p catalog.KVPair) *catalog.KVPair {
	old, exists := w.pair(p.Key)
	p.RaftIndex = catalog.RaftIndex{}
	if len(p.Value) == 0 {
		p.Value = nil
	}
	if exists {
		if same(&p, old) {
			return old
		}
		p.RaftIndex = old.RaftIndex
	}
	p.RaftIndex = w.stamp(p.RaftIndex)
	w.insert(tableKV, &p)
	w.touchFolders(p.Key)
	return &p
}

// dropPairs removes keys.
func (w *writer) dropPairs(rows ...*catalog.KVPair) {
	keys := make([]string, 0, len(rows))
	for _, p := range rows {
		w.remove(tableKV, p)
		keys = append(keys, p.Key)
	}
	w.leaveFolders(keys)
}

func (w *writer) setKey(c *catalog.SetKey) (*catalog.KVPair, bool) {
	if casLost(c.CAS, c.Index, w.modifiedPair(c.Pair.Key)) {
		return nil, false
	}
	p := c.Pair
	p.Session, p.LockIndex = "", 0 // as Consul's clients see it: the holder stays, the count begins anew
	if old, ok := w.pair(p.Key); ok {
		p.Session = old.Session
	}
	return w.putPair(p), true
}

func (w *writer) deleteKey(c *catalog.DeleteKey) bool {
	old, exists := w.pair(c.Key)
	if !exists {
		return true
	}
	if casLost(c.CAS, c.Index, old.ModifyIndex) {
		return false
	}
	w.dropPairs(old)
	return true
}

func (w *writer) deleteKeys(prefix string) { w.dropPairs(w.pairs(prefix)...) }

// lockKey gives the row, or false when the key cannot be had.
func (w *writer) lockKey(c *catalog.LockKey) (*catalog.KVPair, bool, error) {
	p := c.Pair
	if _, ok := w.session(p.Session); !ok {
		return nil, false, catalog.Invalidf("invalid session %q", p.Session)
	}
	old, exists := w.pair(p.Key)
	switch {
	case exists && old.Session == p.Session:
		p.LockIndex = old.LockIndex
	case exists && old.Session != "":
		return nil, false, nil
	default:
		if _, held := w.delay(p.Key); held {
			return nil, false, nil
		}
		p.LockIndex = 1
		if exists {
			p.LockIndex = old.LockIndex + 1
		}
	}
	return w.putPair(p), true, nil
}

func (w *writer) unlockKey(c *catalog.UnlockKey) (*catalog.KVPair, bool) {
	old, exists := w.pair(c.Pair.Key)
	if !exists || old.Session != c.Pair.Session {
		return nil, false
	}
	p := c.Pair
	p.Session, p.LockIndex = "", old.LockIndex
	return w.putPair(p), true
}

func (r reader) delay(key string) (*catalog.KeyDelay, bool) {
	return first[*catalog.KeyDelay](r, tableDelays, byID, key)
}

func (w *writer) endKeyDelays(c *catalog.EndKeyDelays) {
	for _, d := range c.Delays {
		if row, ok := w.delay(d.Key); ok && row.ModifyIndex == d.ModifyIndex {
			w.remove(tableDelays, row)
			w.touch(keyDelays)
		}
	}
}
