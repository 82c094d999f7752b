package tunnel

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync/atomic"
	"time"
)

// Driver moves bytes between the connections of applications and tunnels. There
// are two, of the same behaviour: Goroutines, portable, and Loops, for Linux.
type Driver interface {
	// Client makes a tunnel of an authenticated connection and waits for the peer's
	// greeting. It owns conn from then on, also when it fails. A peer that was silent
	// has patience (0: 5 s) to answer when a stream is opened; then the tunnel drains, and
	// what it has not answered is given back.
	Client(ctx context.Context, conn *tls.Conn, patience time.Duration) (Link, error)
	// Server is the accepting end: accept judges each stream.
	Server(ctx context.Context, conn *tls.Conn, accept Accept) (Link, error)
	// Pair joins one application to one authenticated connection, for peers without
	// tunnels. It owns both, unless it fails.
	Pair(conn *tls.Conn, app net.Conn, end EndFunc) (*Flow, error)
	// Splice joins app to an application of this host, without a tunnel: accept judges
	// it as the far end of one would, and end is told as the near end of one; CodeDraining
	// is that of one that never saw it (CauseUnprocessed). It owns app, unless it fails, with
	// errors.ErrUnsupported where a platform has no such thing, or app has said something in
	// a stream before.
	Splice(app net.Conn, accept Accept, end EndFunc) (*Flow, error)
	// Listen accepts the connections of ln, which it owns, and gives each to accept,
	// which may run on an event loop and must not block, and will mostly Carry it.
	// Where accepting fails for want of descriptors or memory it is tried again, and
	// failed is told. stop returns when the address is free; it must not be called by
	// accept.
	Listen(ln net.Listener, accept func(net.Conn), failed func(error)) (stop func(), err error)
	// Close ends all tunnels and pairs; their ends are still reported.
	Close() error
}

// Link is one tunnel of a Driver.
type Link interface {
	// Carry makes app a stream (client only). It waits for nothing. It owns app,
	// unless it fails: ErrFull, ErrDraining and ErrLost ask for another tunnel.
	Carry(app net.Conn, meta []byte, end EndFunc) (*Flow, error)
	// Drain lets streams finish and takes no new ones; the tunnel ends with the last.
	Drain(code Code)
	// Close resets all streams and ends the tunnel.
	Close() error
	// Done is closed when the tunnel has ended.
	Done() <-chan struct{}
	// Status tells how the tunnel does.
	Status() Status
}

// Status is the state of a tunnel.
type Status struct {
	Streams  int
	Limit    int // of streams, as the peer sets it for a client, and we for a server
	Draining bool
	Bytes    uint64 // of frames, both ways
	// Bulk: long records have passed. crypto/tls keeps buffers of their size, so such a
	// tunnel is worth replacing when it goes quiet.
	Bulk bool
	// Grown counts windows of streams that have grown, either way: they carry bulk, or
	// did a moment ago.
	Grown int
	// Unjudged counts the streams that were refused before Accept was asked.
	Unjudged uint64
	// Err is why the tunnel ended; nil while it lives and when it ended in order.
	Err error
}

// Accept judges a stream when it is opened. It may run on an event loop, between
// two reads: it must not block, nor log to a file. meta is valid until it returns; f
// may be kept, and reset from anywhere at any time.
type Accept func(f *Flow, meta []byte) Verdict

// Verdict is the answer of Accept.
type Verdict struct {
	// Refuse, when not zero, resets the stream with this code; nothing else is used
	// and no end is reported.
	Refuse Code
	// Addr is where the application listens on TCP. A loop connects to it itself,
	// which is much cheaper than Dial.
	Addr netip.AddrPort
	// Dial connects to the application where Addr is not valid, in a goroutine of its
	// own. Its context ends with the stream, or with Timeout.
	Dial func(ctx context.Context) (net.Conn, error)
	// Timeout bounds connecting; 5 s by default.
	Timeout time.Duration
	// End is called once when the stream has ended.
	End EndFunc
}

const (
	dialTimeout = 5 * time.Second
	acceptPause = 50 * time.Millisecond // after running out of descriptors or memory
)

func (v *Verdict) complete() {
	if v.Timeout <= 0 {
		v.Timeout = dialTimeout
	}
	if v.Addr.IsValid() {
		addr := v.Addr.String()
		v.Dial = func(ctx context.Context) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "tcp", addr)
		}
	} else if v.Dial == nil {
		v.Dial = func(context.Context) (net.Conn, error) { return nil, errNowhere }
	}
}

var errNowhere = errors.New("the verdict on the stream has neither Addr nor Dial")

// EndFunc is called once when a flow has ended: both its connections are closed and
// its counters are final. It may run on an event loop and must not block.
type EndFunc func(f *Flow, e End)

// Cause says who ended a flow. The list is closed.
type Cause uint8

// Causes.
const (
	// CauseDone: both directions were complete.
	CauseDone Cause = iota
	// CauseApp: the application here failed, reset, or left early.
	CauseApp
	// CausePeer: the peer reset it; End.Code says why.
	CausePeer
	// CauseOwner: Flow.Reset, Link.Close or Driver.Close.
	CauseOwner
	// CauseLost: the tunnel, or the pair's connection, was lost.
	CauseLost
	// CauseDial: Verdict.Dial failed.
	CauseDial
	// CauseUnprocessed: the peer drained before it saw the stream, or nothing of it was
	// said before the tunnel ended or its peer fell silent.
	CauseUnprocessed
)

var causeNames = [...]string{"done", "app", "peer", "owner", "lost", "dial", "unprocessed"}

// String is the name of the cause.
func (c Cause) String() string {
	if int(c) < len(causeNames) {
		return causeNames[c]
	}
	return fmt.Sprintf("cause_%d", uint8(c))
}

// End says how a flow ended.
type End struct {
	Cause Cause
	Code  Code  // of the reset, where there was one
	Err   error // nil when it was done
	// App is the application's connection where nobody has heard it: nothing was read of
	// it, or so little that it was kept, and the far end says that its application saw
	// nothing of that; and nothing was given to it. Its owner may carry it elsewhere, where
	// what it has said is said again, and must close it else. It may be nil also where that
	// holds.
	App net.Conn
}

// Flow is one application's connection in a tunnel or pair, to its owner.
type Flow struct {
	sent, received atomic.Int64
	target         resetter
}

type resetter interface{ reset(Code) }

// Sent counts the bytes taken from the application here.
func (f *Flow) Sent() int64 { return f.sent.Load() }

// Received counts the bytes handed to the application here.
func (f *Flow) Received() int64 { return f.received.Load() }

// Reset cuts the flow: both applications see a reset. It does not wait.
func (f *Flow) Reset(code Code) { f.target.reset(code) }

// lingerTimeout is how long an application that still sends, though its peer has
// answered in full and left, may take to read what it was sent.
const lingerTimeout = 5 * time.Second

// carries marks an application as carried: should this process be killed, the kernel
// closes for us, as a reset, since what the application has must not look complete.
func carries(c net.Conn) {
	if t, ok := c.(interface{ SetLinger(int) error }); ok {
		_ = t.SetLinger(0) // fails only when closed
	}
}

// finish closes an application that has all there was to say.
func finish(c net.Conn) {
	if t, ok := c.(interface{ SetLinger(int) error }); ok {
		_ = t.SetLinger(-1) // fails only when closed
	}
	c.Close()
}

// abort closes so that the far end sees a reset, where the transport has one.
func abort(c net.Conn) {
	if t, ok := c.(interface{ SetLinger(int) error }); ok {
		_ = t.SetLinger(0) // fails only when closed
	}
	c.Close()
}
