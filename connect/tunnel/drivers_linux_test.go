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
func hush(l Link) {
	since := time.Now().Add(-time.Minute)
	switch t := l.(type) {
	case *link:
		t.mu.Lock()
		defer t.mu.Unlock()
		t.heard = since
	case *loopTunnel:
		done := make(chan struct{})
		t.l.post(func() { t.heard = since; close(done) })
		<-done
	}
}
