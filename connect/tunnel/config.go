package tunnel

import (
	"context"
	"fmt"
	"io"
	"net"
	"time"
)

// Config sets the limits of tunnels. The zero value is complete.
type Config struct {
	// Window is how many bytes of a stream may be on their way to us or wait for the
	// application here. By default it is 32 KiB at first and grows with the stream, to
	// 8 MiB at most: window ÷ round trip bounds its speed. A value fixes it.
	Window int
	// MaxStreams is how many streams the peer may have open; 1024 by default.
	MaxStreams int
	// Memory bounds what waits for applications that do not read, in all tunnels of a
	// Driver; 128 MiB by default. A tunnel holds at most MaxStreams first windows and
	// 16 MiB. Beyond it the streams that have just queued something are reset, those of
	// tunnels that hold more than their share.
	Memory int64
	// Keepalive is the silence after which the peer is pinged; 15 s by default. A
	// tunnel that stays silent for two more such periods, or whose output does not
	// move for as long, is lost.
	Keepalive time.Duration
	// Descriptors: event loops take no application with a descriptor of this number or
	// above. The system gives the lowest that is free, so that those above stay for
	// others. 0: all may be had.
	Descriptors int

	grows    bool    // windows do
	budget   *budget // of the driver
	patience time.Duration
	clock    func() time.Duration // nil: that of the system, from the beginning of each tunnel
}

const greetTimeout = 10 * time.Second

// Validate names the first field that cannot be used.
func (c Config) Validate() error {
	switch {
	case c.Window < 0 || c.Window > maxWindow:
		return fmt.Errorf("tunnel window of %d bytes: choose 1 to %d, or 0 for the default", c.Window, maxWindow)
	case c.MaxStreams < 0 || c.MaxStreams > 1<<20:
		return fmt.Errorf("%d streams a tunnel: choose 1 to %d, or 0 for the default", c.MaxStreams, 1<<20)
	case c.Memory < 0:
		return fmt.Errorf("%d bytes of memory for what applications do not read: choose a positive number, or 0 for the default", c.Memory)
	case c.Keepalive < 0:
		return fmt.Errorf("tunnel keepalive of %s: choose a positive duration, or 0 for the default", c.Keepalive)
	}
	return nil
}

func (c Config) withDefaults() Config {
	if c.Window == 0 {
		c.Window, c.grows = firstWindow, true
	}
	if c.MaxStreams == 0 {
		c.MaxStreams = 1024
	}
	if c.Keepalive == 0 {
		c.Keepalive = 15 * time.Second
	}
	if c.Memory == 0 {
		c.Memory = memoryBudget
	}
	if c.budget == nil {
		c.budget = &budget{limit: c.Memory}
	}
	return c
}

// growth is that of one tunnel, whose shortest round trip rtt tells.
func (c Config) growth(rtt func() time.Duration) growth {
	if !c.grows {
		return growth{}
	}
	began := time.Now()
	return growth{
		base: baseWindow, top: topWindow, limit: tunnelExtra, budget: c.budget, rtt: rtt,
		clock: func() time.Duration { return time.Since(began) + time.Second },
	}
}

// account is that of one tunnel.
func (c Config) account() account {
	return account{budget: c.budget, limit: int64(c.Window)*int64(c.MaxStreams) + tunnelExtra}
}

func (c Config) hello() hello {
	return hello{window: uint32(c.Window), streams: uint32(c.MaxStreams)}
}

// greet exchanges greetings and gives the protocol state that follows. Only after
// it does a client know that its certificate was accepted: in TLS 1.3 its handshake
// ends before the server has looked. It reads not a byte beyond the greeting.
func greet(ctx context.Context, conn net.Conn, server bool, cfg Config) (machine, error) {
	ctx, cancel := context.WithTimeout(ctx, greetTimeout)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	peer, err := swapHello(conn, server, cfg.hello())
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		return machine{}, fmt.Errorf("no greeting from the tunnel's peer: %w", err)
	}
	m, began := newMachine(server, cfg.hello(), peer), time.Now()
	if m.clock = cfg.clock; m.clock == nil {
		m.clock = func() time.Duration { return time.Since(began) }
	}
	return m, nil
}

// swapHello: the client speaks first. Nothing is lost by it, as its greeting travels
// with the end of its handshake.
func swapHello(conn net.Conn, server bool, mine hello) (hello, error) {
	if server {
		peer, err := readHello(conn)
		if err == nil {
			_, err = conn.Write(mine.append(nil))
		}
		return peer, err
	}
	if _, err := conn.Write(mine.append(nil)); err != nil {
		return hello{}, err
	}
	return readHello(conn)
}

func readHello(conn net.Conn) (hello, error) {
	buf := make([]byte, maxHello)
	if _, err := io.ReadFull(conn, buf[:headerSize]); err != nil {
		return hello{}, err
	}
	n, err := helloLength(buf[:headerSize])
	if err != nil {
		return hello{}, err
	}
	if _, err := io.ReadFull(conn, buf[:n]); err != nil {
		return hello{}, err
	}
	return parseHello(buf[:n])
}
