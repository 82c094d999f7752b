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
//
// A row is of one claim: a node's name at one address. A host that is built anew
// under its old name, at another address, is another claim, so that nobody waits for
// the old one to be forgotten. Of the claims to one name the newest that is alive
// counts. An address is one process's: a claim to one where another member started
// later has failed, which memberlist finds out in seconds only, as somebody is there.
type table struct {
	self    string // our own claim
	name    string // our own name
	log     *slog.Logger
	changed chan struct{}

	mu      sync.Mutex
	coming  uint64
	rows    map[string]map[string]*row // by name, then by claim
	at      map[string][]*row          // the same by address
	intents map[string]intent          // of members that are not known to have failed yet, by key
	shun    func(id string) bool       // who counts as failed, alive or not
	aside   map[string]row             // the shunned that were made to leave and memberlist holds for alive, by claim
}

type row struct {
	member catalog.Member
	since  time.Time // of its status
	start  int64     // of the process, in milliseconds by its own clock
	home   int64     // since when the host lives there, by its own clock
	claim  string
	order  uint64 // of its last coming to life
	told   bool   // that another is alive under its name

	evicted bool // it was said that another has its address
}

// intentLife is how long word that a member shall leave waits for it to fail.
const intentLife = 5 * time.Minute

// maxIntents bounds what others can make us remember.
const maxIntents = 1024

func newTable(self string, log *slog.Logger) *table {
	return &table{
		self:    self,
		name:    nameOf(self),
		log:     log,
		changed: make(chan struct{}, 1),
		rows:    map[string]map[string]*row{},
		at:      map[string][]*row{},
		intents: map[string]intent{},
		shun:    func(string) bool { return false },
		aside:   map[string]row{},
	}
}

// setShun takes who counts as failed from now on. Memberlist says nothing of those that
// it held for alive all along: who is let in again comes back here.
func (t *table) setShun(who func(id string) bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	defer t.poke()
	t.shun = who
	for claim, r := range t.aside {
		if who(r.member.ID) {
			continue
		}
		delete(t.aside, claim)
		delete(t.intents, claim)
		delete(t.intents, r.member.Name)
		t.coming++
		r.order, r.since = t.coming, time.Now()
		t.keep(claim, &r)
		t.evict(&r)
	}
}

// setAside remembers a row that is about to go although memberlist holds it for alive.
func (t *table) setAside(r *row) {
	if r.member.Status == catalog.MemberAlive && t.shun(r.member.ID) {
		t.aside[r.claim] = *r
	}
}

func (t *table) shuns(id string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.shun(id)
}

// claimOf is what a node is to memberlist, which gives a name to one address only.
func claimOf(name, addr string) string { return name + "/" + addr }

// nameOf is the node's name in a claim. Names have no slash.
func nameOf(claim string) string {
	name, _, _ := strings.Cut(claim, "/")
	return name
}

func (t *table) poke() {
	select {
	case t.changed <- struct{}{}:
	default:
	}
}

func memberOf(n *memberlist.Node, status catalog.MemberStatus) (catalog.Member, error) {
	tags, err := decodeTags(n.Meta)
	delete(tags, startTag)
	delete(tags, homeTag)
	return catalog.Member{
		Name:   nameOf(n.Name),
		ID:     tags["id"],
		Addr:   n.Addr.String(),
		Port:   n.Port,
		Tags:   tags,
		Status: status,
	}, err
}

// put records what memberlist says of a node, and returns what that makes of it: a
// member that failed after word that it would leave has left. MemberNone is a claim
// that does not count any more, another being alive under its name.
func (t *table) put(n *memberlist.Node, status catalog.MemberStatus) catalog.MemberStatus {
	m, err := memberOf(n, status)
	if err != nil {
		t.log.Warn("member has tags that cannot be read", "node", m.Name, "err", err)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	defer t.poke()
	delete(t.aside, n.Name)
	if status != catalog.MemberFailed {
		delete(t.intents, m.Name)
		delete(t.intents, n.Name)
		old := t.rows[m.Name][n.Name]
		for claim, r := range t.rows[m.Name] { // the dead that had the name before
			if claim != n.Name && r.member.Status != catalog.MemberAlive {
				t.drop(m.Name, claim)
			}
		}
		r := &row{member: m, since: time.Now(), start: timeTag(n, startTag), home: homeOf(n), claim: n.Name}
		if old != nil && old.member.Status == catalog.MemberAlive {
			r.order, r.since, r.told = old.order, old.since, old.told // new tags
		} else {
			t.coming++
			r.order = t.coming
		}
		t.keep(n.Name, r)
		t.evict(r)
		return status
	}
	if t.aliveBeside(n.Name, m.Name) {
		t.drop(m.Name, n.Name)
		return catalog.MemberNone
	}
	if in, wanted := t.wanted(n.Name); wanted {
		m.Status = catalog.MemberLeft
		if in.Prune {
			t.drop(m.Name, n.Name)
			return m.Status
		}
	}
	r := &row{member: m, since: time.Now(), start: timeTag(n, startTag), home: homeOf(n), claim: n.Name}
	if old := t.rows[m.Name][n.Name]; old != nil {
		r.order = old.order
	}
	t.keep(n.Name, r)
	return m.Status
}

// wanted takes the word that a claim, or whoever has its name, shall leave.
func (t *table) wanted(claim string) (intent, bool) {
	for _, key := range []string{claim, nameOf(claim)} {
		if in, ok := t.intents[key]; ok {
			delete(t.intents, key)
			if time.Since(time.UnixMilli(in.At)) < intentLife {
				return in, true
			}
		}
	}
	return intent{}, false
}

func (t *table) keep(claim string, r *row) {
	claims := t.rows[r.member.Name]
	if claims == nil {
		claims = map[string]*row{}
		t.rows[r.member.Name] = claims
	}
	t.unplace(claims[claim])
	claims[claim] = r
	addr := addrOf(r.member)
	t.at[addr] = append(t.at[addr], r)
}

func (t *table) unplace(r *row) {
	if r == nil {
		return
	}
	addr := addrOf(r.member)
	if t.at[addr] = slices.DeleteFunc(t.at[addr], func(o *row) bool { return o == r }); len(t.at[addr]) == 0 {
		delete(t.at, addr)
	}
}

// evict says which members lived where one does that just came.
func (t *table) evict(r *row) {
	for _, o := range t.at[addrOf(r.member)] {
		if o.claim != t.self && r.evicts(o) && !o.evicted {
			o.evicted = true
			t.log.Info("another member has the address of this one, which so has failed or moved", "node", o.member.Name, "addr", addrOf(o.member), "peer", r.member.Name)
		}
	}
}

// evicts tells whether o cannot live, as r started later at the same address.
func (r *row) evicts(o *row) bool {
	return r.member.Name != o.member.Name && r.member.Status == catalog.MemberAlive && o.member.Status == catalog.MemberAlive &&
		o.start != 0 && r.start > o.start
}

// lives tells whether memberlist says so of a row, nobody else is there, and it is not
// shut out.
func (t *table) lives(r *row) bool {
	return r.member.Status == catalog.MemberAlive &&
		(r.claim == t.self || !t.shun(r.member.ID) && !slices.ContainsFunc(t.at[addrOf(r.member)], func(o *row) bool { return o.evicts(r) }))
}

// shown is the member of a row as it counts.
func (t *table) shown(r *row) catalog.Member {
	m := r.member
	if m.Status == catalog.MemberAlive && !t.lives(r) {
		m.Status = catalog.MemberFailed
	}
	return m
}

func (t *table) drop(name, claim string) {
	t.unplace(t.rows[name][claim])
	delete(t.rows[name], claim)
	if len(t.rows[name]) == 0 {
		delete(t.rows, name)
	}
}

func (t *table) aliveBeside(claim, name string) bool {
	for c, r := range t.rows[name] {
		if c != claim && t.lives(r) {
			return true
		}
	}
	return false
}

// best is the claim that counts for a name, and its row, nil for none.
func (t *table) best(name string) (claim string, found *row) {
	if name == t.name {
		if r := t.rows[name][t.self]; r != nil {
			return t.self, r
		}
	}
	for c, r := range t.rows[name] {
		if t.better(r, found) {
			claim, found = c, r
		}
	}
	return claim, found
}

func (t *table) better(a, b *row) bool {
	if b == nil {
		return true
	}
	if alive := t.lives(a); alive != t.lives(b) {
		return alive
	}
	if a.home != 0 && b.home != 0 && a.home != b.home {
		if a.member.ID == b.member.ID {
			return a.home < b.home // a host before its copy
		}
		return a.home > b.home // a host that was built anew before what it replaces
	}
	return a.order > b.order
}

// elders are the rows, alive, of this host's name and ID that are older than its own.
func (t *table) elders() []row {
	t.mu.Lock()
	defer t.mu.Unlock()
	self := t.rows[t.name][t.self]
	if self == nil {
		return nil
	}
	var out []row
	for _, r := range t.rows[t.name] {
		if r != self && t.lives(r) && r.member.ID == self.member.ID && t.better(r, self) {
			out = append(out, *r)
		}
	}
	return out
}

// clashAfter is how long two may be alive under one name before it is said: the
// older one may have died without a word.
const clashAfter = 30 * time.Second

// clashes tells, once, of names under which two hosts are alive.
func (t *table) clashes(now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for name, claims := range t.rows {
		var alive []*row
		for _, r := range claims {
			if t.lives(r) && now.Sub(r.since) >= clashAfter {
				alive = append(alive, r)
			}
		}
		if len(alive) < 2 || alive[0].told && alive[1].told {
			continue
		}
		a, b := alive[0], alive[1]
		a.told, b.told = true, true
		hint := "rename one of them (node_name)"
		if a.member.ID == b.member.ID {
			hint = "one is a copy of the other: stop it, remove node-id and the folder node from its data directory, give it another name and start it"
		}
		t.log.Error("two hosts are alive under one name", "node", name, "addr", addrOf(a.member), "peer", addrOf(b.member), "hint", hint)
	}
}

func (t *table) set(name string, status catalog.MemberStatus) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if _, r := t.best(name); r != nil {
		r.member.Status, r.since = status, time.Now()
		t.poke()
	}
}

// apply carries out an intent. It tells whether that changed anything, and so
// whether others are to be told.
func (t *table) apply(in intent) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	_, r := t.best(in.Name)
	if in.Claim != "" {
		r = t.rows[in.Name][in.Claim]
	}
	if r == nil || in.Name == t.name {
		return false
	}
	if r.member.Status == catalog.MemberAlive {
		if _, known := t.intents[in.key()]; known || len(t.intents) >= maxIntents {
			return false
		}
		in.At = time.Now().UnixMilli() // by our clock, for we are who forgets it
		t.intents[in.key()] = in
		if t.lives(r) {
			return true
		}
	}
	switch {
	case in.Prune:
		for claim, r := range t.rows[in.Name] {
			t.setAside(r)
			t.drop(in.Name, claim)
		}
	case r.member.Status == catalog.MemberLeft:
		return false
	default:
		t.setAside(r)
		r.member.Status, r.since = catalog.MemberLeft, time.Now()
	}
	t.poke()
	return true
}

// reap forgets members that failed or left before, and intents that nobody met.
func (t *table) reap(before time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for name, claims := range t.rows {
		for claim, r := range claims {
			if r.member.Status != catalog.MemberAlive && claim != t.self && r.since.Before(before) {
				t.drop(name, claim)
				t.poke()
			}
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
	_, r := t.best(name)
	if r == nil {
		return catalog.Member{}, false
	}
	return t.shown(r), true
}

// claim is the one that counts for a name, "" for none.
func (t *table) claim(name string) string {
	t.mu.Lock()
	defer t.mu.Unlock()
	claim, _ := t.best(name)
	return claim
}

func (t *table) members() []catalog.Member {
	t.mu.Lock()
	defer t.mu.Unlock()
	out := make([]catalog.Member, 0, len(t.rows))
	for name := range t.rows {
		_, r := t.best(name)
		out = append(out, t.shown(r)) // tags are never changed in place
	}
	slices.SortFunc(out, func(a, b catalog.Member) int {
		switch {
		case a.Name == t.name:
			return -1
		case b.Name == t.name:
			return 1
		default:
			return strings.Compare(a.Name, b.Name)
		}
	})
	return out
}

// doubles are the living members that are not shown, as another with their name and ID is.
func (t *table) doubles() []catalog.Member {
	t.mu.Lock()
	defer t.mu.Unlock()
	var out []catalog.Member
	for name, claims := range t.rows {
		if len(claims) < 2 {
			continue
		}
		_, first := t.best(name)
		for _, r := range claims {
			if r != first && t.lives(r) && r.member.ID == first.member.ID {
				out = append(out, r.member)
			}
		}
	}
	return out
}

func (t *table) alive() []catalog.Member {
	all := t.members()
	return slices.DeleteFunc(all, func(m catalog.Member) bool { return m.Status != catalog.MemberAlive })
}

// size is how many members memberlist counts as alive.
func (t *table) size() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := 0
	for _, claims := range t.rows {
		for _, r := range claims {
			if r.member.Status == catalog.MemberAlive {
				n++
			}
		}
	}
	return max(n, 1)
}
