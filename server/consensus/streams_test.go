package consensus

import (
	"fmt"
	"net"
	"testing"
)

// TestEachLossIsSeen: of many servers whose connections end at once none is forgotten,
// the leader least of all.
func TestEachLossIsSeen(t *testing.T) {
	s := &streams{lost: make(chan struct{}, 1), conns: map[string]map[net.Conn]struct{}{}, gone: map[string]bool{}}
	var all []net.Conn
	for i := range 5 {
		for range 2 {
			near, far := net.Pipe()
			defer far.Close()
			c, err := s.keep(fmt.Sprint(i), near)
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, c)
		}
	}
	for range 2 {
		for _, c := range all {
			if err := c.Close(); err != nil {
				t.Error(err)
			}
		}
	}
	select {
	case <-s.lost:
	default:
		t.Fatal("nobody is told")
	}
	if got := s.takeLost(); len(got) != 5 {
		t.Errorf("%v were lost, want five", got)
	}
	if got := s.takeLost(); len(got) != 0 || len(s.conns) != 0 {
		t.Errorf("%v are lost twice, %v are still there", got, s.conns)
	}
}
