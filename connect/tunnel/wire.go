package tunnel

import (
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// Wire is the transport to put below crypto/tls. It lets a Driver take the
// connection over after the handshake, gathers the records of one bulk write into
// one send, and tells a truncated connection from a complete one. Until a Driver
// has it, it is an ordinary net.Conn, deadlines included.
type Wire struct {
	net.Conn

	mu       sync.Mutex // writes: a KeyUpdate answer comes from the reading side
	gather   bool
	gathered []byte

	// taken is set before a loop has the connection and never changes after that.
	taken transport
}

// transport is the loop's side of a Wire: it never blocks.
type transport interface {
	readTLS(p []byte) (int, error)
	writeTLS(p []byte) (int, error)
}

// handedOver is in the place of the connection of a Wire whose descriptor a loop has: what
// Go keeps of a closed one, with its addresses, is half a kilobyte for each idle tunnel.
type handedOver struct{}

func (handedOver) Read([]byte) (int, error)         { return 0, net.ErrClosed }
func (handedOver) Write([]byte) (int, error)        { return 0, net.ErrClosed }
func (handedOver) Close() error                     { return nil }
func (handedOver) LocalAddr() net.Addr              { return &net.TCPAddr{} }
func (handedOver) RemoteAddr() net.Addr             { return &net.TCPAddr{} }
func (handedOver) SetDeadline(time.Time) error      { return nil }
func (handedOver) SetReadDeadline(time.Time) error  { return nil }
func (handedOver) SetWriteDeadline(time.Time) error { return nil }

// NewWire wraps the connection below TLS.
func NewWire(c net.Conn) *Wire { return &Wire{Conn: c} }

// ErrTruncated is the end of a TCP stream in a TLS connection that was not closed.
// crypto/tls would report a bare FIN between records as a clean end.
var ErrTruncated = fmt.Errorf("the connection ended without close_notify: %w", io.ErrUnexpectedEOF)

// Read implements net.Conn.
func (w *Wire) Read(p []byte) (int, error) {
	if w.taken != nil {
		return w.taken.readTLS(p)
	}
	n, err := w.Conn.Read(p)
	if err == io.EOF { //nolint:errorlint // a net.Conn returns it bare
		err = ErrTruncated
	}
	return n, err
}

// Write implements net.Conn.
func (w *Wire) Write(p []byte) (int, error) {
	if w.taken != nil {
		return w.taken.writeTLS(p)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.gather {
		w.gathered = append(w.gathered, p...)
		return len(p), nil
	}
	return w.Conn.Write(p)
}

// cork gathers the writes that follow in buf, until uncork sends them.
func (w *Wire) cork(buf []byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.gather, w.gathered = true, buf[:0]
}

func (w *Wire) uncork() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	b := w.gathered
	w.gather, w.gathered = false, nil
	_, err := w.Conn.Write(b)
	return err
}
