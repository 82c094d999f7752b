package tunnel

import (
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// loopPair is one application joined to one TLS connection, on a loop. The TLS
// socket is not read while the application takes nothing.
type loopPair struct {
	secure
	flow *Flow
	end  EndFunc
	in   queue  // decrypted, for the application
	said []byte // by the application in a stream that nobody heard

	app        int
	appSlot    int32
	registered bool

	queued      bool
	appReadable bool
	appHup      bool
	writeReady  bool
	saidAll     bool  // the application has ended, and the peer been told
	heardAll    bool  // the peer has ended
	shutDone    bool  // the application was told so
	deaf        bool  // the application reads no more
	left        bool  // the peer reads no more
	broken      error // deaf by a reset: what it said before that is still to be read
	ended       bool
}

// pairApp is the application's socket of a pair.
type pairApp struct{ *loopPair }

func (a pairApp) ready(events uint32) {
	p := a.loopPair
	if events&(hasMore|unix.EPOLLRDHUP|unix.EPOLLHUP|unix.EPOLLERR) != 0 {
		p.appReadable = true
		p.appHup = p.appHup || events&^(unix.EPOLLIN|unix.EPOLLOUT) != 0
	}
	if events&(unix.EPOLLOUT|unix.EPOLLHUP|unix.EPOLLERR) != 0 {
		p.writeReady = true
	}
	p.enqueue()
}

// ready implements handler for the TLS socket.
func (p *loopPair) ready(events uint32) {
	p.mark(events)
	p.enqueue()
}

func (p *loopPair) enqueue() {
	if !p.queued && !p.ended {
		p.queued = true
		p.l.activate(p)
	}
}

func (p *loopPair) start(w *Wire) {
	p.l.pairs[p] = struct{}{}
	if p.l.stopping {
		abort(w)
		p.finish(End{Cause: CauseOwner, Code: CodeDraining}, true)
		return
	}
	w.taken = &p.secure
	if err := p.attach(w, p); err != nil {
		abort(w)
		p.finish(End{Cause: CauseLost, Err: err}, true)
		return
	}
	slot, err := p.l.register(p.app, pairApp{p})
	if err != nil {
		p.finish(End{Cause: CauseApp, Err: err}, true)
		return
	}
	p.appSlot, p.registered = slot, true
	resetOnClose(p.app, true)
	p.enqueue()
}

// serve is the pair's turn.
func (p *loopPair) serve() {
	p.queued = false
	if p.ended {
		return
	}
	if !p.toApp() || !p.toPeer() {
		return
	}
	if p.heardAll && p.saidAll && p.in.n == 0 && p.unsent == nil {
		p.finish(End{}, false)
		return
	}
	if p.readable && p.in.n == 0 && !p.heardAll || p.appReadable && p.unsent == nil && !p.saidAll {
		p.enqueue()
	}
}

// toApp moves what the peer sent; false: the pair has ended.
func (p *loopPair) toApp() bool {
	if p.writeReady {
		p.writeReady = false
		for p.in.n > 0 {
			b := p.in.front()
			n, err := writeSome(p.app, b)
			if err != nil && !p.appDeaf(err) {
				return false
			}
			if p.deaf {
				break
			}
			p.flow.received.Add(int64(n))
			p.in.drop(n)
			if n < len(b) {
				break
			}
		}
	}
	if p.readable && p.in.n == 0 && !p.heardAll {
		err := p.receive(pairRead, p.deliver)
		switch {
		case err == nil:
		case p.ended:
			return false
		case inOrder(err):
			p.heardAll = true
		case p.saidAll && p.deaf:
			// It has all there was to say.
			p.finish(End{Cause: CauseApp, Err: os.NewSyscallError("write", unix.EPIPE)}, false)
			return false
		default:
			p.finish(End{Cause: CauseLost, Err: fmt.Errorf("%w: %w", ErrLost, err)}, true)
			return false
		}
	}
	if p.heardAll && p.in.n == 0 && !p.shutDone && !p.deaf {
		p.shutDone = true
		_ = rawShutdown(p.app, unix.SHUT_WR) // fails when the application is gone, which reading tells
	}
	return true
}

func (p *loopPair) deliver(b []byte) error {
	if p.deaf {
		return nil // read on, for the end
	}
	if p.in.n == 0 {
		n, err := writeSome(p.app, b)
		if err != nil {
			if p.appDeaf(err) {
				return nil
			}
			return err
		}
		p.flow.received.Add(int64(n))
		b = b[n:]
	}
	p.in.push(b)
	return nil
}

// appDeaf: a failed write to the application. It may have answered before, and is read
// to its end, be that in order or the reset that the write met. False: the pair is over.
func (p *loopPair) appDeaf(err error) bool {
	if !errors.Is(err, unix.EPIPE) {
		if p.saidAll {
			p.finish(End{Cause: CauseApp, Err: err}, true)
			return false
		}
		p.broken = err
	}
	p.deaf = true
	p.in.clear()
	p.appReadable, p.appHup = true, true
	p.linger(End{Cause: CauseApp, Err: err})
	return true
}

// linger ends the pair when the side that still speaks does not come to an end.
func (p *loopPair) linger(e End) {
	time.AfterFunc(lingerTimeout, func() {
		p.l.post(func() { p.finish(e, true) })
	})
}

// toPeer moves what the application sent; false: the pair has ended.
func (p *loopPair) toPeer() bool {
	l := p.l
	err := p.flush()
	if err == nil && len(p.said) > 0 && p.unsent == nil {
		p.flow.sent.Add(int64(len(p.said)))
		if err = p.send(p.said); err == nil {
			err = p.flush()
		}
		p.said = nil
	}
	if err == nil && p.appReadable && p.unsent == nil && !p.saidAll {
		buf := l.out[:MaxData]
		n, again, rerr := readSome(p.app, buf)
		switch {
		case rerr != nil:
			p.finish(End{Cause: CauseApp, Err: os.NewSyscallError("read", rerr)}, true)
			return false
		case p.broken != nil && (again || n == 0):
			p.finish(End{Cause: CauseApp, Err: p.broken}, true)
			return false
		case again:
			p.appReadable, p.appHup = false, false
		case n == 0:
			p.saidAll, p.appReadable = true, false
			if !p.left {
				err = p.tc.CloseWrite()
			}
		default:
			p.flow.sent.Add(int64(n))
			p.appReadable = n == len(buf) || p.appHup
			if !p.left {
				err = p.send(buf[:n])
			}
		}
		if err == nil {
			err = p.flush()
		}
	}
	switch {
	case err == nil:
	case p.heardAll && !p.left:
		// The peer answered in full and left while the application still sent.
		p.left = true
		p.dropUnsent()
		p.linger(End{Cause: CausePeer, Err: err})
	case !p.left:
		p.finish(End{Cause: CauseLost, Err: fmt.Errorf("%w: %w", ErrLost, err)}, true)
		return false
	}
	return true
}

func (p *loopPair) finish(e End, cut bool) {
	if p.ended {
		return
	}
	p.ended = true
	p.shut(!cut, cut)
	if p.registered {
		p.l.release(p.appSlot)
	}
	closeFD(p.app, cut)
	p.in.clear()
	delete(p.l.pairs, p)
	if p.end != nil {
		p.end(p.flow, e)
	}
}

// reset implements resetter, from any goroutine.
func (p *loopPair) reset(code Code) {
	p.l.post(func() {
		p.finish(End{Cause: CauseOwner, Code: code, Err: &ResetError{Code: code}}, true)
	})
}
