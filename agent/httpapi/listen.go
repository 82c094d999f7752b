package httpapi

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// UnixSockets says who may use Unix sockets.
type UnixSockets struct {
	Mode os.FileMode // 0: 0600, of the process's user and group
	// UID and GID own them; -1 leaves those of the process.
	UID, GID int
}

// open gives what listens at "host:port" or "unix:///path": what the process before
// this one left, or else it is bound, and left to the next.
func open(cfg Config, addr string) (net.Listener, error) {
	if cfg.Sockets == nil {
		return listen(addr, cfg.Unix)
	}
	network, at := "tcp", addr
	if path, isUnix := strings.CutPrefix(addr, "unix://"); isUnix {
		network, at = "unix", path
	}
	if l := cfg.Sockets.Take(network, at); l != nil {
		return l, nil
	}
	l, err := listen(addr, cfg.Unix)
	if c, ok := l.(syscall.Conn); ok && err == nil {
		cfg.Sockets.Keep(network, at, c)
	}
	return l, err
}

// listen binds "host:port" or "unix:///path".
func listen(addr string, unix UnixSockets) (net.Listener, error) {
	path, isUnix := strings.CutPrefix(addr, "unix://")
	if !isUnix {
		l, err := net.Listen("tcp", addr)
		if err != nil {
			if errors.Is(err, syscall.EADDRINUSE) {
				return nil, fmt.Errorf("listen on %s: the address is in use by another process; stop it or set another port: %w", addr, err)
			}
			return nil, fmt.Errorf("listen on %s: %w", addr, err)
		}
		return l, nil
	}
	if err := removeStaleSocket(path); err != nil {
		return nil, fmt.Errorf("listen on %s: %w", addr, err)
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", addr, err)
	}
	if err := unix.own(path); err != nil {
		return nil, errors.Join(fmt.Errorf("listen on %s: %w", addr, err), l.Close())
	}
	return l, nil
}

// own gives a socket its owner, then its mode, so that nobody gets more than both say.
func (u UnixSockets) own(path string) error {
	if u.UID >= 0 || u.GID >= 0 {
		if err := os.Chown(path, u.UID, u.GID); err != nil {
			return fmt.Errorf("%w: only root may give sockets away; a user may to groups that it is in (unix_sockets.user, unix_sockets.group)", err)
		}
	}
	return os.Chmod(path, u.Mode.Perm())
}

// removeStaleSocket removes a socket that nobody answers on. Anything else at the
// path stays, and binding fails.
func removeStaleSocket(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if info.Mode()&fs.ModeSocket == 0 {
		return fmt.Errorf("%s exists and is no socket", path)
	}
	c, err := net.DialTimeout("unix", path, time.Second)
	if err == nil {
		_ = c.Close()
		return fmt.Errorf("another process serves %s", path)
	}
	return os.Remove(path)
}

type connKey struct{}

// connContext lets handlers know the connection of a request, for the checks that
// do not apply to Unix sockets.
func connContext(ctx context.Context, c net.Conn) context.Context {
	return context.WithValue(ctx, connKey{}, c.LocalAddr().Network())
}

func overUnixSocket(ctx context.Context) bool {
	network, _ := ctx.Value(connKey{}).(string)
	return network == "unix"
}

const tooManyConnsText = "Your IP is issuing too many concurrent connections, please rate limit your calls\n"

// tooManyConns is sent, before any request is read, to a client over its limit.
var tooManyConns = fmt.Sprintf("HTTP/1.1 429 Too Many Requests\r\nContent-Type: text/plain\r\n"+
	"Connection: close\r\nContent-Length: %d\r\n\r\n%s", len(tooManyConnsText), tooManyConnsText)

// clientLimit is a listener that bounds the connections of each IP address.
type clientLimit struct {
	net.Listener
	limit *atomic.Int64
	// goodbye is what a client over the limit is told: nothing where it speaks TLS.
	goodbye string
	mu      sync.Mutex
	open    map[netip.Addr]int
}

// limitPerClient bounds what one address has open to l; a limit below zero does not.
func limitPerClient(l net.Listener, limit *atomic.Int64, goodbye string) net.Listener {
	if l.Addr().Network() == "unix" {
		return l
	}
	return &clientLimit{Listener: l, limit: limit, goodbye: goodbye, open: map[netip.Addr]int{}}
}

// Accept implements net.Listener.
func (l *clientLimit) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		client := clientAddr(c.RemoteAddr())
		if l.take(client) {
			return &countedConn{Conn: c, release: sync.OnceFunc(func() { l.give(client) })}, nil
		}
		refuse(c, l.goodbye)
	}
}

func refuse(c net.Conn, goodbye string) {
	// The reply fits any socket buffer; a peer that reads nothing cannot hold us up.
	_ = c.SetWriteDeadline(time.Now().Add(100 * time.Millisecond))
	_, _ = c.Write([]byte(goodbye))
	_ = c.Close()
}

func (l *clientLimit) take(client netip.Addr) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if most := l.limit.Load(); most >= 0 && int64(l.open[client]) >= most {
		return false
	}
	l.open[client]++
	return true
}

func (l *clientLimit) give(client netip.Addr) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.open[client]--; l.open[client] <= 0 {
		delete(l.open, client)
	}
}

// clientAddr is the key of a client: its address, an IPv4-mapped one as IPv4.
func clientAddr(a net.Addr) netip.Addr {
	t, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.Addr{}
	}
	ip, _ := netip.AddrFromSlice(t.IP)
	return ip.Unmap()
}

// countedConn gives its place back when it is closed.
type countedConn struct {
	net.Conn
	release func()
}

// Close implements net.Conn.
func (c *countedConn) Close() error {
	c.release()
	return c.Conn.Close()
}
