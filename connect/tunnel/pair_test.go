//go:build linux

package tunnel

import (
	"bytes"
	"crypto/tls"
	"io"
	"net"
	"sync"
	"testing"
	"time"
)

// pairRig joins an application through two Pairs to a backend.
type pairRig struct {
	app, backend           *net.TCPConn
	client, server         *Flow
	clientEnds, serverEnds chan ended
}

func newPairRig(t *testing.T, cd, sd Driver) *pairRig {
	t.Helper()
	ct, st := tlsPair(t)
	return newPairRigOver(t, cd, sd, ct, st)
}

func newPairRigOver(t *testing.T, cd, sd Driver, ct, st *tls.Conn) *pairRig {
	t.Helper()
	r := &pairRig{clientEnds: make(chan ended, 1), serverEnds: make(chan ended, 1)}
	var ca, sb *net.TCPConn
	r.app, ca = tcpPair(t)
	r.backend, sb = tcpPair(t)
	var err error
	if r.client, err = cd.Pair(ct, ca, func(f *Flow, e End) { r.clientEnds <- ended{f, e} }); err != nil {
		t.Fatal(err)
	}
	if r.server, err = sd.Pair(st, sb, func(f *Flow, e End) { r.serverEnds <- ended{f, e} }); err != nil {
		t.Fatal(err)
	}
	return r
}

func (r *pairRig) ends(t *testing.T, client, server Cause) {
	t.Helper()
	if e := wait(t, r.clientEnds, "client end").end; e.Cause != client {
		t.Errorf("client end %v (%v), want %v", e.Cause, e.Err, client)
	}
	if e := wait(t, r.serverEnds, "server end").end; e.Cause != server {
		t.Errorf("server end %v (%v), want %v", e.Cause, e.Err, server)
	}
}

func TestPairsByteExact(t *testing.T) {
	eachDriver(t, func(t *testing.T, d driverPair) {
		cd, sd := d.start(t, Config{})
		var wg sync.WaitGroup
		for i := range uint64(20) {
			r := newPairRig(t, cd, sd)
			wg.Go(func() { echo(r.backend) })
			wg.Go(func() {
				if err := exchange(r.app, pattern(i, int(i)*70_000), i); err != nil {
					t.Errorf("pair %d: %v", i, err)
				}
				r.ends(t, CauseDone, CauseDone)
				if r.client.Sent() != int64(i)*70_000 || r.client.Received() != r.client.Sent() {
					t.Errorf("counted %d, %d", r.client.Sent(), r.client.Received())
				}
			})
		}
		wg.Wait()
	})
}

func TestPairHalfClose(t *testing.T) {
	eachDriver(t, func(t *testing.T, d driverPair) {
		cd, sd := d.start(t, Config{})
		r := newPairRig(t, cd, sd)
		_, _ = r.backend.Write([]byte("first"))
		_ = r.backend.CloseWrite()
		if b, err := io.ReadAll(r.app); string(b) != "first" || err != nil {
			t.Fatalf("%q, %v", b, err)
		}
		_, _ = r.app.Write([]byte("then"))
		_ = r.app.Close()
		if b, err := io.ReadAll(r.backend); string(b) != "then" || err != nil {
			t.Fatalf("%q, %v", b, err)
		}
		r.ends(t, CauseDone, CauseDone)
	})
}

func TestPairResets(t *testing.T) {
	eachDriver(t, func(t *testing.T, d driverPair) {
		cd, sd := d.start(t, Config{})
		r := newPairRig(t, cd, sd)
		_ = r.app.SetLinger(0)
		r.app.Close()
		expectReset(t, r.backend, "backend, client reset")
		r.ends(t, CauseApp, CauseLost)

		r = newPairRig(t, cd, sd)
		_, _ = r.backend.Write(make([]byte, 1000))
		if _, err := io.ReadFull(r.app, make([]byte, 1000)); err != nil {
			t.Fatal(err)
		}
		_ = r.backend.SetLinger(0)
		r.backend.Close()
		expectReset(t, r.app, "client, backend reset")
		r.ends(t, CauseLost, CauseApp)

		r = newPairRig(t, cd, sd)
		r.client.Reset(CodeRevoked)
		expectReset(t, r.app, "client, owner's reset")
		expectReset(t, r.backend, "backend, owner's reset")
		r.ends(t, CauseOwner, CauseLost)

		// A bare FIN is no end.
		ct, st, cut := tlsPairCut(t)
		r = newPairRigOver(t, cd, sd, ct, st)
		cut()
		expectReset(t, r.app, "client, truncated")
		expectReset(t, r.backend, "backend, truncated")
		r.ends(t, CauseLost, CauseLost)
	})
}

func TestPairStallsOnlyItself(t *testing.T) {
	eachDriver(t, func(t *testing.T, d driverPair) {
		cd, sd := d.start(t, Config{})
		stalled := newPairRig(t, cd, sd)
		go func() {
			for {
				if _, err := stalled.app.Write(make([]byte, 1<<20)); err != nil {
					return
				}
			}
		}()
		eventually(t, "stalled", func() bool {
			before := stalled.client.Sent()
			time.Sleep(30 * time.Millisecond)
			return before > 1<<20 && before == stalled.client.Sent()
		})
		for i := range uint64(4) { // on both loops
			r := newPairRig(t, cd, sd)
			go echo(r.backend)
			if err := exchange(r.app, pattern(i, 300_000), i); err != nil {
				t.Fatal(err)
			}
			r.ends(t, CauseDone, CauseDone)
		}
		// What was kept back comes when it is read.
		n := stalled.client.Sent()
		if _, err := io.CopyN(io.Discard, stalled.backend, n); err != nil {
			t.Fatal(err)
		}
	})
}

func TestPairEarlyAnswer(t *testing.T) {
	eachDriver(t, func(t *testing.T, d driverPair) {
		cd, sd := d.start(t, Config{})
		r := newPairRig(t, cd, sd)
		answer := pattern(9, 50_000)
		go func() {
			_, _ = io.ReadFull(r.backend, make([]byte, 1000))
			_, _ = r.backend.Write(answer)
			_ = r.backend.CloseWrite()
			_, _ = io.ReadFull(r.backend, make([]byte, 600_000))
			r.backend.Close()
		}()
		go func() {
			for {
				if _, err := r.app.Write(make([]byte, 50_000)); err != nil {
					return
				}
			}
		}()
		got := make([]byte, len(answer))
		if _, err := io.ReadFull(r.app, got); err != nil || !bytes.Equal(got, answer) {
			t.Fatalf("answer: %v", err)
		}
		r.app.Close()
		wait(t, r.clientEnds, "client end")
		wait(t, r.serverEnds, "server end")
	})
}

func TestDriverCloseEndsAll(t *testing.T) {
	eachDriver(t, func(t *testing.T, d driverPair) {
		cd, sd := d.start(t, Config{})
		r := newRigOn(t, cd, sd, rigOptions{backend: echo})
		p := newPairRig(t, cd, sd)
		c, _ := r.app("")
		_, _ = c.Write([]byte("x"))
		_, _ = io.ReadFull(c, make([]byte, 1))
		cd.Close()
		expectReset(t, c, "stream")
		expectReset(t, p.app, "pair")
		if e := wait(t, r.clientEnds, "client end").end; e.Cause != CauseOwner {
			t.Errorf("end %+v", e)
		}
		p.ends(t, CauseOwner, CauseLost)
		ct, _ := tlsPair(t)
		app, theirs := tcpPair(t)
		if _, err := cd.Pair(ct, theirs, nil); err == nil {
			t.Error("a pair on a closed driver")
		}
		app.Close()
	})
}
