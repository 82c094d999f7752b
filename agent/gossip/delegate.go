package gossip

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/weftmesh/weft/catalog"
)

// delegate is how memberlist speaks to Gossip.
type delegate struct{ g *Gossip }

// NodeMeta gives the tags. Their size was checked when they were set; memberlist
// panics on more than it allows, so they are checked once more.
func (d *delegate) NodeMeta(limit int) []byte {
	d.g.mu.Lock()
	defer d.g.mu.Unlock()
	if len(d.g.meta) > limit {
		d.g.log.Error("tags are too long for gossip and are left out", "node", d.g.cfg.NodeName)
		return nil
	}
	return d.g.meta
}

// NotifyMsg takes a message of another member.
func (d *delegate) NotifyMsg(b []byte) {
	if d.g.keysMessage(b) {
		return
	}
	if len(b) == 0 || len(b) > maxMessage {
		return
	}
	switch b[0] {
	case msgLeave:
	case msgUser:
		d.g.deliver(b)
		return
	default:
		return // of a later version
	}
	var in intent
	if err := json.Unmarshal(b[1:], &in); err != nil || in.Name == "" {
		return
	}
	d.g.applyIntent(in)
}

// GetBroadcasts gives memberlist what is to be spread.
func (d *delegate) GetBroadcasts(overhead, limit int) [][]byte {
	return d.g.outgoing.GetBroadcasts(overhead, limit)
}

// LocalState adds the messages of the last minutes to memberlist's own.
func (d *delegate) LocalState(bool) []byte { return d.g.relayed.encode(time.Now()) }

// MergeRemoteState takes those of another member that did not come by gossip.
func (d *delegate) MergeRemoteState(b []byte, _ bool) {
	for _, m := range decodeRecent(b, time.Now()) {
		d.g.take(bytes.Clone(m.msg), m.at)
	}
}

// NotifyJoin records a member that is alive.
func (d *delegate) NotifyJoin(n *memberlist.Node) {
	d.g.table.put(n, catalog.MemberAlive)
	d.g.log.Info("member joined", "node", nameOf(n.Name), "addr", n.Address())
}

// NotifyUpdate records new tags or a new address.
func (d *delegate) NotifyUpdate(n *memberlist.Node) { d.g.table.put(n, catalog.MemberAlive) }

// NotifyLeave records a member that left or failed. Which of the two memberlist does
// not say here (Node.State is not set in events): the member's own word, an intent,
// tells them apart, whichever comes first.
func (d *delegate) NotifyLeave(n *memberlist.Node) {
	switch d.g.table.put(n, catalog.MemberFailed) {
	case catalog.MemberNone:
		d.g.log.Debug("a member's former address is gone", "node", nameOf(n.Name), "addr", n.Address())
	case catalog.MemberFailed:
		if n.Name != d.g.claim {
			d.g.log.Warn("member failed", "node", nameOf(n.Name), "addr", n.Address())
			return
		}
		fallthrough
	default:
		d.g.log.Info("member left", "node", nameOf(n.Name), "addr", n.Address())
	}
}

// NotifyConflict tells of two nodes with one name and port, behind one address as it
// is told to others.
func (d *delegate) NotifyConflict(existing, other *memberlist.Node) {
	d.g.log.Error("two nodes claim one name: rename one of them", "node", nameOf(existing.Name),
		"addr", existing.Address(), "peer", other.Address())
}

// NotifyAlive asks whether a member may take part.
func (d *delegate) NotifyAlive(n *memberlist.Node) error {
	if n.Name == d.g.claim {
		return nil
	}
	m, err := memberOf(n, catalog.MemberAlive)
	if err != nil {
		return fmt.Errorf("member %s: %w", m.Name, err)
	}
	return d.g.cfg.Admit(m)
}

// NotifyMerge refuses another cluster when one of its members is refused.
func (d *delegate) NotifyMerge(peers []*memberlist.Node) error {
	for _, n := range peers {
		if n.State != memberlist.StateAlive {
			continue
		}
		if err := d.NotifyAlive(n); err != nil {
			return err
		}
	}
	return nil
}

const (
	msgLeave   = 1
	msgUser    = 2
	maxMessage = 1024

	// maxOutgoing bounds the messages that wait to be spread.
	maxOutgoing = 4096
	// maxReceived bounds those of others that wait to be taken. What is over is lost.
	maxReceived = 1024
	// maxRelayed is how many messages are remembered, so that each is passed on once.
	maxRelayed = 4096
)

// userPrefix keeps the names of messages apart from those of members.
const userPrefix = "user/"

// Send spreads a message of at most 1 KiB, less one byte, to all other members. Two
// messages of one name are one.
func (g *Gossip) Send(name string, msg []byte) error {
	if len(msg) >= maxMessage {
		return fmt.Errorf("gossip: message of %d bytes: %w: less than %d are allowed", len(msg), catalog.ErrTooLarge, maxMessage)
	}
	b := append([]byte{msgUser}, msg...)
	g.relayed.first(b, time.Now())
	g.queue(userPrefix+name, b)
	return nil
}

// Received gives messages of other members, each at least once. It is for one reader.
func (g *Gossip) Received() <-chan []byte { return g.received }

func (g *Gossip) queue(name string, msg []byte) {
	g.outgoing.QueueBroadcast(&broadcast{name: name, msg: msg})
	if g.outgoing.NumQueued() > maxOutgoing {
		g.outgoing.Prune(maxOutgoing)
	}
}

// deliver hands a message to the reader and passes it on, once.
func (g *Gossip) deliver(b []byte) {
	own := bytes.Clone(b) // memberlist uses its buffer again
	if g.take(own, time.Now()) {
		sum := sha256.Sum256(own)
		g.queue(userPrefix+string(sum[:]), own)
	}
}

// take hands a message, first heard at some time, to the reader, unless it is known.
func (g *Gossip) take(own []byte, since time.Time) bool {
	if !g.relayed.first(own, since) {
		return false
	}
	select {
	case g.received <- own[1:]:
	default:
		g.log.Warn("a message of another member was lost", "reason", "too many wait to be taken")
	}
	return true
}

// relayed remembers messages, the oldest of which it forgets.
type relayed struct {
	mu    sync.Mutex
	known map[[sha256.Size]byte]bool
	order [][sha256.Size]byte
	// recent are the last of them, for members who did not hear them.
	recent []recent
}

// first tells whether a message was never seen before.
func (r *relayed) first(msg []byte, since time.Time) bool {
	sum := sha256.Sum256(msg)
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.known[sum] {
		return false
	}
	if r.known == nil {
		r.known = map[[sha256.Size]byte]bool{}
	}
	r.known[sum] = true
	r.keep(recent{since, msg})
	r.order = append(r.order, sum)
	if len(r.order) > maxRelayed {
		delete(r.known, r.order[0])
		r.order = r.order[1:]
	}
	return true
}

// intent is word, spread by gossip, that a member which is not alive any more left
// rather than failed: its own word, or that of an operator.
type intent struct {
	Name string
	// Claim is whose own word it is; it says nothing of another host that has the name.
	Claim string `json:",omitempty"`
	Prune bool   `json:",omitempty"`
	At    int64  // milliseconds, of who said it
}

// key tells intents apart. Names have no slash.
func (in *intent) key() string { return cmp.Or(in.Claim, in.Name) }

func (g *Gossip) applyIntent(in intent) {
	if g.table.apply(in) {
		g.spread(in)
	}
}

func (g *Gossip) spread(in intent) {
	b, err := json.Marshal(in)
	if err != nil {
		return // strings and numbers always marshal
	}
	g.queue(in.key(), append([]byte{msgLeave}, b...))
}

// broadcast is a message to spread; a later one of the same name replaces it.
type broadcast struct {
	name string
	msg  []byte
}

// Invalidates implements memberlist.Broadcast.
func (b *broadcast) Invalidates(other memberlist.Broadcast) bool {
	o, ok := other.(*broadcast)
	return ok && o.name == b.name
}

// Name implements memberlist.NamedBroadcast: with it the queue finds what a message
// replaces without looking at all that wait.
func (b *broadcast) Name() string { return b.name }

// Message implements memberlist.Broadcast.
func (b *broadcast) Message() []byte { return b.msg }

// Finished implements memberlist.Broadcast.
func (b *broadcast) Finished() {}
