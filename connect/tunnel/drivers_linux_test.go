package tunnel

import "time"

func loops(c Config) (Driver, error) { return NewLoops(c, 2) }

var driverPairs = []driverPair{
	{"goroutines", goroutines, goroutines},
	{"loops", loops, loops},
	{"loops to goroutines", loops, goroutines},
	{"goroutines to loops", goroutines, loops},
}

// holdLoop keeps the loop of a tunnel or a flow, where it has one, from its next turn.
func holdLoop(of any) (release func()) {
	if f, ok := of.(*Flow); ok {
		of = f.target
	}
	var l *loop
	switch x := of.(type) {
	case *loopTunnel:
		l = x.l
	case *loopPair:
		l = x.l
	case *joint:
		l = x.s.l
	default:
		return func() {}
	}
	held, over := make(chan struct{}), make(chan struct{})
	l.post(func() { close(held); <-over })
	<-held
	return func() { close(over) }
}

// hush has a tunnel believe that its peer has been silent for a minute.
func hush(l Link) { heardAt(l, time.Now().Add(-time.Minute)) }

// trust has a tunnel ask its peer nothing for a minute, however long the test takes.
func trust(l Link) { heardAt(l, time.Now().Add(time.Minute)) }

func heardAt(l Link, at time.Time) {
	switch t := l.(type) {
	case *link:
		t.mu.Lock()
		defer t.mu.Unlock()
		t.heard = at
	case *loopTunnel:
		done := make(chan struct{})
		t.l.post(func() { t.heard = at; close(done) })
		<-done
	}
}

// tick has the keepalive's clock of a tunnel tick, and tells whether it asks its peer to
// say something.
func tick(l Link) (asks bool) {
	switch t := l.(type) {
	case *link:
		t.tick()
		asks = t.pulse.silent > 0
	case *loopTunnel:
		done := make(chan struct{})
		t.l.post(func() { t.tick(); asks = t.silent > 1; close(done) })
		<-done
	}
	return asks
}

// hears tells whether the peer of a tunnel has said something since the last tick.
func hears(l Link) (yes bool) {
	switch t := l.(type) {
	case *link:
		yes = t.reads.Load() != t.pulse.reads
	case *loopTunnel:
		done := make(chan struct{})
		t.l.post(func() { yes = t.silent == 0; close(done) })
		<-done
	}
	return yes
}
