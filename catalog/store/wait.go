package store

import (
	"maps"
	"sync"
)

// basis collects what an answer rests on: rows of tableIndex and keys, as far as they
// are, or could be, there; and prefixes of keys.
type basis struct {
	rows, prefixes map[string]struct{}
}

func (b *basis) row(key string) {
	if b != nil {
		b.rows = with(b.rows, key)
	}
}

func (b *basis) prefix(of string) {
	if b != nil {
		b.prefixes = with(b.prefixes, of)
	}
}

func with(set map[string]struct{}, s string) map[string]struct{} {
	if set == nil {
		set = map[string]struct{}{}
	}
	set[s] = struct{}{}
	return set
}

// waits are those who wait for a change of a state. What nobody waits for costs
// nothing.
type waits struct {
	mu             sync.Mutex
	rows, prefixes bells
}

type bells map[string]map[*bell]struct{}

// bell tells one who waits that something changed of what his answer rests on.
type bell struct {
	waits *waits
	rings chan struct{}
	on    basis // guarded by waits.mu
}

func newBell(w *waits) *bell { return &bell{waits: w, rings: make(chan struct{}, 1)} }

// quiet forgets that it rang. It is called before one looks, so that what changes from
// then on rings.
func (b *bell) quiet() {
	select {
	case <-b.rings:
	default:
	}
}

// hangsOn reports whether the bell hung on all of that, and on nothing else, already.
// Otherwise it does from now on, and who waits must look again first.
func (b *bell) hangsOn(on *basis) bool {
	b.waits.mu.Lock()
	defer b.waits.mu.Unlock()
	if maps.Equal(b.on.rows, on.rows) && maps.Equal(b.on.prefixes, on.prefixes) {
		return true
	}
	b.hang(*on)
	return false
}

// stop takes the bell down. A bell that there never was is down.
func (b *bell) stop() {
	if b != nil {
		b.waits.mu.Lock()
		defer b.waits.mu.Unlock()
		b.hang(basis{})
	}
}

func (b *bell) hang(on basis) {
	b.waits.rows = b.waits.rows.move(b, b.on.rows, on.rows)
	b.waits.prefixes = b.waits.prefixes.move(b, b.on.prefixes, on.prefixes)
	b.on = on
}

func (bs bells) move(b *bell, from, to map[string]struct{}) bells {
	for key := range from {
		if delete(bs[key], b); len(bs[key]) == 0 {
			delete(bs, key)
		}
	}
	for key := range to {
		if bs == nil {
			bs = bells{}
		}
		if bs[key] == nil {
			bs[key] = map[*bell]struct{}{}
		}
		bs[key][b] = struct{}{}
	}
	return bs
}

func (bs bells) ring(key string) {
	for b := range bs[key] {
		select {
		case b.rings <- struct{}{}:
		default: // it rang, and nobody has looked since
		}
	}
}

// wake rings for changed rows of tableIndex and for changed keys. It is called once
// readers see the change.
func (w *waits) wake(rows map[string]uint64, keys []string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.rows) > 0 {
		for row := range rows {
			w.rows.ring(row)
		}
	}
	for _, key := range keys {
		w.rows.ring(classKey(classPair, key))
		for n := 0; n <= len(key) && len(w.prefixes) > 0; n++ {
			w.prefixes.ring(key[:n])
		}
	}
}
