package enroll

import (
	"context"
	"crypto/tls"
	"net"
	"sync/atomic"
	"time"
)

// doubtEvery is how often, at most, a node asks why servers turn it away.
const doubtEvery = 30 * time.Second

// Secure shakes hands, on a connection, with a node as want says: see Client. It closes
// the connection where that fails. Servers judge a node only after it believes its hands
// to be shaken, and then close without a word. An agent that this happens to asks for a
// renewal, by which it learns why, and logs it.
func (c *Credentials) Secure(ctx context.Context, proto string, want Peer, raw net.Conn) (net.Conn, error) {
	conn := tls.Client(raw, c.Client(proto, want))
	if err := conn.HandshakeContext(ctx); err != nil {
		_ = raw.Close()
		return nil, err
	}
	return &doubted{Conn: conn, doubt: c.doubt}, nil
}

// doubt has an agent ask soon.
func (c *Credentials) doubt() {
	select {
	case c.doubts <- struct{}{}:
	default:
	}
}

// doubted notices a connection that the other end closes before it says anything.
type doubted struct {
	net.Conn
	doubt func()
	heard atomic.Bool
}

// Read implements net.Conn.
func (d *doubted) Read(b []byte) (int, error) {
	n, err := d.Conn.Read(b)
	if n > 0 {
		d.heard.Store(true)
	} else if err != nil && !d.heard.Swap(true) {
		d.doubt()
	}
	return n, err
}
