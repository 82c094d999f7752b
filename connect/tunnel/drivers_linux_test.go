package tunnel

import "time"

func loops(c Config) (Driver, error) { return NewLoops(c, 2) }

var driverPairs = []driverPair{
	{"goroutines", goroutines, goroutines},
	{"loops", loops, loops},
	{"loops to goroutines", loops, goroutines},
	{"goroutines to loops", goroutines, loops},
}

// holdLoop keeps the loop of a tunnel, where it has one, from its next turn.
func holdLoop(l Link) (release func()) {
	t, ok := l.(*loopTunnel)
	if !ok {
		return func() {}
	}
	held, over := make(chan struct{}), make(chan struct{})
	t.l.post(func() { close(held); <-over })
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
