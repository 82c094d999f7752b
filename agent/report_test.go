package agent

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/weftmesh/weft/agent/local"
	"github.com/weftmesh/weft/catalog/wire"
	"github.com/weftmesh/weft/connect/enroll"
)

// TestReportInWords: who reads `weft info` learns how the agent fares, and what to do.
func TestReportInWords(t *testing.T) {
	until := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	expired := fmt.Errorf("join at 10.0.0.1:8300: %w", enroll.Refuse(enroll.ReasonTokenExpired, "make another token"))
	for _, tc := range []struct {
		name string
		r    Report
		part string
		want string
		hint string // contained; "" for none
	}{
		{"connected", Report{Joined: true, Connected: true, Server: "10.0.0.1:8300"}, "agent", "is connected to the server 10.0.0.1:8300", ""},
		{"beside a server", Report{Joined: true, Connected: true}, "agent", "speaks to the server in this process", ""},
		{"refused", Report{Refused: expired}, "agent", "has joined no cluster: join at 10.0.0.1:8300: join refused (token_expired): make another token", ""},
		{"unreachable", Report{Refused: errors.Join(errors.New("a"), errors.New("b"))}, "agent", "has joined no cluster: a; b", "TCP 8300"},
		{"alone", Report{Joined: true, Server: "10.0.0.1:8300"}, "agent", "no server answers; what is known goes on being served", "retry_join"},
		{
			"revoked",
			Report{Joined: true, Server: "10.0.0.1:8300", Refused: enroll.Refuse(enroll.ReasonNodeRevoked, "weft node allow")},
			"agent", "the servers turn this host away: join refused (node_revoked): weft node allow; what is known goes on being served", "",
		},
		{
			"not renewed",
			Report{Joined: true, Connected: true, Server: "s", NotAfter: until, Refused: errors.New("a")},
			"agent", "is connected to the server s; its certificate, good until 2026-01-02T03:04:05Z, was not renewed: a", "tried again",
		},
		{
			"a copy of a server",
			Report{Joined: true, Connected: true, Turned: expired, TurnedAt: until},
			"agent", "speaks to the server in this process, which others turned away at 2026-01-02T03:04:05Z: " + expired.Error(), "do what the reason says",
		},
		{"stated", Report{Services: 3}, "catalog", "has what this host registers: 3 services", ""},
		{"a copy of an agent", Report{Unstated: errors.New("it is a clone")}, "catalog", "lacks what this host registers: it is a clone", ""},
		{"not stated", Report{Services: 3, Unstated: local.ErrUnstated}, "catalog", "was not told since the start what this host registers: 3 services", ""},
		{"all are there", Report{Members: 3}, "members", "3 of 3 are alive", ""},
		{"some are gone", Report{Members: 3, Failed: 1}, "members", "2 of 3 are alive", "weft members -status=failed"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			words := tc.r.words()
			if got := words[tc.part]; got != tc.want {
				t.Errorf("got %q, want %q", got, tc.want)
			}
			hint := words[tc.part+wire.StatsHint]
			if (hint == "") != (tc.hint == "") || !strings.Contains(hint, tc.hint) {
				t.Errorf("the hint is %q, want %q", hint, tc.hint)
			}
		})
	}
}
