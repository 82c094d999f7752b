package tunnel

import (
	"bytes"
	"io"
	"net"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// sayUrgently has all of it there before one read: before, an urgent byte, which nobody
// carries, and what is behind it.
func sayUrgently(t *testing.T, c *net.TCPConn, of any, before []byte, end bool) {
	t.Helper()
	release := holdLoop(of)
	defer release()
	if _, err := c.Write(before); err != nil {
		t.Fatal(err)
	}
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	_ = raw.Control(func(fd uintptr) { err = syscall.Sendto(int(fd), []byte("c"), unix.MSG_OOB, nil) })
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Write([]byte("def")); err != nil {
		t.Fatal(err)
	}
	if end {
		_ = c.CloseWrite()
	}
}

func TestUrgentDataHoldsUpNothing(t *testing.T) {
	eachDriver(t, func(t *testing.T, d driverPair) {
		t.Run("tunnel", func(t *testing.T) {
			r := newRig(t, d, rigOptions{backend: echo})
			c, _ := r.app("")
			_, _ = c.Write([]byte("x"))
			expect(t, c, "x")
			sayUrgently(t, c, r.client, []byte("ab"), false)
			expect(t, c, "abdef")
		})
		t.Run("pair", func(t *testing.T) {
			cd, sd := d.start(t, Config{})
			r := newPairRig(t, cd, sd)
			go echo(r.backend)
			_, _ = r.app.Write([]byte("x"))
			expect(t, r.app, "x")
			sayUrgently(t, r.app, r.client, []byte("ab"), false)
			expect(t, r.app, "abdef")
		})
	})
	for name, n := range map[string]int{"splice": 2, "splice, bulk": 2 * smallRead} {
		for _, end := range []bool{false, true} {
			t.Run(name, func(t *testing.T) {
				r := newSplice(t, toAddr(listen(t, echo)))
				_, _ = r.app.Write([]byte("x"))
				expect(t, r.app, "x")
				said := pattern(1, n)
				sayUrgently(t, r.app, r.flow, said, end)
				_ = r.app.SetReadDeadline(time.Now().Add(10 * time.Second))
				got := make([]byte, n+3)
				if k, err := io.ReadFull(r.app, got); err != nil || !bytes.Equal(got, append(said, "def"...)) {
					t.Fatalf("%d of %d bytes came back, %v", k, len(got), err)
				}
			})
		}
	}
}
