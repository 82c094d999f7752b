package server

import (
	"errors"
	"testing"
	"time"

	"github.com/weftmesh/weft/catalog"
)

// TestDoubt: who asks a server that leads no more is told so after a moment, who only
// looks at once, and nobody while it still leads.
func TestDoubt(t *testing.T) {
	now := time.Now()
	at := func(leader string, looks bool, after ...time.Duration) (err error) {
		d := &doubt{at: &peerConn{id: "a"}, looks: looks, leads: func() (string, string) { return leader, "" }}
		for _, dt := range after {
			err = d.judge(now.Add(dt))
		}
		return err
	}
	for _, c := range []struct {
		name   string
		leader string
		looks  bool
		after  time.Duration
		want   error
	}{
		{"it leads", "a", false, time.Hour, nil},
		{"it leads, to one who looks", "a", true, time.Hour, nil},
		{"another leads, not for long", "b", false, deposedGrace, nil},
		{"another leads", "b", false, 2 * deposedGrace, catalog.ErrUnavailable},
		{"another leads, to one who looks", "b", true, 0, catalog.ErrNoLeader},
		{"nobody leads, not for long", "", false, leaderHold, nil},
		{"nobody leads", "", false, 2 * leaderHold, catalog.ErrUnavailable},
	} {
		if err := at(c.leader, c.looks, 0, c.after); !errors.Is(err, c.want) || (err == nil) != (c.want == nil) {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
	}
}
