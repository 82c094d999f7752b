package gossip

import (
	"errors"
	"fmt"
	"time"

	"github.com/weftmesh/weft/catalog"
)

// Warrant tells who may change the keys of gossip, and see those of others. Each member
// has such keys, so that having them proves nothing: whoever holds one host could lock out
// all others, and one that was revoked could ask for the key that is to shut it out.
type Warrant interface {
	// Sign proves that this host may, or refuses.
	Sign(b []byte) (proof []byte, err error)
	// Verify refuses what was not signed by a host that may.
	Verify(b, proof []byte) error
}

const (
	// warrantAge is how old a change may be, or how far in the future, by this host's
	// clock; for as long none is carried out twice.
	warrantAge = 10 * time.Minute
	// maxRing is how many keys a ring holds.
	maxRing = 16
)

// signed is what a change of keys is signed as.
func (q *keysMessage) signed() []byte {
	return fmt.Appendf(nil, "%q %q %q %q %d", q.ID, q.From, q.Op, q.Key, q.At)
}

// sign adds the proof that this host may ask for what q says.
func (g *Gossip) sign(q *keysMessage) (err error) {
	if g.cfg.Warrant == nil {
		return nil
	}
	if q.Proof, err = g.cfg.Warrant.Sign(q.signed()); err != nil {
		return fmt.Errorf("%w: the keys of gossip are changed on a server's host only (%w); run the command there", catalog.ErrDenied, err)
	}
	return nil
}

// warranted refuses what no server asked for, now and for the first time.
func (g *Gossip) warranted(q *keysMessage, now time.Time) error {
	if g.cfg.Warrant == nil {
		return nil
	}
	if age := now.Sub(time.UnixMilli(q.At)).Abs(); age > warrantAge {
		return fmt.Errorf("%w: what is asked is %s old or ahead by this host's clock, at most %s are allowed; set the clocks right, and try again",
			catalog.ErrDenied, age.Round(time.Second), warrantAge)
	}
	if err := g.cfg.Warrant.Verify(q.signed(), q.Proof); err != nil {
		return fmt.Errorf("%w: keys of gossip are changed and listed by servers only: %w", catalog.ErrDenied, err)
	}
	if !g.keys.first(q.ID, now) {
		return fmt.Errorf("%w: %w", catalog.ErrDenied, errRepeated)
	}
	return nil
}

var errRepeated = errors.New("it was carried out already")

// first tells whether a change is new. Only what servers signed comes here, so that what
// is remembered is bounded by what operators do.
func (k *keyring) first(id string, now time.Time) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	for old, at := range k.done {
		if now.Sub(at) > 2*warrantAge {
			delete(k.done, old)
		}
	}
	if _, repeated := k.done[id]; repeated {
		return false
	}
	if k.done == nil {
		k.done = map[string]time.Time{}
	}
	k.done[id] = now
	return true
}
