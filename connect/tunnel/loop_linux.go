package tunnel

import (
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	inBuffer    = 256 << 10           // ciphertext read from the kernel at once
	plainBuffer = 128 << 10           // of several records, so that a long frame becomes one write
	outBuffer   = 256 << 10           // frames of one turn
	turnRead    = 512 << 10           // ciphertext read of one tunnel a turn
	turnOpens   = 256                 // streams of one tunnel judged a turn
	pairRead    = 64 << 10            // the same of a pair: it waits for its application
	readChunk   = 64<<10 - headerSize // of an application a turn: with its header, four full records
	maxUnsent   = 1 << 20             // a peer that provokes output and takes none is given up
	pollAloud   = 16                  // turns in a row, one of which the scheduler hears of
)

// loop owns an epoll set, raw sockets and the tunnels between them. One goroutine
// runs it; nothing else touches what is below, except through the mailbox.
//
// Its epoll descriptor is nested in Go's own poller, so that an idle loop is a
// parked goroutine and not a blocked thread. Sockets are registered once,
// edge-triggered; a flag remembers what the kernel will not say again.
type loop struct {
	cfg    Config
	ep     *os.File
	epfd   int
	raw    syscall.RawConn
	wake   int // eventfd
	events [256]unix.EpollEvent
	nready int

	slots []slot
	free  []int32

	// active are those to serve in the next turn, each once.
	active, spare []server
	accepting     []*loopListener // the same for listeners, first: what they accept is served in the same turn
	tunnels       map[*loopTunnel]struct{}
	lingering     map[*loopStream]struct{} // of tunnels that are gone
	pairs         map[*loopPair]struct{}
	listeners     map[*loopListener]struct{}
	splices       map[*loopSplice]struct{}
	pipes         []*pipe // empty ones, few
	piping        int     // others, in use

	// Buffers of the turn. in is empty whenever another tunnel is served.
	in    []byte
	ahead []byte // of in, not yet taken by crypto/tls
	plain []byte
	out   []byte
	stage []byte // ciphertext for the socket

	ticking bool
	hope    hope
	turned  [3]int32 // slots of the last turns' events, -1: not one alone
	held    bool     // the events of the next turn are there
	dials   dials

	mailbox  sync.Mutex
	mail     []func()
	mailPrev []func()
	closed   bool
	sleeping atomic.Bool
	stopping bool
	over     bool
	done     chan struct{}
}

// handler is what a descriptor belongs to. It only marks; serve does the work.
type handler interface{ ready(events uint32) }

// server is a tunnel or a pair: all of its work in a turn is done in one go.
type server interface{ serve() }

// slot ties an event to a handler. The generation makes an event harmless that is
// older than what is in the slot now.
type slot struct {
	h   handler
	gen int32
}

func newLoop(cfg Config) (*loop, error) {
	epfd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("epoll_create: %w", err)
	}
	if err := unix.SetNonblock(epfd, true); err != nil {
		_ = unix.Close(epfd)
		return nil, fmt.Errorf("epoll: %w", err)
	}
	wake, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		_ = unix.Close(epfd)
		return nil, fmt.Errorf("eventfd: %w", err)
	}
	l := &loop{
		cfg: cfg, epfd: epfd, ep: os.NewFile(uintptr(epfd), "epoll"), wake: wake, done: make(chan struct{}),
		tunnels: map[*loopTunnel]struct{}{}, lingering: map[*loopStream]struct{}{}, pairs: map[*loopPair]struct{}{},
		listeners: map[*loopListener]struct{}{}, splices: map[*loopSplice]struct{}{},
		in: make([]byte, inBuffer), plain: make([]byte, plainBuffer), out: make([]byte, 0, outBuffer+32<<10),
		stage: make([]byte, 0, outBuffer+32<<10),
	}
	l.dials.init(l)
	l.raw, err = l.ep.SyscallConn()
	if err == nil {
		_, err = l.register(wake, wakeUp{})
	}
	if err != nil {
		l.ep.Close()
		_ = unix.Close(wake)
		return nil, fmt.Errorf("event loop: %w", err)
	}
	return l, nil
}

// wakeUp is the eventfd: edge-triggered, so nobody has to read it.
type wakeUp struct{}

func (wakeUp) ready(uint32) {}

// hasMore are the events of a socket with something to read. EPOLLPRI is urgent data: a read
// stops short of it though more is behind it, as it does before an end.
const hasMore = unix.EPOLLIN | unix.EPOLLPRI

// register adds a non-blocking descriptor for all events, for good.
func (l *loop) register(fd int, h handler) (int32, error) {
	var i int32
	if n := len(l.free); n > 0 {
		i = l.free[n-1]
		l.free = l.free[:n-1]
	} else {
		i = int32(len(l.slots))
		l.slots = append(l.slots, slot{})
	}
	s := &l.slots[i]
	s.h = h
	ev := unix.EpollEvent{Events: hasMore | unix.EPOLLOUT | unix.EPOLLRDHUP | unix.EPOLLET, Fd: i, Pad: s.gen}
	if e := rawEpollCtl(l.epfd, unix.EPOLL_CTL_ADD, fd, &ev); e != 0 {
		l.release(i)
		return -1, os.NewSyscallError("epoll_ctl", e)
	}
	return i, nil
}

// release frees a slot; the descriptor leaves the set when it is closed.
func (l *loop) release(i int32) {
	s := &l.slots[i]
	s.h = nil
	s.gen++
	l.free = append(l.free, i)
}

// post has f run on the loop; false: the loop has ended and f will not run.
func (l *loop) post(f func()) bool {
	l.mailbox.Lock()
	if l.closed {
		l.mailbox.Unlock()
		return false
	}
	l.mail = append(l.mail, f)
	l.mailbox.Unlock()
	if l.sleeping.CompareAndSwap(true, false) {
		rawWake(l.wake) // a full counter has woken it too
	}
	return true
}

func (l *loop) runMail() {
	l.mailbox.Lock()
	mail := l.mail
	l.mail = l.mailPrev[:0]
	l.mailbox.Unlock()
	for i, f := range mail {
		mail[i] = nil
		f()
	}
	if cap(mail) > 4096 {
		mail = nil
	}
	l.mailPrev = mail
}

func (l *loop) activate(s server) { l.active = append(l.active, s) }

// run is the loop. All of its turns run inside one read of the nested descriptor, so
// that a turn costs one look at the events and no second one before it may rest.
func (l *loop) run() {
	defer close(l.done)
	for !l.over {
		if err := l.raw.Read(l.turns); err != nil {
			l.stopping = true // the descriptor is gone: nothing can be served any more
			l.turns(0)
		}
	}
	l.ep.Close()
	_ = unix.Close(l.wake)
	l.dials.stop()
	for _, p := range l.pipes {
		p.close()
	}
}

// turns runs turn after turn while there is something to do. False parks the goroutine
// until there are events; those that came after the last look wake it at once, as
// Go's poller remembers them.
func (l *loop) turns(uintptr) bool {
	l.sleeping.Store(false)
	for n := 1; ; n++ {
		if !l.held {
			l.poll(n%pollAloud == 0)
		}
		l.held = false
		l.turn()
		if l.stopping && l.finished() {
			l.over = true
			return true
		}
		if len(l.active)+len(l.accepting) > 0 || l.nready == len(l.events) || l.stopping {
			continue
		}
		if l.held = l.alone() && (n+1)%pollAloud != 0 && l.linger(); l.held {
			continue
		}
		l.sleeping.Store(true)
		l.mailbox.Lock()
		waiting := len(l.mail) > 0
		l.mailbox.Unlock()
		if !waiting {
			return false
		}
		l.sleeping.Store(false)
	}
}

// turn collects all events, only marking; then serves each tunnel that has any
// completely. What is left of it comes first in the next turn, which then does not wait.
func (l *loop) turn() {
	for i := range l.nready {
		ev := &l.events[i]
		if s := &l.slots[ev.Fd]; s.gen == ev.Pad && s.h != nil {
			s.h.ready(ev.Events)
		}
	}
	l.acceptAll()
	l.runMail()
	batch := l.active
	l.active = l.spare[:0]
	for i, s := range batch {
		batch[i] = nil
		s.serve()
	}
	l.spare = batch
}

// acceptAll serves the listeners. One that has more comes again in the next turn.
func (l *loop) acceptAll() {
	for n := len(l.accepting); n > 0; n-- {
		a := l.accepting[0]
		l.accepting = append(l.accepting[:0], l.accepting[1:]...)
		a.serve()
	}
}

// poll gets the next events, without waiting; aloud, the scheduler hears of it.
func (l *loop) poll(aloud bool) {
	for {
		var n int
		var err error
		if aloud {
			n, err = unix.EpollWait(l.epfd, l.events[:], 0)
		} else if k, e := rawEpollWait(l.epfd, l.events[:]); e != 0 {
			err = e
		} else {
			n = k
		}
		if err == unix.EINTR { //nolint:errorlint // a bare errno
			continue
		}
		if l.nready = max(n, 0); err != nil {
			l.nready = 0
		}
		return
	}
}

// stop ends everything on the loop; run returns after it.
func (l *loop) stop(err error) {
	l.stopping = true
	for a := range l.listeners {
		a.close()
	}
	for t := range l.tunnels {
		t.fail(err)
	}
	for p := range l.pairs {
		p.finish(End{Cause: CauseOwner, Code: CodeDraining, Err: err}, true)
	}
	for s := range l.splices {
		s.stop(err)
	}
	for s := range l.lingering {
		s.finish(End{Cause: CauseOwner, Code: CodeDraining, Err: err}, true)
	}
}

// finished closes the mailbox once it is empty.
func (l *loop) finished() bool {
	l.mailbox.Lock()
	defer l.mailbox.Unlock()
	if len(l.mail) > 0 {
		return false
	}
	l.closed = true
	return true
}

// keepTicking starts the clock of the keepalive with the first tunnel.
func (l *loop) keepTicking() {
	if l.ticking || len(l.tunnels) == 0 {
		return
	}
	l.ticking = true
	time.AfterFunc(l.cfg.Keepalive, func() {
		l.post(func() {
			l.ticking = false
			for t := range l.tunnels {
				t.tick()
			}
			l.keepTicking()
		})
	})
}

// wouldBlock is what the transport below crypto/tls returns when nothing is there.
// crypto/tls keeps its state on an error that calls itself temporary: undocumented,
// and pinned by a test.
type wouldBlock struct{}

func (wouldBlock) Error() string   { return "would block" }
func (wouldBlock) Timeout() bool   { return true }
func (wouldBlock) Temporary() bool { return true }

// writeSome writes what the socket takes now.
func writeSome(fd int, p []byte) (int, error) {
	for {
		n, err := rawSend(fd, p)
		switch err {
		case 0:
			return n, nil
		case unix.EINTR:
		case unix.EAGAIN:
			return 0, nil
		default:
			return 0, os.NewSyscallError("write", err)
		}
	}
}

// closeFD closes a socket; cut lets its far end see a reset.
func closeFD(fd int, cut bool) {
	resetOnClose(fd, cut)
	rawClose(fd)
}

// endFD is closeFD for a socket that is carried: closing resets its far end already.
func endFD(fd int, cut bool) {
	if !cut {
		resetOnClose(fd, false)
	}
	rawClose(fd)
}

// resetOnClose has the kernel reset the far end when the socket is closed. It is set
// for an application as long as it is carried: should this process be killed, what the
// application has so far must not look complete.
func resetOnClose(fd int, on bool) {
	var l unix.Linger
	if on {
		l.Onoff = 1
	}
	_ = setLinger(fd, l) // Unix sockets ignore it
}

var errNotSocket = errors.New("the event loop needs a connection with a descriptor of its own (TCP or Unix)")

// takeFD gives the caller the descriptor of a connection and closes the latter.
func takeFD(c any) (int, error) {
	if a, ok := c.(*app); ok {
		fd, conn := a.take()
		switch {
		case fd >= 0:
			return fd, nil
		case conn == nil:
			return -1, net.ErrClosed
		}
		c = conn
	}
	sc, ok := c.(syscall.Conn)
	if !ok {
		return -1, errNotSocket
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return -1, err
	}
	fd := -1
	var derr error
	if err := raw.Control(func(p uintptr) { fd, derr = unix.FcntlInt(p, unix.F_DUPFD_CLOEXEC, 0) }); err != nil {
		return -1, err
	}
	if derr != nil {
		return -1, os.NewSyscallError("dup", derr)
	}
	if cl, ok := c.(interface{ Close() error }); ok {
		_ = cl.Close()
	}
	return fd, nil
}
