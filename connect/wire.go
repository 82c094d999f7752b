package connect

import (
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
)

// maxRecord is the most that one TLS record carries.
const maxRecord = 16 << 10

// errTruncated is the end of a TCP stream in a TLS connection that was not closed.
// crypto/tls would report a bare FIN between records as a clean end.
var errTruncated = fmt.Errorf("the connection ended without close_notify: %w", io.ErrUnexpectedEOF)

// wouldBlock is what a wire that polls returns when nothing is there. crypto/tls
// keeps its state on an error that calls itself temporary; a test pins that.
type wouldBlock struct{}

func (wouldBlock) Error() string   { return "would block" }
func (wouldBlock) Timeout() bool   { return true }
func (wouldBlock) Temporary() bool { return true }

var _ net.Error = wouldBlock{}

// wire is the transport below crypto/tls. It tells a truncated stream from a
// complete one, can read without waiting, and can gather the records of one bulk
// write into one send.
type wire struct {
	net.Conn
	raw     syscall.RawConn // nil: no reading without waiting
	spoke   atomic.Bool     // the peer has sent a byte
	evicted atomic.Bool     // closed to make room for another

	// These belong to the reading goroutine alone.
	mode   readMode
	probe  func(fd uintptr) bool
	into   []byte
	got    int
	gotErr error

	mu       sync.Mutex // writes: a KeyUpdate answer comes from the reading side
	gathered *[]byte    // nil: write through
}

// readMode is what Read does when crypto/tls has used up what it holds.
type readMode uint8

const (
	wait         readMode = iota // for more to arrive
	takeArrived                  // what the socket has
	takeBuffered                 // nothing: only what crypto/tls holds already
)

func newWire(c net.Conn) *wire {
	w := &wire{Conn: c}
	if sc, ok := c.(syscall.Conn); ok && canProbe {
		if raw, err := sc.SyscallConn(); err == nil {
			w.raw = raw
			w.probe = w.probeOnce
		}
	}
	return w
}

// silent tells whether the peer has sent nothing, read or not.
func (w *wire) silent() bool {
	if w.spoke.Load() {
		return false
	}
	waiting := false
	if w.raw != nil {
		_ = w.raw.Control(func(fd uintptr) { waiting = hasInput(fd) }) // fails when closed: silent then
	}
	return !waiting
}

// Read implements net.Conn for crypto/tls.
func (w *wire) Read(p []byte) (int, error) {
	if w.mode != wait {
		return w.poll(p)
	}
	n, err := w.Conn.Read(p)
	if n > 0 && !w.spoke.Load() {
		w.spoke.Store(true)
	}
	if err == io.EOF { //nolint:errorlint // a net.Conn returns it bare
		err = errTruncated
	}
	return n, err
}

// poll reads what is there.
func (w *wire) poll(p []byte) (int, error) {
	if w.raw == nil || w.mode == takeBuffered {
		return 0, wouldBlock{}
	}
	w.into = p
	err := w.raw.Read(w.probe)
	w.into = nil
	switch {
	case err != nil:
		return 0, err
	case w.gotErr != nil:
		return 0, w.gotErr
	case w.got == 0:
		return 0, errTruncated
	}
	return w.got, nil
}

func (w *wire) probeOnce(fd uintptr) bool {
	w.got, w.gotErr = readFD(fd, w.into)
	return true
}

// Write implements net.Conn for crypto/tls.
func (w *wire) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.gathered != nil {
		*w.gathered = append(*w.gathered, p...)
		return len(p), nil
	}
	return w.Conn.Write(p)
}

// gather keeps the writes that follow until flush.
func (w *wire) gather() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.gathered = gatherPool.Get().(*[]byte)
}

func (w *wire) flush() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	b := w.gathered
	w.gathered = nil
	_, err := w.Conn.Write(*b)
	*b = (*b)[:0]
	if cap(*b) <= 2*bigBuffer {
		gatherPool.Put(b)
	}
	return err
}

// abort resets the connection: what is queued is dropped and the far end sees it.
func (w *wire) abort() { abort(w.Conn) }

// abort closes so that the far end sees a reset where the transport has one.
func abort(c net.Conn) {
	if t, ok := c.(interface{ SetLinger(int) error }); ok {
		_ = t.SetLinger(0) // only fails on a closed connection
	}
	_ = c.Close() // nothing is left to be told
}

const (
	smallBuffer = 16 << 10
	bigBuffer   = 64 << 10
)

// Buffers are held only while data is in flight.
var (
	smallPool  = sync.Pool{New: func() any { b := make([]byte, smallBuffer); return &b }}
	bigPool    = sync.Pool{New: func() any { b := make([]byte, bigBuffer); return &b }}
	gatherPool = sync.Pool{New: func() any { b := make([]byte, 0, bigBuffer+1024); return &b }}
)

func pool(big bool) *sync.Pool {
	if big {
		return &bigPool
	}
	return &smallPool
}
