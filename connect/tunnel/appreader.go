package tunnel

import (
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
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
	// finished: our end was passed to the application, after which nothing is
	// written to it that could use up the error of a reset.
	finished *atomic.Bool
}

func newAppReader(c net.Conn, finished *atomic.Bool) *appReader {
	r := &appReader{conn: c, finished: finished}
	if sc, ok := c.(syscall.Conn); ok && canProbe {
		if raw, err := sc.SyscallConn(); err == nil {
			r.raw = raw
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
	if err == nil && n == 0 && !r.finished.Load() && closedFD(fd) {
		err = syscall.ECONNRESET
	}
	r.buf, r.n, r.err = b, n, err
	return true
}
