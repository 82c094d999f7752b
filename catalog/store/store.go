package store

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/weftmesh/weft/catalog"
)

// Config configures a Store. The zero value works.
type Config struct {
	Logger *slog.Logger
	// DefaultIntention is the action where no intention matches; anything but
	// allow is deny. It is configuration, not replicated: give all servers the same.
	DefaultIntention catalog.Action
	// Linger is how long a hub outlives its last reader; 0 is 30 s.
	Linger time.Duration
	// Coalesce is the least time between two views of a hub; the first change
	// after a quiet time is published at once. 0 is 20 ms.
	Coalesce time.Duration
	// MaxHubs bounds how many different queries are watched at once; 0 is 16384.
	MaxHubs int
	// Epoch names the history that this store begins. Servers of one cluster share
	// it; a history that is not kept on disk needs one of its own. A restored
	// backup brings its own along. Empty is "weft".
	Epoch string
}

func (c Config) withDefaults() Config {
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.DefaultIntention != catalog.ActionAllow {
		c.DefaultIntention = catalog.ActionDeny
	}
	if c.Linger == 0 {
		c.Linger = 30 * time.Second
	}
	if c.Coalesce == 0 {
		c.Coalesce = 20 * time.Millisecond
	}
	if c.MaxHubs == 0 {
		c.MaxHubs = 16384
	}
	if c.Epoch == "" {
		c.Epoch = "weft"
	}
	return c
}

// Store is the catalog in memory. Apply and Restore are called by one goroutine
// at a time, as Raft does; everything else from any.
type Store struct {
	cfg    Config
	writes sync.Mutex // orders Apply, Restore and Backup
	state  atomic.Pointer[state]
	hubs   hubs
	views  atomic.Uint64 // computed by hubs
}

// state is one unbroken stretch of history: it is replaced by Restore.
type state struct {
	now     atomic.Pointer[moment]
	epoch   epoch
	applied catalog.Latest[struct{}]
	waits   waits
	// replaced is closed when another state took this one's place.
	replaced chan struct{}
}

// epoch tells histories apart. Generation grows with each restore that breaks
// with what was served before.
type epoch struct {
	Base       string
	Generation uint64
}

func (e epoch) String() string { return fmt.Sprintf("%s.%d", e.Base, e.Generation) }

var errReplaced = errors.New("store: restored")

// New returns an empty store.
func New(cfg Config) (*Store, error) {
	if cfg.Linger < 0 || cfg.Coalesce < 0 || cfg.MaxHubs < 0 {
		return nil, catalog.Invalidf("store: Linger, Coalesce and MaxHubs must not be negative")
	}
	switch cfg.DefaultIntention {
	case "", catalog.ActionAllow, catalog.ActionDeny:
	default:
		return nil, catalog.Invalidf("store: the default intention action %q is neither allow nor deny", cfg.DefaultIntention)
	}
	s := &Store{cfg: cfg.withDefaults()}
	s.state.Store(newState(epoch{Base: s.cfg.Epoch}, newMoment()))
	s.hubs.init(s)
	return s, nil
}

func newState(e epoch, m *moment) *state {
	st := &state{epoch: e, replaced: make(chan struct{})}
	st.now.Store(m)
	return st
}

// read is for readers: all that they see is of one moment.
func (st *state) read() reader { return reader{moment: st.now.Load()} }

// commit shows readers what a writer did, up to the command with an index, and wakes
// those whom it concerns.
func (st *state) commit(w *writer, applied uint64) {
	st.now.Store(w.finish(applied))
	st.waits.wake(w.touched, w.keys)
}

// Close stops the hubs and waits for them; every watch ends with ErrUnavailable.
// Reads and Apply go on working.
func (s *Store) Close() { s.hubs.close() }

// Index is the index of the last command applied, 0 before the first.
func (s *Store) Index() uint64 {
	_, i := s.state.Load().applied.Get()
	return i
}

// Epoch names the present history: see catalog.View.
func (s *Store) Epoch() string { return s.state.Load().epoch.String() }

// WaitIndex returns when the command at index, or a later one, is applied.
func (s *Store) WaitIndex(ctx context.Context, index uint64) error {
	if index == 0 {
		return nil
	}
	for {
		_, _, err := s.state.Load().applied.Next(ctx, index-1)
		if !errors.Is(err, errReplaced) {
			return err
		}
	}
}

// Read answers q once, from the state of now. The view may be shared.
func (s *Store) Read(q catalog.Query) (*catalog.View, error) {
	if err := q.Validate(); err != nil {
		return nil, err
	}
	st := s.state.Load()
	return s.view(st.read(), st.epoch, q), nil
}

// Current tells, as of one moment, the index that a view of q has, the index up
// to which that is known, and the epoch. A reader that holds the view of index
// view has nothing to learn up to index current.
func (s *Store) Current(q catalog.Query) (view, current uint64, epoch string, err error) {
	if err := q.Validate(); err != nil {
		return 0, 0, "", err
	}
	st := s.state.Load()
	r := st.read()
	return r.queryIndex(nil, q), r.lastIndex(), st.epoch.String(), nil
}

// NodeOf finds the name of the node with an ID, "" when there is none.
func (s *Store) NodeOf(id string) string {
	if n, ok := s.state.Load().read().nodeByID(id); ok {
		return n.Node
	}
	return ""
}

// Roots gives the certificate roots with their sealed keys, for the servers'
// certificate authority alone; views carry them without.
func (s *Store) Roots() []*catalog.Root {
	return s.state.Load().read().roots()
}

// Equal tells whether the catalog already says state of its host, so that
// stating it again would change nothing.
func (s *Store) Equal(ns catalog.NodeState) bool {
	if ns.Node == nil {
		return false
	}
	// A trial that is thrown away: it cannot differ from what Apply would do.
	m := s.state.Load().now.Load()
	w := newWriter(m, m.applied+1)
	w.trial = true
	err := w.syncNode(&catalog.SyncNode{State: ns})
	return err == nil && !w.changed
}
