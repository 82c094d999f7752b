package gossip

import (
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/weftmesh/weft/catalog"
)

// table remembers members beyond what memberlist does: those that failed or left.
type table struct {
	self    string
	log     *slog.Logger
	changed chan struct{}

	mu      sync.Mutex
	rows    map[string]*row
	intents map[string]intent // of members that are not known to have failed yet
}

type row struct {
	member catalog.Member
	since  time.Time // of its status
}

// intentLife is how long word that a member shall leave waits for it to fail.
const intentLife = 5 * time.Minute

// maxIntents bounds what others can make us remember.
const maxIntents = 1024

func newTable(self string, log *slog.Logger) *table {
	return &table{
		self:    self,
		log:     log,
		changed: make(chan struct{}, 1),
		rows:    map[string]*row{},
		intents: map[string]intent{},
	}
}

func (t *table) poke() {
	select {
	case t.changed <- struct{}{}:
	default:
	}
}

func memberOf(n *memberlist.Node, status catalog.MemberStatus) (catalog.Member, error) {
	tags, err := decodeTags(n.Meta)
	return catalog.Member{
		Name:   n.Name,
		ID:     tags["id"],
		Addr:   n.Addr.String(),
		Port:   n.Port,
		Tags:   tags,
		Status: status,
	}, err
}

// put records what memberlist says of a node, and returns what that makes of it: a
// member that failed after word that it would leave has left.
func (t *table) put(n *memberlist.Node, status catalog.MemberStatus) catalog.MemberStatus {
	m, err := memberOf(n, status)
	if err != nil {
		t.log.Warn("member has tags that cannot be read", "node", n.Name, "err", err)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if status == catalog.MemberFailed {
		if in, wanted := t.intents[n.Name]; wanted && time.Since(time.UnixMilli(in.At)) < intentLife {
			delete(t.intents, n.Name)
			m.Status = catalog.MemberLeft
			if in.Prune {
				delete(t.rows, n.Name)
				t.poke()
				return m.Status
			}
		}
	} else {
		delete(t.intents, n.Name)
	}
	t.rows[n.Name] = &row{member: m, since: time.Now()}
	t.poke()
	return m.Status
}

func (t *table) set(name string, status catalog.MemberStatus) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if r := t.rows[name]; r != nil {
		r.member.Status, r.since = status, time.Now()
		t.poke()
	}
}

// apply carries out an intent. It tells whether that changed anything, and so
// whether others are to be told.
func (t *table) apply(in intent) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	r := t.rows[in.Name]
	switch {
	case r == nil || in.Name == t.self:
		return false
	case r.member.Status == catalog.MemberAlive:
		if _, known := t.intents[in.Name]; known || len(t.intents) >= maxIntents {
			return false
		}
		in.At = time.Now().UnixMilli() // by our clock, for we are who forgets it
		t.intents[in.Name] = in
		return true
	case in.Prune:
		delete(t.rows, in.Name)
	case r.member.Status == catalog.MemberLeft:
		return false
	default:
		r.member.Status, r.since = catalog.MemberLeft, time.Now()
	}
	t.poke()
	return true
}

// reap forgets members that failed or left before, and intents that nobody met.
func (t *table) reap(before time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for name, r := range t.rows {
		if r.member.Status != catalog.MemberAlive && name != t.self && r.since.Before(before) {
			delete(t.rows, name)
			t.poke()
		}
	}
	for name, in := range t.intents {
		if time.Since(time.UnixMilli(in.At)) > intentLife {
			delete(t.intents, name)
		}
	}
}

func (t *table) get(name string) (catalog.Member, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	r := t.rows[name]
	if r == nil {
		return catalog.Member{}, false
	}
	return r.member, true
}

func (t *table) members() []catalog.Member {
	t.mu.Lock()
	defer t.mu.Unlock()
	out := make([]catalog.Member, 0, len(t.rows))
	for _, r := range t.rows {
		out = append(out, r.member) // tags are never changed in place
	}
	slices.SortFunc(out, func(a, b catalog.Member) int {
		switch {
		case a.Name == b.Name:
			return 0
		case a.Name == t.self:
			return -1
		case b.Name == t.self:
			return 1
		default:
			return strings.Compare(a.Name, b.Name)
		}
	})
	return out
}

func (t *table) with(status catalog.MemberStatus) []catalog.Member {
	all := t.members()
	return slices.DeleteFunc(all, func(m catalog.Member) bool { return m.Status != status })
}

func (t *table) size() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := 0
	for _, r := range t.rows {
		if r.member.Status == catalog.MemberAlive {
			n++
		}
	}
	return max(n, 1)
}
