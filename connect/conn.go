package connect

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"time"

	"github.com/weftmesh/weft/connect/identity"
)

// Conn is an authenticated, authorised connection to another service. It ends,
// with a reset, when policy no longer allows it.
type Conn struct {
	tls  *tls.Conn
	wire *wire
	row  *row
	peer identity.ServiceID
}

var _ net.Conn = (*Conn)(nil)

// Peer is the verified identity of the far end.
func (c *Conn) Peer() identity.ServiceID { return c.peer }

// ConnectionState gives the details of the TLS connection.
func (c *Conn) ConnectionState() tls.ConnectionState { return c.tls.ConnectionState() }

// Read implements net.Conn. It returns io.EOF only when the far end has finished
// in order; a stream that was cut short is another error.
func (c *Conn) Read(p []byte) (int, error) {
	n, err := c.tls.Read(p)
	c.count(n, c.row.outbound)
	return n, err
}

// Write implements net.Conn.
func (c *Conn) Write(p []byte) (int, error) {
	n, err := c.tls.Write(p)
	c.count(n, !c.row.outbound)
	return n, err
}

// count adds bytes, back ones going from destination to source.
func (c *Conn) count(n int, back bool) {
	if n > 0 {
		c.row.count(int64(n), back)
	}
}

func (r *row) count(n int64, back bool) {
	if back {
		r.out.Add(n)
		r.pair.bytesOut.Add(float64(n))
		return
	}
	r.in.Add(n)
	r.pair.bytesIn.Add(float64(n))
}

// CloseWrite tells the far end that no more comes. Reading goes on.
func (c *Conn) CloseWrite() error { return c.tls.CloseWrite() }

// Close ends the connection in order.
func (c *Conn) Close() error {
	err := c.tls.Close()
	if !c.row.finish(ending{reason: ReasonOK}, false) {
		return nil // it had ended before, by policy or by an earlier Close
	}
	return err
}

// Abort resets the connection.
func (c *Conn) Abort() {
	c.row.kill(ending{reason: ReasonClientClosed, err: errors.New("aborted by the application")})
}

// LocalAddr implements net.Conn.
func (c *Conn) LocalAddr() net.Addr { return c.wire.LocalAddr() }

// RemoteAddr implements net.Conn.
func (c *Conn) RemoteAddr() net.Addr { return c.wire.RemoteAddr() }

// SetDeadline implements net.Conn.
func (c *Conn) SetDeadline(t time.Time) error { return c.tls.SetDeadline(t) }

// SetReadDeadline implements net.Conn.
func (c *Conn) SetReadDeadline(t time.Time) error { return c.tls.SetReadDeadline(t) }

// SetWriteDeadline implements net.Conn.
func (c *Conn) SetWriteDeadline(t time.Time) error { return c.tls.SetWriteDeadline(t) }

func (c *Conn) abort() { c.wire.abort() }

// readInto waits for data holding no buffer, then fills one from the pool with
// what has arrived. one is the caller's single byte to wait with; big asks for a
// large buffer, filled as far as the socket has data.
func (c *Conn) readInto(one []byte, big bool) (*[]byte, int, error) {
	n, err := c.tls.Read(one[:1])
	if n == 0 {
		return nil, 0, err
	}
	buf := pool(big).Get().(*[]byte)
	b := *buf
	b[0] = one[0]
	if err != nil {
		return buf, 1, err
	}
	// The rest of the record, and whole records behind it, are in user space:
	// take them without waiting. Small reads make no further system call.
	c.wire.mode = takeBuffered
	if big {
		c.wire.mode = takeArrived
	}
	defer func() { c.wire.mode = wait }()
	for n < len(b) {
		m, err := c.tls.Read(b[n:])
		n += m
		if err != nil {
			if _, ok := err.(wouldBlock); ok { //nolint:errorlint // crypto/tls passes it bare
				err = nil
			}
			return buf, n, err
		}
	}
	return buf, n, nil
}

// writeAll writes p, gathering the records of a large one into one send.
func (c *Conn) writeAll(p []byte) error {
	if len(p) <= maxRecord {
		_, err := c.tls.Write(p)
		return err
	}
	c.wire.gather()
	_, err := c.tls.Write(p)
	return errors.Join(err, c.wire.flush())
}

// closeAfterEnd closes a connection whose both directions have ended in order.
func (c *Conn) closeAfterEnd() { _ = c.wire.Close() }

// discard reads and drops until the end, an error or the deadline.
func (c *Conn) discard(until time.Time) error {
	_ = c.wire.SetReadDeadline(until) // fails only when closed, and then so does Read
	_, err := io.Copy(io.Discard, c.tls)
	return err
}
