package tunnel

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
)

// appReader reads an application without holding a buffer while it waits.
type appReader struct {
	conn net.Conn
	raw  syscall.RawConn
	big  bool
	buf  *[]byte
	n    int
	err  error
	back *appWriter // the other direction of conn
}

func newAppReader(c net.Conn, back *appWriter) *appReader {
	r := &appReader{conn: c, back: back}
	if sc, ok := c.(syscall.Conn); ok && canProbe {
		if raw, err := sc.SyscallConn(); err == nil {
			r.raw = raw
			back.probed = true
		}
	}
	return r
}

var smallBuffers = sync.Pool{New: func() any { b := make([]byte, 8<<10); return &b }}

func bulkOrSmall(b *[]byte) {
	switch {
	case b == nil:
	case len(*b) == MaxData:
		bulkBuffers.Put(b)
	default:
		smallBuffers.Put(b)
	}
}

func (r *appReader) buffer() *[]byte {
	if r.big {
		return bulkBuffers.Get().(*[]byte)
	}
	return smallBuffers.Get().(*[]byte)
}

// read gives a buffer that the caller releases. A full one means bulk, and bulk
// pays for larger ones.
func (r *appReader) read() (*[]byte, int, error) {
	if r.raw == nil {
		b := r.buffer()
		n, err := r.conn.Read(*b)
		r.big = n == len(*b)
		return b, n, err
	}
	r.buf, r.n, r.err = nil, 0, nil
	err := r.raw.Read(r.probe)
	if err == nil {
		err = r.err
		if err != nil {
			err = os.NewSyscallError("read", err)
		} else if r.n == 0 {
			err = io.EOF
		}
	}
	if r.buf != nil {
		r.big = r.n == len(*r.buf)
	}
	return r.buf, r.n, err
}

func (r *appReader) probe(fd uintptr) bool {
	b := r.buffer()
	n, again, err := readFD(fd, *b)
	if again {
		bulkOrSmall(b)
		return false
	}
	if err == nil && n == 0 && closedFD(fd) && r.back.reset() {
		err = syscall.ECONNRESET
	}
	r.buf, r.n, r.err = b, n, err
	return true
}

// appWriter writes to an application and remembers how that failed. A write uses the
// error of a reset up, and the read beside it then says "end"; only the writer knows
// better. EPIPE is no reset: the application had ended in order before it closed.
type appWriter struct {
	net.Conn
	flow   *Flow
	probed bool // the reader can tell a reset that a write met

	mu  sync.Mutex
	err error
}

// Write implements io.Writer.
func (w *appWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	n, err := w.Conn.Write(p)
	w.flow.received.Add(int64(n))
	if err != nil && w.err == nil {
		w.err = err
	}
	return n, err
}

// reset tells whether a write has met the reset of the socket. The socket must be
// dead, as a write under way is waited for.
func (w *appWriter) reset() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.err != nil && !errors.Is(w.err, syscall.EPIPE)
}
