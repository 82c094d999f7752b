package connect

import (
	"crypto/tls"
	"errors"
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
	switch {
	case n <= 0:
	case back:
		c.row.out.Add(int64(n))
	default:
		c.row.in.Add(int64(n))
	}
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
