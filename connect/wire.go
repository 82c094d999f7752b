package connect

import (
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/weftmesh/weft/connect/identity"
	"github.com/weftmesh/weft/connect/tunnel"
)

// wire is a connection of the mesh below TLS. It tells whether the peer has said
// anything, and can be cut from any goroutine.
type wire struct {
	net.Conn
	raw   syscall.RawConn // nil: it has no descriptor
	spoke atomic.Bool     // the peer has sent a byte
	gone  chan struct{}   // closed when it makes room for another
	came  time.Time
	ours  atomic.Int64 // of the time since, what we have taken ourselves
	since atomic.Int64 // when we began to, as time since it came; 0: the peer is waited for

	// These belong to the goroutine of the handshake.
	early []byte     // read already, to be read again
	turns *turnstile // nil: nothing is waited for
	most  int        // bytes that a handshake may have; 0: no bound
	got   int        // of them
	alone bool       // the next record is to be read alone
	rest  int        // bytes of it that are still to come
}

// maxHandshake bounds what is read of a handshake. Ours has 3 kB, and ten certificates
// of strangers hardly 30; crypto/tls would keep 256 KiB of each.
const maxHandshake = 64 << 10

func newWire(c net.Conn) *wire {
	w := &wire{Conn: c, gone: make(chan struct{}), came: time.Now()}
	if sc, ok := c.(syscall.Conn); ok {
		if raw, err := sc.SyscallConn(); err == nil {
			w.raw = raw
		}
	}
	return w
}

// secureServer and secureClient put TLS on a wire so that a driver can take the
// connection over.
func secureServer(w *wire, c *tls.Config) *tls.Conn { return tls.Server(tunnel.NewWire(w), c) }

func secureClient(w *wire, c *tls.Config) *tls.Conn {
	w.alone = true
	return tls.Client(tunnel.NewWire(w), c)
}

// evict cuts the connection to make room for another; once at most.
func (w *wire) evict() {
	close(w.gone)
	w.abort()
}

func (w *wire) evicted() bool {
	select {
	case <-w.gone:
		return true
	default:
		return false
	}
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

// awaited is for how long the peer has been waited for since it came. What it waits for us
// to compute is not its fault.
func (w *wire) awaited() time.Duration {
	until := time.Duration(w.since.Load()) // first: end adds to ours before it clears it
	if until == 0 {
		until = time.Since(w.came)
	}
	return until - time.Duration(w.ours.Load())
}

// begin is before TLS computes, end after it.
func (w *wire) begin() error {
	if w.turns == nil {
		return nil
	}
	w.since.Store(max(1, int64(time.Since(w.came))))
	return w.turns.begin()
}

func (w *wire) end() {
	if w.turns == nil {
		return
	}
	if since := w.since.Load(); since > 0 {
		w.ours.Add(int64(time.Since(w.came)) - since)
		w.since.Store(0)
	}
	w.turns.end()
}

// Read implements net.Conn.
func (w *wire) Read(p []byte) (int, error) {
	w.end()
	if w.most > 0 {
		if w.got >= w.most {
			return 0, &identity.VerifyError{
				Reason: identity.ReasonTooLarge, Detail: fmt.Sprintf("a handshake of more than %d bytes: look at how many certificates it shows, and at their size", w.most),
			}
		}
		p = p[:min(len(p), w.most-w.got)]
	}
	if len(w.early) > 0 {
		n := copy(p, w.early)
		w.got += n
		if w.early = w.early[n:]; len(w.early) == 0 {
			w.early = nil
		}
		return n, w.begin()
	}
	n, err := w.read(p)
	w.got += n
	if n > 0 && !w.spoke.Load() {
		w.spoke.Store(true)
	}
	if err == nil {
		err = w.begin()
	}
	return n, err
}

// read takes no more than one record where that is to be read alone, and its header first.
// The first of a server is most of its handshake, by the size of its share of the key, and
// crypto/tls makes room for it. What it would read beyond it, a part of the next record,
// would fill that room, so that it would get half as much again for the rest, and keep it.
func (w *wire) read(p []byte) (n int, err error) {
	const header = 5
	switch {
	case w.rest > 0:
		n, err = w.Conn.Read(p[:min(len(p), w.rest)])
		w.rest -= n
	case !w.alone || len(p) < header:
		return w.Conn.Read(p)
	default:
		w.alone = false
		if n, err = io.ReadFull(w.Conn, p[:header]); n == header {
			w.rest = int(binary.BigEndian.Uint16(p[header-2:]))
		} else if n > 0 {
			err = nil // the next Read has it
		}
	}
	return n, err
}

// Write implements net.Conn.
func (w *wire) Write(p []byte) (int, error) {
	w.end()
	return w.Conn.Write(p)
}

// SyscallConn lets a driver take the descriptor.
func (w *wire) SyscallConn() (syscall.RawConn, error) {
	if w.raw == nil {
		return nil, errors.New("the connection has no descriptor")
	}
	return w.raw, nil
}

// SetLinger lets a driver reset the connection.
func (w *wire) SetLinger(seconds int) error {
	if t, ok := w.Conn.(interface{ SetLinger(int) error }); ok {
		return t.SetLinger(seconds)
	}
	return nil
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
