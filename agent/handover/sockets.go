package handover

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
)

// firstFD is the first descriptor that a process inherits beside standard input,
// output and error, as systemd counts.
const firstFD = 3

// Sockets holds everything that listens in this process, so that it outlives it.
// What is bound on any free port is not kept: nobody could ask for it again.
type Sockets struct {
	log   *slog.Logger
	store *store // nil: no supervisor that keeps descriptors

	mu        sync.Mutex
	inherited map[string]*os.File // by name; not asked for yet
	kept      map[string]*socket  // by name
	unheard   map[string]bool     // names that systemd is to forget once it hears this process; nil: it does
	ending    bool                // the process ends; what is given up now is not forgotten
	passedOn  bool                // a successor has them all
}

// socket is a second descriptor of something that listens.
type socket struct {
	file *os.File
	path string // of a Unix socket
}

// Inherit takes over what the environment says was left to this process, by systemd
// or by the process before, and removes it from the environment: the children of
// this process get none of it.
func Inherit(log *slog.Logger) *Sockets {
	s := &Sockets{log: log, store: openStore(), inherited: map[string]*os.File{}, kept: map[string]*socket{}}
	defer func() {
		for _, key := range []string{"LISTEN_PID", "LISTEN_PIDFDID", "LISTEN_FDS", "LISTEN_FDNAMES"} {
			_ = os.Unsetenv(key)
		}
	}()
	if os.Getenv(controlEnv) != "" {
		s.unheard = map[string]bool{} // another one is the main process still
	} else if os.Getenv("LISTEN_PID") != strconv.Itoa(os.Getpid()) {
		return s
	}
	n, err := strconv.Atoi(os.Getenv("LISTEN_FDS"))
	if err != nil || n < 1 {
		return s
	}
	names := strings.Split(os.Getenv("LISTEN_FDNAMES"), ":")
	for i := range n {
		fd := firstFD + i
		closeOnExec(fd)
		name := ""
		if i < len(names) {
			name = names[i]
		}
		f := os.NewFile(uintptr(fd), name)
		if f == nil {
			continue
		}
		if s.inherited[name] != nil {
			_ = f.Close() // one of them is enough
			continue
		}
		s.inherited[name] = f
	}
	log.Info("listeners were left to this process", "count", len(s.inherited))
	return s
}

// Outlasts tells whether a service manager keeps what listens when this process ends. It
// closes it, too, where the service does not start again.
func (s *Sockets) Outlasts() bool { return s != nil && s.store != nil }

// nameOf is how a listener is called between processes, and in systemd's store, which
// allows no colon. It is empty for what is not kept.
func nameOf(network, addr string) string {
	if _, port, err := net.SplitHostPort(addr); err == nil && (port == "0" || port == "") {
		return ""
	}
	clean := strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9', r == '.':
			return r
		}
		return '_'
	}, addr)
	if len(clean) > 80 {
		clean = clean[len(clean)-80:]
	}
	sum := sha256.Sum256([]byte(network + " " + addr))
	return "weft-" + network + "-" + clean + "-" + hex.EncodeToString(sum[:6])
}

// Take gives the listener at addr that was left to this process, nil when there is
// none. network is "tcp" or "unix", and addr as it was given to Keep.
func (s *Sockets) Take(network, addr string) net.Listener {
	l, _ := take(s, network, addr, net.FileListener)
	return l
}

// TakePacket is Take for a UDP socket.
func (s *Sockets) TakePacket(addr string) net.PacketConn {
	c, _ := take(s, "udp", addr, net.FilePacketConn)
	return c
}

func take[T any](s *Sockets, network, addr string, open func(*os.File) (T, error)) (T, bool) {
	var none T
	if s == nil {
		return none, false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	name := nameOf(network, addr)
	f := s.inherited[name]
	if f == nil {
		return none, false
	}
	delete(s.inherited, name)
	got, err := open(f)
	if err != nil {
		s.log.Warn("a listener that was left to this process cannot be used; it is bound anew", "addr", addr, "err", err)
		_ = f.Close() // it is of no use
		s.forget(name)
		return none, false
	}
	s.keep(name, &socket{file: f, path: pathOf(network, addr)})
	return got, true
}

func pathOf(network, addr string) string {
	if network == "unix" {
		return addr
	}
	return ""
}

// Keep holds what listens at addr, so that it stays open when l is closed, until
// Release. A Unix socket is removed by Release, no longer by closing.
func (s *Sockets) Keep(network, addr string, l syscall.Conn) {
	name := nameOf(network, addr)
	if s == nil || name == "" {
		return
	}
	f, err := second(l, name)
	if err != nil {
		s.log.Warn("a listener cannot be kept for a successor", "addr", addr, "err", err)
		return
	}
	if u, ok := l.(*net.UnixListener); ok {
		u.SetUnlinkOnClose(false)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ending {
		_ = f.Close() // nobody will ask for it
		return
	}
	s.keep(name, &socket{file: f, path: pathOf(network, addr)})
}

// keep adds a socket; s.mu is held.
func (s *Sockets) keep(name string, k *socket) {
	if old := s.kept[name]; old != nil {
		_ = old.file.Close() // replaced
		s.forget(name)
	}
	s.kept[name] = k
	s.put(name, k)
}

// put leaves a socket to systemd, and forget takes it away there, at once or when this
// process is heard. s.mu is held.
func (s *Sockets) put(name string, k *socket) {
	if s.unheard != nil {
		return // Store does
	}
	if err := s.store.add(name, k.file); err != nil {
		s.log.Warn("a listener cannot be left to systemd", "addr", name, "err", err)
	}
}

func (s *Sockets) forget(name string) {
	if s.unheard != nil {
		s.unheard[name] = true
		return
	}
	s.store.remove(name)
}

// second is another descriptor of what l listens on.
func second(l syscall.Conn, name string) (*os.File, error) {
	raw, err := l.SyscallConn()
	if err != nil {
		return nil, err
	}
	var fd int
	var derr error
	if err := raw.Control(func(p uintptr) { fd, derr = duplicate(int(p)) }); err != nil {
		return nil, err
	}
	if derr != nil {
		return nil, fmt.Errorf("duplicate: %w", derr)
	}
	return os.NewFile(uintptr(fd), name), nil
}

// Release gives up what listens at addr: nobody wants it any more. At the end of the
// process it stays with those that it was passed on to.
func (s *Sockets) Release(network, addr string) {
	if s == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	name := nameOf(network, addr)
	if k := s.kept[name]; k != nil {
		delete(s.kept, name)
		s.drop(name, k)
	}
}

func (s *Sockets) drop(name string, k *socket) {
	_ = k.file.Close() // a copy; nothing is lost with it
	if !s.ending {
		s.forget(name)
	}
	if k.path != "" && !s.passedOn && (!s.ending || s.store == nil) {
		_ = os.Remove(k.path) // gone already is as good
	}
}

// Discard closes what was left to this process and nobody asked for.
func (s *Sockets) Discard() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for name, f := range s.inherited {
		s.log.Info("a listener that was left to this process is not wanted any more", "addr", name)
		_ = f.Close() // that is all that is wanted
		s.forget(name)
	}
	clear(s.inherited)
}

// Store leaves everything to systemd, which hears this process from now on: it is the
// main one of its unit.
func (s *Sockets) Store() {
	s.mu.Lock()
	defer s.mu.Unlock()
	forget := s.unheard
	s.unheard = nil
	for name := range forget {
		s.forget(name) // first: something else may bear that name by now
	}
	for name, k := range s.kept {
		s.put(name, k)
	}
}

// Close is for the end of the process: from now on nothing is held here. What systemd
// has it keeps, if the unit starts again.
func (s *Sockets) Close() { s.end(false) }

// PassedOn is Close once a successor has everything.
func (s *Sockets) PassedOn() { s.end(true) }

func (s *Sockets) end(passedOn bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ending, s.passedOn = true, s.passedOn || passedOn
	for name, k := range s.kept {
		s.drop(name, k)
	}
	clear(s.kept)
	for _, f := range s.inherited {
		_ = f.Close() // as above
	}
	clear(s.inherited)
}

// files are all sockets, with their names, for a successor.
func (s *Sockets) files() (files []*os.File, names []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, name := range slices.Sorted(maps.Keys(s.kept)) {
		names, files = append(names, name), append(files, s.kept[name].file)
	}
	for _, name := range slices.Sorted(maps.Keys(s.inherited)) {
		names, files = append(names, name), append(files, s.inherited[name])
	}
	return files, names
}
