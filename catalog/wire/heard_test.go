package wire

import (
	"net"
	"testing"
	"testing/synctest"
	"time"
)

func TestHeard(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ours, theirs := net.Pipe()
		h := Hear(ours)
		defer h.Close()
		time.Sleep(time.Second)
		if got := h.Silent(); got != time.Second {
			t.Errorf("silent for %s", got)
		}
		go func() { _, _ = theirs.Write([]byte("x")) }()
		if n, err := h.Read(make([]byte, 1)); n != 1 || err != nil {
			t.Fatal(n, err)
		}
		if got := h.Silent(); got != 0 {
			t.Errorf("heard, and silent for %s", got)
		}
		time.Sleep(DeadAfter)
		h.Forgive()
		if got := h.Silent(); got != 0 {
			t.Errorf("forgiven, and silent for %s", got)
		}
		_ = theirs.Close()
		if _, err := h.Read(make([]byte, 1)); err == nil {
			t.Error("the end was not passed on")
		}
	})
}
