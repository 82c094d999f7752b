package server

import (
	"bytes"
	"context"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/weftmesh/weft/catalog/wire"
)

// TestNobodyLeads: who looks into the log of a server without a leader finds who is
// missing and what to do, once a minute.
func TestNobodyLeads(t *testing.T) {
	var log bytes.Buffer
	leads, answer := true, map[string]*wire.StandingReply{}
	l := &leaderless{
		self: "a", leads: func() (string, bool) { return "b", leads }, log: slog.New(slog.NewTextHandler(&log, nil)),
		peers: func() ([]wire.RaftPeer, error) {
			return []wire.RaftPeer{
				{ID: "a", Address: "10.0.0.1:8300", Voter: true},
				{ID: "b", Address: "10.0.0.2:8300", Voter: true},
				{ID: "c", Address: "10.0.0.3:8300", Voter: true},
				{ID: "d", Address: "10.0.0.4:8300"},
			}, nil
		},
		standings: func(context.Context, map[string]string) map[string]*wire.StandingReply { return answer },
	}
	now := time.Now()
	pass := func(d time.Duration) string {
		log.Reset()
		for range d / leaderlessLook {
			now = now.Add(leaderlessLook)
			l.look(t.Context(), now)
		}
		return log.String()
	}
	if said := pass(time.Minute); said != "" {
		t.Error(said)
	}
	leads = false
	if said := pass(leaderlessAfter); said != "" {
		t.Error("an election takes a moment:", said)
	}
	said := pass(10 * time.Second)
	for _, want := range []string{"voters=3", "needed=2", `silent="10.0.0.2:8300 10.0.0.3:8300"`, "weft operator recover"} {
		if !strings.Contains(said, want) {
			t.Errorf("%q is missing in %s", want, said)
		}
	}
	if what, hint := l.why(); !strings.Contains(what, "2 of 3 servers are needed, and these do not answer: 10.0.0.2:8300 10.0.0.3:8300") || !strings.Contains(hint, "recover") {
		t.Error(what, hint)
	}
	answer["b"] = &wire.StandingReply{}
	if said = pass(sayAgain); strings.Count(said, "\n") != 1 || !strings.Contains(said, "silent=10.0.0.3:8300") || strings.Contains(said, "recover") {
		t.Error("a minute later:", said)
	}
	leads = true
	if said = pass(10 * time.Second); strings.Count(said, "there is a leader again") != 1 {
		t.Error(said)
	}
}
