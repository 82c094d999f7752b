//go:build linux

package tunnel

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"testing"
)

// deadAddr is an address at which nobody listens; the port is held.
func deadAddr(t testing.TB) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	// A connected socket keeps the port from being given away, and refuses others.
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	a, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	t.Cleanup(func() { c.Close(); a.Close() })
	return netip.MustParseAddrPort(l.Addr().String())
}

// TestSaidAgainElsewhere: what an application said to one that never saw it is said to
// another, and neither application notices.
func TestSaidAgainElsewhere(t *testing.T) {
	dead := deadAddr(t)
	for name, failing := range map[string]func(context.Context) Verdict{
		"no application": func(context.Context) Verdict { return Verdict{Addr: dead} },
		"refused":        func(context.Context) Verdict { return Verdict{Refuse: CodeLimit} },
		"a failed dial": func(context.Context) Verdict {
			return Verdict{Dial: func(context.Context) (net.Conn, error) { return nil, errors.New("not here") }}
		},
	} {
		t.Run(name, func(t *testing.T) {
			eachDriver(t, func(t *testing.T, d driverPair) {
				cd, sd := d.start(t, Config{})
				bad := newRigOn(t, cd, sd, rigOptions{accept: func(*Flow, []byte) Verdict { return failing(t.Context()) }})
				good := newRigOn(t, cd, sd, rigOptions{backend: echo})
				for _, n := range []int{0, 1, 100, maxKept} {
					for _, half := range []bool{false, true} {
						said := pattern(uint64(n), n)
						c, theirs := tcpPair(t)
						if _, err := c.Write(said); err != nil {
							t.Fatal(err)
						}
						if half {
							_ = c.CloseWrite()
						}
						e := carryOn(t, bad, theirs)
						for range 2 { // and again
							if e.end.App == nil {
								t.Fatalf("%d bytes: the application was not given back: %+v", n, e.end)
							}
							e = carryOn(t, bad, e.end.App)
						}
						if e.end.App == nil {
							t.Fatalf("%d bytes: the application was not given back: %+v", n, e.end)
						}
						done := make(chan ended, 1)
						if _, err := good.client.Carry(e.end.App, nil, func(f *Flow, e End) { done <- ended{f, e} }); err != nil {
							t.Fatal(err)
						}
						if !half {
							_ = c.CloseWrite()
						}
						got, err := io.ReadAll(c)
						if err != nil || !bytes.Equal(got, said) {
							t.Fatalf("%d bytes said, %d heard: %v", n, len(got), err)
						}
						if e := wait(t, done, "end"); e.end.Cause != CauseDone || e.flow.Sent() != int64(n) {
							t.Fatalf("end %+v, %d sent of %d", e.end, e.flow.Sent(), n)
						}
					}
				}
			})
		})
	}
}

// carryOn carries an application to where it is not served.
func carryOn(t *testing.T, r *rig, app net.Conn) ended {
	t.Helper()
	done := make(chan ended, 1)
	if _, err := r.client.Carry(app, nil, func(f *Flow, e End) { done <- ended{f, e} }); err != nil {
		t.Fatal(err)
	}
	return wait(t, done, "end of a stream that was not served")
}

// TestSaidAgainOneToOne: the next instance may speak no tunnels.
func TestSaidAgainOneToOne(t *testing.T) {
	dead := deadAddr(t)
	eachDriver(t, func(t *testing.T, d driverPair) {
		cd, sd := d.start(t, Config{})
		bad := newRigOn(t, cd, sd, rigOptions{accept: func(*Flow, []byte) Verdict { return Verdict{Addr: dead} }})
		said := pattern(5, 5000)
		c, theirs := tcpPair(t)
		if _, err := c.Write(said); err != nil {
			t.Fatal(err)
		}
		e := carryOn(t, bad, theirs)
		if e.end.App == nil {
			t.Fatalf("not given back: %+v", e.end)
		}
		ct, st := tlsPair(t)
		mine, far := tcpPair(t)
		go echo(mine)
		if _, err := sd.Pair(st, far, nil); err != nil {
			t.Fatal(err)
		}
		if _, err := cd.Pair(ct, e.end.App, nil); err != nil {
			t.Fatal(err)
		}
		_ = c.CloseWrite()
		if got, err := io.ReadAll(c); err != nil || !bytes.Equal(got, said) {
			t.Fatalf("%d of %d bytes: %v", len(got), len(said), err)
		}
	})
}

// TestHeardIsNotSaidAgain: an application that may have seen anything, or was told more
// than is kept, gets a reset and not a second try.
func TestHeardIsNotSaidAgain(t *testing.T) {
	eachDriver(t, func(t *testing.T, d driverPair) {
		cd, sd := d.start(t, Config{})
		t.Run("too much", func(t *testing.T) {
			dial := make(chan struct{})
			r := newRigOn(t, cd, sd, rigOptions{accept: func(*Flow, []byte) Verdict {
				return Verdict{Dial: func(ctx context.Context) (net.Conn, error) {
					<-dial
					return nil, errors.New("not here")
				}}
			}})
			c, theirs := tcpPair(t)
			done := make(chan ended, 1)
			f, err := r.client.Carry(theirs, nil, func(f *Flow, e End) { done <- ended{f, e} })
			if err != nil {
				t.Fatal(err)
			}
			if _, err := c.Write(make([]byte, maxKept+1)); err != nil {
				t.Fatal(err)
			}
			eventually(t, "all is sent", func() bool { return f.Sent() == maxKept+1 })
			close(dial)
			if e := wait(t, done, "end"); e.end.App != nil || e.end.Code != CodeDialFailed {
				t.Fatalf("end %+v", e.end)
			}
			expectReset(t, c, "the application")
		})
		t.Run("read and reset", func(t *testing.T) {
			r := newRigOn(t, cd, sd, rigOptions{backend: func(c net.Conn) {
				_, _ = io.ReadFull(c, make([]byte, 10))
				abort(c)
			}})
			c, f := r.app("")
			_, _ = c.Write(make([]byte, 10))
			expectReset(t, c, "the application")
			if e := wait(t, r.clientEnds, "end"); e.end.App != nil || f.Sent() != 10 {
				t.Fatalf("end %+v", e.end)
			}
		})
		t.Run("owner's reset", func(t *testing.T) {
			r := newRigOn(t, cd, sd, rigOptions{accept: func(*Flow, []byte) Verdict {
				return Verdict{Dial: func(ctx context.Context) (net.Conn, error) {
					<-ctx.Done()
					return nil, ctx.Err()
				}}
			}})
			c, theirs := tcpPair(t)
			done := make(chan ended, 1)
			f, err := r.client.Carry(theirs, nil, func(f *Flow, e End) { done <- ended{f, e} })
			if err != nil {
				t.Fatal(err)
			}
			_, _ = c.Write(make([]byte, 10))
			eventually(t, "all is sent", func() bool { return f.Sent() == 10 })
			f.Reset(CodeRevoked)
			if e := wait(t, done, "end"); e.end.App != nil || e.end.Cause != CauseOwner {
				t.Fatalf("end %+v", e.end)
			}
			expectReset(t, c, "the application")
		})
	})
}
