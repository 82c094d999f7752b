package catalog

import (
	"cmp"
	"reflect"
	"slices"
	"strings"
	"sync"
)

// Delta turns the view of one index into that of a later one: rows that are new
// or changed, and the keys of those that are gone.
type Delta struct {
	Query Query
	From  uint64 // index of the view that it applies to
	Index uint64 // index of the view that it makes
	Epoch string

	Nodes      Rows[*Node]
	Services   Rows[*ServiceSummary]
	Instances  Rows[*Instance]
	Checks     Rows[*Check]
	Intentions Rows[*Intention]
	Entries    Rows[Entry]
	Roots      Rows[*Root]
	Pairs      Rows[*KVPair]
	Keys       Rows[string]
	Delays     Rows[*KeyDelay]
	Sessions   Rows[*Session]

	Queries      Rows[*PreparedQuery]
	Coordinates  Rows[*NodeCoordinate]
	Revocations  Rows[*Revocation]
	RevokedCerts Rows[*CertRevocation]
	VirtualIPs   Rows[*VirtualIP]
	// Default, CAConfig, Chain, Problem and Autopilot are those of the new view.
	Default   Action
	CAConfig  *CAConfig
	Chain     *Chain
	Problem   string
	Autopilot *Autopilot

	encode  sync.Once
	encoded []byte
	encErr  error
}

// Rows is what changed in one list of a view.
type Rows[T any] struct {
	Put  []T
	Gone []Key
}

// Key identifies a row in a list of a view. Only as many parts are set as the
// noun needs: node and service or check ID, source, destination and peer.
type Key struct{ A, B, C string }

// Encoded is View.Encoded for deltas.
func (d *Delta) Encoded(encode func(*Delta) ([]byte, error)) ([]byte, error) {
	d.encode.Do(func() { d.encoded, d.encErr = encode(d) })
	return d.encoded, d.encErr
}

// list is how the rows of one list of a view are told apart, ordered and made sure of.
type list[T any] struct {
	key   func(T) Key
	order func(a, b T) int
}

func byKey[T any](key func(T) Key) list[T] {
	return list[T]{key: key, order: func(a, b T) int { return compareKeys(key(a), key(b)) }}
}

func compareKeys(a, b Key) int {
	return cmp.Or(strings.Compare(a.A, b.A), strings.Compare(a.B, b.B), strings.Compare(a.C, b.C))
}

var (
	nodeList      = byKey(func(n *Node) Key { return Key{A: n.Node} })
	summaryList   = byKey(func(s *ServiceSummary) Key { return Key{A: s.Name} })
	instanceList  = byKey(func(i *Instance) Key { return Key{A: i.Node.Node, B: i.Service.ID} })
	checkList     = byKey(func(c *Check) Key { return Key{A: c.Node, B: c.CheckID} })
	intentionList = list[*Intention]{
		key:   func(i *Intention) Key { return Key{A: i.SourceName, B: i.DestinationName, C: i.SourcePeer} },
		order: moreSpecific,
	}
	entryList   = byKey(func(e Entry) Key { return Key{A: e.EntryKind(), B: e.EntryName()} })
	rootList    = byKey(func(r *Root) Key { return Key{A: r.ID} })
	pairList    = byKey(func(p *KVPair) Key { return Key{A: p.Key} })
	keyList     = byKey(func(k string) Key { return Key{A: k} })
	delayList   = byKey(func(d *KeyDelay) Key { return Key{A: d.Key} })
	sessionList = byKey(func(s *Session) Key { return Key{A: s.ID} })

	queryList       = byKey(func(q *PreparedQuery) Key { return Key{A: q.ID} })
	coordinateList  = byKey(func(c *NodeCoordinate) Key { return Key{A: c.Node} })
	revocationList  = byKey(func(r *Revocation) Key { return Key{A: r.Kind, B: r.ID} })
	virtualIPList   = byKey(func(v *VirtualIP) Key { return Key{A: v.Service} })
	revokedCertList = byKey(func(r *CertRevocation) Key { return Key{A: r.Key()} })
)

// Diff returns what turns old into v. It is nil where there is no such thing:
// old is nil, not older, answers another query or is of another epoch, or a list
// is not in the order that the store gives it. Then v itself has to be sent.
//
// The last delta made is kept, so that the readers one version behind share it:
// the index of the old view says which one that was.
func (v *View) Diff(old *View) *Delta {
	if old == nil || old.Query != v.Query || old.Epoch != v.Epoch || old.Index >= v.Index {
		return nil
	}
	v.diffMu.Lock()
	defer v.diffMu.Unlock()
	if v.diff == nil || v.diffFrom != old.Index {
		v.diff, v.diffFrom = v.makeDiff(old), old.Index
	}
	return v.diff
}

func (v *View) makeDiff(old *View) *Delta {
	d := &Delta{
		Query: v.Query, From: old.Index, Index: v.Index, Epoch: v.Epoch,
		Default: v.Default, CAConfig: v.CAConfig, Chain: v.Chain, Problem: v.Problem, Autopilot: v.Autopilot,
	}
	ok := nodeList.diff(&d.Nodes, old.Nodes, v.Nodes) &&
		summaryList.diff(&d.Services, old.Services, v.Services) &&
		instanceList.diff(&d.Instances, old.Instances, v.Instances) &&
		checkList.diff(&d.Checks, old.Checks, v.Checks) &&
		intentionList.diff(&d.Intentions, old.Intentions, v.Intentions) &&
		entryList.diff(&d.Entries, old.Entries, v.Entries) &&
		rootList.diff(&d.Roots, old.Roots, v.Roots) &&
		queryList.diff(&d.Queries, old.Queries, v.Queries) &&
		coordinateList.diff(&d.Coordinates, old.Coordinates, v.Coordinates) &&
		revokedCertList.diff(&d.RevokedCerts, old.RevokedCerts, v.RevokedCerts) &&
		virtualIPList.diff(&d.VirtualIPs, old.VirtualIPs, v.VirtualIPs) &&
		revocationList.diff(&d.Revocations, old.Revocations, v.Revocations) &&
		pairList.diff(&d.Pairs, old.Pairs, v.Pairs) &&
		keyList.diff(&d.Keys, old.Keys, v.Keys) &&
		delayList.diff(&d.Delays, old.Delays, v.Delays) &&
		sessionList.diff(&d.Sessions, old.Sessions, v.Sessions)
	if !ok {
		return nil
	}
	return d
}

// Patch makes the new view. It fails with ErrConflict when old is not the view
// that the delta was made from, and with ErrInvalid when it does not fit it.
func (d *Delta) Patch(old *View) (*View, error) {
	if old == nil || old.Query != d.Query || old.Epoch != d.Epoch || old.Index != d.From {
		return nil, Conflictf("view of %s: the delta does not apply to the view held", d.Query)
	}
	v := &View{
		Query: d.Query, Index: d.Index, Epoch: d.Epoch,
		Default: d.Default, CAConfig: d.CAConfig, Chain: d.Chain, Problem: d.Problem, Autopilot: d.Autopilot,
	}
	if !d.complete() {
		return nil, Invalidf("view of %s: the delta has an empty row", d.Query)
	}
	v.Nodes = nodeList.patch(old.Nodes, d.Nodes)
	v.Services = summaryList.patch(old.Services, d.Services)
	v.Instances = instanceList.patch(old.Instances, d.Instances)
	v.Checks = checkList.patch(old.Checks, d.Checks)
	v.Intentions = intentionList.patch(old.Intentions, d.Intentions)
	v.Entries = entryList.patch(old.Entries, d.Entries)
	v.Roots = rootList.patch(old.Roots, d.Roots)
	v.Queries = queryList.patch(old.Queries, d.Queries)
	v.Coordinates = coordinateList.patch(old.Coordinates, d.Coordinates)
	v.RevokedCerts = revokedCertList.patch(old.RevokedCerts, d.RevokedCerts)
	v.VirtualIPs = virtualIPList.patch(old.VirtualIPs, d.VirtualIPs)
	v.Revocations = revocationList.patch(old.Revocations, d.Revocations)
	v.Pairs = pairList.patch(old.Pairs, d.Pairs)
	v.Keys = keyList.patch(old.Keys, d.Keys)
	v.Delays = delayList.patch(old.Delays, d.Delays)
	v.Sessions = sessionList.patch(old.Sessions, d.Sessions)
	return v, nil
}

// complete tells whether every row is there: a delta may come from the wire.
func (d *Delta) complete() bool {
	for _, i := range d.Instances.Put {
		if i == nil || i.Node == nil || i.Service == nil {
			return false
		}
	}
	for _, e := range d.Entries.Put {
		if e.ConfigEntry == nil {
			return false
		}
	}
	return !slices.Contains(d.Nodes.Put, nil) && !slices.Contains(d.Services.Put, nil) &&
		!slices.Contains(d.Checks.Put, nil) && !slices.Contains(d.Intentions.Put, nil) &&
		!slices.Contains(d.Roots.Put, nil) && !slices.Contains(d.Queries.Put, nil) &&
		!slices.Contains(d.Coordinates.Put, nil) && !slices.Contains(d.RevokedCerts.Put, nil) && !slices.Contains(d.Revocations.Put, nil) && !slices.Contains(d.Pairs.Put, nil) &&
		!slices.Contains(d.VirtualIPs.Put, nil) && !slices.Contains(d.Delays.Put, nil) && !slices.Contains(d.Sessions.Put, nil)
}

// diff walks both lists, which are ordered, side by side. It reports false when
// they are not.
func (l list[T]) diff(out *Rows[T], old, now []T) bool {
	if !l.ordered(old) || !l.ordered(now) {
		return false
	}
	for len(old) > 0 || len(now) > 0 {
		var c int
		switch {
		case len(old) == 0:
			c = 1
		case len(now) == 0:
			c = -1
		default:
			c = l.order(old[0], now[0])
		}
		switch {
		case c < 0:
			out.Gone = append(out.Gone, l.key(old[0]))
			old = old[1:]
		case c > 0:
			out.Put = append(out.Put, now[0])
			now = now[1:]
		default:
			// Rows of one store are shared between its views, which ends this early.
			if !reflect.DeepEqual(old[0], now[0]) {
				out.Put = append(out.Put, now[0])
			}
			old, now = old[1:], now[1:]
		}
	}
	return true
}

// ordered tells whether rows are in order, each key once.
func (l list[T]) ordered(rows []T) bool {
	for i := 1; i < len(rows); i++ {
		if l.order(rows[i-1], rows[i]) >= 0 {
			return false
		}
	}
	return true
}

// find looks a row up in an ordered list.
func (l list[T]) find(rows []T, k Key) (int, bool) {
	return slices.BinarySearchFunc(rows, k, func(r T, k Key) int { return compareKeys(l.key(r), k) })
}

func (l list[T]) patch(old []T, d Rows[T]) []T {
	if len(d.Put) == 0 && len(d.Gone) == 0 {
		return old
	}
	drop := make(map[Key]bool, len(d.Gone)+len(d.Put))
	for _, k := range d.Gone {
		drop[k] = true
	}
	for _, r := range d.Put {
		drop[l.key(r)] = true
	}
	out := make([]T, 0, len(old)+len(d.Put))
	for _, r := range old {
		if !drop[l.key(r)] {
			out = append(out, r)
		}
	}
	out = append(out, d.Put...)
	slices.SortFunc(out, l.order)
	return out
}
