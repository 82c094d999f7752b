package wire

import (
	"net"
	"sync/atomic"
	"time"
)

const (
	// PingEvery is how often a server lets an idle connection hear from it.
	PingEvery = 1500 * time.Millisecond
	// SilentAfter is the silence after which another server is better asked.
	SilentAfter = 2200 * time.Millisecond
	// DeadAfter is the silence after which a connection is given up.
	DeadAfter = 3500 * time.Millisecond
)

// Heard is a client's connection that knows when it last heard from the server. A
// server that is frozen, or behind a cut cable, says nothing, and TCP does not mind.
type Heard struct {
	net.Conn
	at atomic.Pointer[time.Time]
}

// Hear begins to listen on a connection.
func Hear(c net.Conn) *Heard {
	h := &Heard{Conn: c}
	h.Forgive()
	return h
}

// Read implements net.Conn.
func (h *Heard) Read(b []byte) (int, error) {
	n, err := h.Conn.Read(b)
	if n > 0 {
		h.Forgive()
	}
	return n, err
}

// Forgive lets the silence begin anew: this process did not run, and could not hear.
func (h *Heard) Forgive() {
	now := time.Now()
	h.at.Store(&now)
}

// Silent is for how long nothing was heard.
func (h *Heard) Silent() time.Duration { return time.Since(*h.at.Load()) }
