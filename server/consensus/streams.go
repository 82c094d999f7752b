package consensus

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/catalog/wire"
)

type networkAddr string

func (networkAddr) Network() string  { return "tcp" }
func (a networkAddr) String() string { return string(a) }

// streams is a raft.StreamLayer.
type streams struct {
	cfg  Network
	self string
	addr networkAddr
	log  *slog.Logger
	// configuration gives those who take part, and leading tells whether this node leads
	// in a term. Both are set before anything is sent or accepted.
	configuration func() ([]raft.Server, error)
	leading       func(term uint64) bool
	prompter      *prompter

	refusals *repeats
	ready    chan net.Conn
	unjudged chan struct{}
	lost     chan struct{}   // has a value when gone is to be looked at
	ctx      context.Context // ends when it is closed
	cancel   context.CancelFunc
	once     sync.Once
	wg       sync.WaitGroup

	mu      sync.Mutex
	conns   map[string]map[net.Conn]struct{} // accepted, by node ID
	strange map[string]bool                  // those of conns that were no members when last looked at
	gone    map[string]bool                  // servers that closed a connection since this was looked at
}

// Addr implements net.Listener: the address that others know.
func (s *streams) Addr() net.Addr { return s.addr }

// Accept implements net.Listener.
func (s *streams) Accept() (net.Conn, error) {
	select {
	case c := <-s.ready:
		return c, nil
	case <-s.ctx.Done():
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (s *streams) Close() error {
	err := net.ErrClosed
	s.once.Do(func() {
		s.cancel()
		err = s.cfg.Listener.Close()
		s.sever(func(string) bool { return true })
	})
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// Dial implements raft.StreamLayer.
func (s *streams) Dial(target raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	id, addr, ok := strings.Cut(string(target), "@")
	if !ok {
		return nil, fmt.Errorf("consensus: no node ID in %q", target)
	}
	ctx, cancel := context.WithTimeout(s.ctx, timeout)
	defer cancel()
	if id == s.self {
		ours, theirs := net.Pipe()
		return ours, s.hand(theirs)
	}
	c, err := s.cfg.Dial(ctx, id, addr)
	if err != nil {
		return nil, &dialError{err}
	}
	return c, nil
}

// leads tells whether this node leads still in term, and a server takes part.
func (s *streams) leads(term uint64, id raft.ServerID) bool {
	if !s.leading(term) {
		return false
	}
	servers, err := s.configuration()
	return err == nil && slices.ContainsFunc(servers, func(have raft.Server) bool { return have.ID == id })
}

// hand gives a connection to raft.
func (s *streams) hand(c net.Conn) error {
	select {
	case s.ready <- c:
		return nil
	case <-s.ctx.Done():
		return errors.Join(net.ErrClosed, c.Close())
	}
}

// serve judges who connects until the listener is closed.
func (s *streams) serve() {
	s.wg.Go(func() { s.prompter.run(s.ctx) })
	s.wg.Go(func() {
		for {
			c, err := s.cfg.Listener.Accept()
			if err != nil {
				if s.ctx.Err() == nil {
					s.log.Error("raft accepts no more connections", "err", err)
				}
				return
			}
			select {
			case s.unjudged <- struct{}{}:
			default:
				_ = c.Close()
				continue
			}
			s.wg.Go(func() {
				defer func() { <-s.unjudged }()
				s.judge(c)
			})
		}
	})
}

// judge lets in who takes part in Raft, and nobody else.
func (s *streams) judge(c net.Conn) {
	id, err := s.cfg.Identify(c)
	if err == nil {
		err = s.known(id)
	}
	if err == nil {
		c, err = s.keep(id, c)
	}
	if err != nil {
		s.log.Warn("a connection to raft is refused", "peer", id, "addr", c.RemoteAddr().String(), "err", err)
		_ = c.Close()
		return
	}
	_ = s.hand(c) // closed when it cannot be
}

// known tells whether a server may speak Raft with this one.
func (s *streams) known(id string) error {
	servers, err := s.configuration()
	if err != nil {
		return err
	}
	if len(servers) == 0 {
		return nil // it takes this server in
	}
	others := map[string]string{}
	for _, have := range servers {
		if string(have.ID) == id {
			return nil
		}
		others[string(have.ID)] = string(have.Address)
	}
	if s.cfg.Vouch == nil {
		return errors.New("it is not among the servers of this cluster")
	}
	ctx, cancel := context.WithTimeout(s.ctx, vouchTimeout)
	defer cancel()
	return s.cfg.Vouch(ctx, id, others)
}

// keep remembers a connection as long as it is open.
func (s *streams) keep(id string, c net.Conn) (net.Conn, error) {
	k := &kept{Conn: c, of: s, id: id}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.conns[id]) >= maxPeerConns {
		return c, fmt.Errorf("it has %d connections already, the most allowed", maxPeerConns)
	}
	if s.conns[id] == nil {
		s.conns[id] = map[net.Conn]struct{}{}
	}
	s.conns[id][k] = struct{}{}
	return k, nil
}

// sever closes the connections from the servers that the caller chooses.
func (s *streams) sever(which func(id string) bool) {
	s.mu.Lock()
	var all []net.Conn
	for id, conns := range s.conns {
		if !which(id) {
			continue
		}
		for c := range conns {
			all = append(all, c)
		}
	}
	s.mu.Unlock()
	for _, c := range all {
		_ = c.Close()
	}
}

// kept is an accepted connection. Raft decodes what comes without a bound; here a message
// has one, which begins anew with each answer.
type kept struct {
	net.Conn
	of   *streams
	id   string
	gone atomic.Bool

	backup atomic.Bool  // the message says that a backup follows it
	came   atomic.Int64 // bytes of the message
	more   atomic.Int64 // bytes of that backup
}

const (
	// maxMessage is twice what a leader sends at most: a batch of the largest entries.
	maxMessage = 2 * maxAppendEntries * wire.MaxEntry
	// backupComes is the first byte of raft's message that a backup follows.
	backupComes = 2
)

// Read implements net.Conn.
func (k *kept) Read(b []byte) (int, error) {
	n, err := k.Conn.Read(b)
	if n > 0 && k.came.Load() == 0 {
		k.backup.Store(b[0] == backupComes)
	}
	if k.came.Add(int64(n))-k.more.Load() <= maxMessage {
		return n, err
	}
	k.of.log.Error("a server sends a message to raft that is larger than any: its connection is closed", "peer", k.id, "limit", maxMessage)
	return 0, errors.Join(errTooLarge, k.Close())
}

// Write implements net.Conn.
func (k *kept) Write(b []byte) (int, error) {
	k.came.Store(0)
	k.more.Store(0)
	return k.Conn.Write(b)
}

var errTooLarge = fmt.Errorf("consensus: a message to raft of more than %d bytes: %w", maxMessage, catalog.ErrTooLarge)

// expect lets a backup of a size come from a server that has said so.
func (s *streams) expect(id string, size int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns[id] {
		if k, ok := c.(*kept); ok && k.backup.Load() {
			k.more.Store(max(size, 0))
		}
	}
}

// Close implements net.Conn.
func (k *kept) Close() error {
	if !k.gone.CompareAndSwap(false, true) {
		return nil
	}
	k.of.mu.Lock()
	delete(k.of.conns[k.id], k)
	if len(k.of.conns[k.id]) == 0 {
		delete(k.of.conns, k.id)
	}
	k.of.gone[k.id] = true
	k.of.mu.Unlock()
	select {
	case k.of.lost <- struct{}{}:
	default: // it is to be looked at already
	}
	return k.Conn.Close()
}

// takeLost gives the servers that closed a connection since it was called last.
func (s *streams) takeLost() map[string]bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	gone := s.gone
	s.gone = map[string]bool{}
	return gone
}

// dropStrangers ends the connections of those who are no members.
func (s *streams) dropStrangers(member map[string]bool) {
	s.mu.Lock()
	gone := map[string]bool{}
	for id := range s.conns {
		if !member[id] && s.strange[id] { // for the second time: its coming may be on the way
			gone[id] = true
		}
	}
	strange := map[string]bool{}
	for id := range s.conns {
		strange[id] = !member[id]
	}
	s.strange = strange
	s.mu.Unlock()
	s.sever(func(id string) bool { return gone[id] })
}
