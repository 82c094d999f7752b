package tunnel

import (
	"context"
	"crypto/tls"
	"runtime"
	"testing"
	"time"
)

// idleTunnel makes both ends of a tunnel on event loops, and tells when the TLS connection
// of the client's is no longer held.
func idleTunnel(t *testing.T, client, server Driver, c, s *tls.Conn) (near, far Link, gone <-chan struct{}) {
	t.Helper()
	done := make(chan struct{})
	runtime.AddCleanup(c, func(done chan struct{}) { close(done) }, done)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	accepted := make(chan Link, 1)
	go func() {
		far, err := server.Server(ctx, s, func(*Flow, []byte) Verdict { return Verdict{Refuse: CodeRefused} })
		if err != nil {
			t.Error(err)
		}
		accepted <- far
	}()
	near, err := client.Client(ctx, c, 0)
	if err != nil {
		t.Fatal(err)
	}
	if far = <-accepted; far == nil {
		t.FailNow()
	}
	return near, far, done
}

// An owner forgets a tunnel when it looks after its tunnels again, seconds after it ended.
func TestEndedTunnelLetsGoOfItsTLSConnection(t *testing.T) {
	client, server := driverPair{client: loops, server: loops}.start(t, Config{})
	near, far, gone := func() (near, far Link, gone <-chan struct{}) {
		dialled, accepted := tcpPair(t)
		c, s := tlsOver(t, dialled, accepted)
		return idleTunnel(t, client, server, c, s)
	}()
	if err := near.Close(); err != nil {
		t.Fatal(err)
	}
	<-near.Done()
	<-far.Done()
	for end := time.Now().Add(20 * time.Second); ; runtime.Gosched() {
		runtime.GC()
		select {
		case <-gone:
		default:
			if time.Now().Before(end) {
				continue
			}
			t.Error("the connection is still held by a tunnel that has ended")
		}
		break
	}
	runtime.KeepAlive(near)
}
