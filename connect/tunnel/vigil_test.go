//go:build linux

package tunnel

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// farEnd is a peer that the test plays, frame by frame.
type farEnd struct {
	t    *testing.T
	conn net.Conn
}

// silentRig is a client's tunnel to a peer that says nothing unless the test does.
func silentRig(t *testing.T, d driverPair, patience time.Duration) (*rig, *farEnd) {
	t.Helper()
	cd, _ := d.start(t, Config{})
	ct, st := tlsPair(t)
	go func() {
		_, _ = readHello(st)
		_, _ = st.Write(hello{5000, 10}.append(nil))
	}()
	l, err := cd.Client(t.Context(), ct, patience)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { st.Close() })
	return &rig{t: t, client: l, clientEnds: make(chan ended, 16)}, &farEnd{t, st}
}

// carry opens a stream whose application is kept when it is given back.
func (r *rig) carry() *net.TCPConn {
	r.t.Helper()
	mine, theirs := tcpPair(r.t)
	if _, err := r.client.Carry(theirs, nil, func(f *Flow, e End) { r.clientEnds <- ended{f, e} }); err != nil {
		r.t.Fatal(err)
	}
	return mine
}

// frame reads the next one.
func (f *farEnd) frame() (typ byte, id uint32, payload []byte) {
	f.t.Helper()
	_ = f.conn.SetReadDeadline(time.Now().Add(10 * time.Second))
	head := make([]byte, headerSize)
	if _, err := io.ReadFull(f.conn, head); err != nil {
		f.t.Fatal(err)
	}
	word := binary.BigEndian.Uint32(head)
	payload = make([]byte, word&0xffffff)
	if _, err := io.ReadFull(f.conn, payload); err != nil {
		f.t.Fatal(err)
	}
	return byte(word >> 24), binary.BigEndian.Uint32(head[4:]), payload
}

// until reads to the next frame of a type, past those that may come before it.
func (f *farEnd) until(want byte, before ...byte) (id uint32, payload []byte) {
	f.t.Helper()
	for {
		typ, id, payload := f.frame()
		if typ == want {
			return id, payload
		}
		for _, b := range before {
			if typ == b {
				typ = 0
			}
		}
		if typ != 0 {
			f.t.Fatalf("a frame of type %#x of stream %d before the one of type %#x", typ, id, want)
		}
	}
}

func (f *farEnd) write(b []byte) {
	f.t.Helper()
	if _, err := f.conn.Write(b); err != nil {
		f.t.Fatal(err)
	}
}

func (f *farEnd) say(id uint32, text string) {
	f.t.Helper()
	f.write(append(appendHeader(nil, typeData, len(text), id), text...))
}

func expect(t *testing.T, c net.Conn, want string) {
	t.Helper()
	_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
	b := make([]byte, len(want))
	if _, err := io.ReadFull(c, b); err != nil || string(b) != want {
		t.Fatalf("got %q, %v", b, err)
	}
}

// carriedOnce is an application that the peer has answered, and its stream.
func carriedOnce(t *testing.T, r *rig, far *farEnd) (app *net.TCPConn, id uint32) {
	t.Helper()
	trust(r.client)
	app = r.carry()
	_, _ = app.Write([]byte("a")) // what is not written is missed at once
	id, _ = far.until(typeOpen)
	far.until(typeData)
	far.say(id, "b")
	expect(t, app, "b")
	return app, id
}

// What is opened towards a peer that has fallen silent comes back with all that it has
// said; what the peer had answered before lives through it.
func TestSilentPeerGetsNothingNew(t *testing.T) {
	for _, d := range driverPairs[:2] {
		t.Run(d.name, func(t *testing.T) {
			r, far := silentRig(t, d, 300*time.Millisecond)
			old, first := carriedOnce(t, r, far)

			trust(r.client)
			said := r.carry() // it cannot be known whether this is heard
			_, _ = said.Write([]byte("c"))
			far.until(typeData, typeOpen)
			hush(r.client)
			held := r.carry()
			_, _ = held.Write([]byte("hello"))

			for range 2 {
				switch e := wait(t, r.clientEnds, "end").end; e.Cause {
				case CauseLost:
					if e.App != nil || !errors.Is(e.Err, ErrSilent) {
						t.Errorf("end of what was said %+v", e)
					}
					expectReset(t, said, "application of what was said")
				case CauseUnprocessed:
					if e.App == nil || !errors.Is(e.Err, ErrSilent) {
						t.Fatalf("end of what was not said %+v", e)
					}
					expect(t, e.App, "hello")
					e.App.Close()
				default:
					t.Fatalf("end %+v", e)
				}
			}
			if !r.client.Status().Draining {
				t.Error("the tunnel takes more streams")
			}
			far.until(typePing, typeOpen)
			far.until(typeGoaway, typeReset, typeFin)
			far.say(first, "still here")
			expect(t, old, "still here")
			_, _ = old.Write([]byte("and here"))
			far.until(typeData, typeReset, typeCredit)
			old.Close()
			far.until(typeFin, typeCredit)
			far.write(appendHeader(nil, typeFin, 0, first))
			wait(t, r.client.Done(), "end of the drained tunnel")
		})
	}
}

// Nothing is held back for longer than the answer takes.
func TestQuietPeerAnswers(t *testing.T) {
	for _, d := range driverPairs[:2] {
		t.Run(d.name, func(t *testing.T) {
			r, far := silentRig(t, d, 10*time.Second)
			hush(r.client)
			c := r.carry()
			_, _ = c.Write([]byte("hello"))
			_, asked := far.until(typePing, typeOpen)
			far.write(append(appendHeader(nil, typePong, 8, 0), asked...))
			_, got := far.until(typeData, typeOpen)
			if string(got) != "hello" {
				t.Fatalf("the peer got %q", got)
			}
			far.say(1, "well")
			expect(t, c, "well")
			if r.client.Status().Draining {
				t.Error("the tunnel takes no streams")
			}
			r.client.Close()
			wait(t, r.clientEnds, "end")
		})
	}
}

// An answer that has come counts, though the clock is served before it is read.
func TestAnswerInTheKernelCounts(t *testing.T) {
	d := driverPairs[1]
	r, far := silentRig(t, d, 10*time.Second)
	l, ok := r.client.(*loopTunnel)
	if !ok {
		t.Fatalf("%s is not of loops", d.name)
	}
	hush(l)
	c := r.carry()
	_, _ = c.Write([]byte("hello"))
	_, asked := far.until(typePing, typeOpen)
	l.l.post(func() {
		far.write(append(appendHeader(nil, typePong, 8, 0), asked...))
		_, _ = unix.Poll([]unix.PollFd{{Fd: int32(l.fd), Events: unix.POLLIN}}, 10_000)
		l.l.dials.until[l] = time.Now()
		l.l.post(l.l.dials.fire)
	})
	if _, got := far.until(typeData, typeOpen); string(got) != "hello" {
		t.Fatalf("the peer got %q", got)
	}
	if l.Status().Draining {
		t.Error("the tunnel takes no streams")
	}
	l.Close()
	wait(t, r.clientEnds, "end")
}

// A tunnel without anything else ends with the doubt, and one that ends while it is in
// doubt gives back what has waited.
func TestNobodyAnswers(t *testing.T) {
	for _, d := range driverPairs[:2] {
		for _, how := range []string{"silent", "gone"} {
			t.Run(d.name+", "+how, func(t *testing.T) {
				patience := 100 * time.Millisecond
				if how == "gone" {
					patience = 10 * time.Second
				}
				r, far := silentRig(t, d, patience)
				hush(r.client)
				c := r.carry()
				_, _ = c.Write([]byte("hello"))
				if how == "gone" {
					far.until(typePing, typeOpen)
					far.conn.Close()
				}
				e := wait(t, r.clientEnds, "end").end
				if e.Cause != CauseUnprocessed || e.App == nil || errors.Is(e.Err, ErrSilent) != (how == "silent") {
					t.Fatalf("end %+v", e)
				}
				expect(t, e.App, "hello")
				e.App.Close()
				wait(t, r.client.Done(), "end of the tunnel")
				if err := r.client.Status().Err; how == "silent" && !errors.Is(err, ErrSilent) || err == nil {
					t.Errorf("the tunnel ended with %v", err)
				}
			})
		}
	}
}

// What the peer had answered once may end here while the peer is silent: that does not make
// an end in order of it.
func TestLastStreamOfASilentPeerEndsHere(t *testing.T) {
	for _, d := range driverPairs[:2] {
		t.Run(d.name, func(t *testing.T) {
			r, far := silentRig(t, d, 100*time.Millisecond)
			old, _ := carriedOnce(t, r, far)
			hush(r.client)
			held := r.carry()
			_, _ = held.Write([]byte("hello"))
			e := wait(t, r.clientEnds, "end").end
			if e.Cause != CauseUnprocessed || e.App == nil {
				t.Fatalf("end %+v", e)
			}
			e.App.Close()
			_ = old.SetLinger(0)
			old.Close()
			wait(t, r.clientEnds, "end of what lived on")
			wait(t, r.client.Done(), "end of the tunnel")
			if err := r.client.Status().Err; !errors.Is(err, ErrSilent) {
				t.Errorf("the tunnel ended with %v", err)
			}
		})
	}
}

// An output that stands still holds up nothing new for long, either.
func TestFullOutputIsDoubted(t *testing.T) {
	for _, d := range driverPairs[:2] {
		t.Run(d.name, func(t *testing.T) {
			r, far := silentRig(t, d, 200*time.Millisecond)
			trust(r.client)
			bulk := r.carry()
			far.until(typeOpen)
			far.write(appendWord(nil, typeCredit, 1, maxWindow-5000))
			go func() {
				for _, err := bulk.Write(make([]byte, 1<<20)); err == nil; {
					_, err = bulk.Write(make([]byte, 1<<20))
				}
			}()
			defer bulk.Close()
			last := uint64(0)
			eventually(t, "output that stands still", func() bool {
				before := last
				last = r.client.Status().Bytes
				return last > 1<<20 && last == before
			})
			hush(r.client)
			c := r.carry()
			_, _ = c.Write([]byte("hello"))
			e := wait(t, r.clientEnds, "end").end
			if e.Cause != CauseUnprocessed || e.App == nil {
				t.Fatalf("end %+v", e)
			}
			expect(t, e.App, "hello")
			e.App.Close()
			select {
			case <-r.client.Done():
				t.Error("the tunnel ended under what it carries")
			default:
			}
			_ = far.conn.SetReadDeadline(time.Now().Add(10 * time.Second))
			go func() { _, _ = io.Copy(io.Discard, far.conn) }() // closing would wait for it
			r.client.Close()
			wait(t, r.clientEnds, "end of the bulk")
		})
	}
}
