package connect

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/connect/tunnel"
)

const (
	bindRetryMin   = 100 * time.Millisecond
	bindRetryMax   = 5 * time.Second
	acceptRetryMin = 5 * time.Millisecond
	acceptRetryMax = time.Second
	socketModeless = 0o600
)

// Sockets keeps what listens for the process that comes next, and has what the one
// before left. network is "tcp" or "unix".
type Sockets interface {
	// Take gives the listener at addr that was left, nil when there is none.
	Take(network, addr string) net.Listener
	// Keep holds what listens at addr until Release; a Unix socket is removed by it.
	Keep(network, addr string, l syscall.Conn)
	Release(network, addr string)
	// Outlasts tells whether what is kept stays open when this process ends.
	Outlasts() bool
}

// spec is what a listener is asked to be. An equal spec keeps its listener.
type spec struct {
	addr string
	mode string // of a Unix socket
}

// listener keeps one address bound while it is wanted and hands its connections
// to serve, each on a goroutine of its own.
type listener struct {
	spec
	owner string // for errors: "upstream db", "inbound"
	log   *slog.Logger
	admit func(ctx context.Context) error // nil, or blocks while no more can be taken
	serve func(c net.Conn)                // each
	// driver, where it is not nil, accepts: serve must not block then.
	driver tunnel.Driver
	// bounds and unbinds, where they are not nil, hear of the address while it is bound.
	bounds  func(addr string)
	unbinds func()
	// sockets outlive the process; nil: they do not.
	sockets Sockets

	mu    sync.Mutex
	bound net.Listener
	err   error
	since time.Time // when it was taken over from an earlier process; zero: it was not

	cancel context.CancelFunc
	done   chan struct{}
}

func (l *listener) start(ctx context.Context) {
	ctx, l.cancel = context.WithCancel(ctx)
	l.done = make(chan struct{})
	go l.run(ctx)
}

// stop closes the address. Connections that were handed over go on.
func (l *listener) stop() {
	l.cancel()
	l.mu.Lock()
	ln := l.bound
	l.mu.Unlock()
	if ln != nil {
		_ = ln.Close() // run sees it, and nothing can be done about an error
	}
	<-l.done
	if l.sockets != nil {
		l.sockets.Release(networkOf(l.addr), l.addr)
	}
}

// run binds, retrying while the address is taken, and accepts until stop.
func (l *listener) run(ctx context.Context) {
	defer close(l.done)
	retry := bindRetryMin
	for ctx.Err() == nil {
		ln, err := l.bind(ctx)
		if err != nil {
			l.failed(err)
			if !pause(ctx, retry) {
				return
			}
			retry = min(2*retry, bindRetryMax)
			continue
		}
		retry = bindRetryMin
		if l.driver != nil {
			l.acceptOn(ctx, ln)
			continue
		}
		l.accept(ctx, ln)
	}
}

// failed remembers why the address is not bound, and logs each new cause once.
func (l *listener) failed(err error) {
	l.mu.Lock()
	same := l.err != nil && l.err.Error() == err.Error()
	l.err = err
	l.mu.Unlock()
	if !same {
		l.log.Error("cannot listen, will retry", "addr", l.addr, "err", err)
	}
}

func (l *listener) bind(ctx context.Context) (net.Listener, error) {
	network := networkOf(l.addr)
	if l.sockets != nil {
		if ln := l.sockets.Take(network, l.addr); ln != nil {
			l.mu.Lock()
			l.since = time.Now()
			l.mu.Unlock()
			return l.isBound(ctx, ln)
		}
	}
	if network == "unix" {
		if err := removeStaleSocket(l.addr); err != nil {
			return nil, fmt.Errorf("%s: %w", l.owner, err)
		}
	}
	var lc net.ListenConfig
	ln, err := lc.Listen(ctx, network, l.addr)
	if err != nil {
		if errors.Is(err, syscall.EADDRINUSE) {
			return nil, fmt.Errorf("%s: %s is in use by another listener: free it, or choose another port: %w", l.owner, l.addr, syscall.EADDRINUSE)
		}
		return nil, fmt.Errorf("%s: %w", l.owner, err)
	}
	if network == "unix" {
		if err := setMode(l.addr, l.mode); err != nil {
			_ = ln.Close() // the mode is the error to tell
			return nil, fmt.Errorf("%s: %w", l.owner, err)
		}
	}
	if c, ok := ln.(syscall.Conn); ok && l.sockets != nil {
		l.sockets.Keep(network, l.addr, c)
	}
	return l.isBound(ctx, ln)
}

func (l *listener) isBound(ctx context.Context, ln net.Listener) (net.Listener, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if ctx.Err() != nil { // stop came first and saw nothing to close
		_ = ln.Close()
		return nil, context.Cause(ctx)
	}
	l.bound, l.err = ln, nil
	if l.bounds != nil {
		l.bounds(ln.Addr().String())
	}
	l.log.Info("listening", "addr", ln.Addr().String(), "listener", l.owner)
	return ln, nil
}

// acceptOn has the driver accept until stop.
func (l *listener) acceptOn(ctx context.Context, ln net.Listener) {
	if u, ok := ln.(*net.UnixListener); ok && l.sockets == nil { // else it is Release that removes it
		u.SetUnlinkOnClose(false)                // the driver takes the descriptor, and closes ln
		defer func() { _ = os.Remove(l.addr) }() // the next bind tells why it is in the way
	}
	var told atomic.Bool
	stop, err := l.driver.Listen(ln, l.serve, func(err error) {
		if !told.Swap(true) {
			go l.log.Warn("accept failed, will retry", "addr", l.addr, "err", err)
		}
	})
	if err != nil {
		l.failed(fmt.Errorf("%s: %w", l.owner, err))
		pause(ctx, bindRetryMax)
	} else {
		<-ctx.Done()
		stop()
	}
	l.mu.Lock()
	l.bound = nil
	l.mu.Unlock()
}

// accept hands over connections until the listener is closed. What fails for want
// of descriptors or memory is tried again, ever more slowly.
func (l *listener) accept(ctx context.Context, ln net.Listener) {
	defer func() {
		l.mu.Lock()
		l.bound = nil
		l.mu.Unlock()
		if l.unbinds != nil {
			l.unbinds()
		}
		_ = ln.Close()
	}()
	retry := time.Duration(0)
	for {
		if l.admit != nil && l.admit(ctx) != nil {
			return
		}
		c, err := ln.Accept()
		switch {
		case err == nil:
			retry = 0
			l.serve(c)
		case ctx.Err() != nil || errors.Is(err, net.ErrClosed):
			return
		default:
			if retry == 0 {
				l.log.Warn("accept failed, will retry", "addr", l.addr, "err", err)
			}
			retry = min(max(2*retry, acceptRetryMin), acceptRetryMax)
			if !pause(ctx, retry) {
				return
			}
		}
	}
}

// sinceInherited is what is left of a time that began when the address was taken over
// from an earlier process; nothing where it was not.
func (l *listener) sinceInherited(d time.Duration) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.since.IsZero() {
		return 0
	}
	return d - time.Since(l.since)
}

func (l *listener) status() *ListenerStatus {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := &ListenerStatus{Addr: l.addr, Listening: l.bound != nil}
	if l.bound != nil {
		s.Addr = l.bound.Addr().String()
	}
	if l.err != nil {
		s.Error = l.err.Error()
	}
	return s
}

// networkOf tells a Unix socket, an absolute path, from host:port.
func networkOf(addr string) string {
	if strings.HasPrefix(addr, "/") {
		return "unix"
	}
	return "tcp"
}

// removeStaleSocket removes a socket that nobody listens on any more, and nothing else.
func removeStaleSocket(path string) error {
	st, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if st.Mode().Type() != fs.ModeSocket {
		return fmt.Errorf("%s exists and is no socket: remove it, or choose another path", path)
	}
	c, err := net.DialTimeout("unix", path, time.Second)
	if err == nil {
		_ = c.Close()
		return fmt.Errorf("%s: another process listens there: %w", path, syscall.EADDRINUSE)
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return err
	}
	return os.Remove(path)
}

func setMode(path, mode string) error {
	perm := uint64(socketModeless)
	if mode != "" {
		var err error
		if perm, err = strconv.ParseUint(mode, 8, 32); err != nil || perm > 0o777 {
			return fmt.Errorf("socket mode %q: %w: want octal permissions such as 0660", mode, catalog.ErrInvalid)
		}
	}
	return os.Chmod(path, fs.FileMode(perm))
}

// pause waits; it is false when ctx ended.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
