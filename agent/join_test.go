package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/weftmesh/weft/connect/enroll"
)

// TestServersTurnOneAway: a server that others refuse says so in its own log, as its
// gossip and its Raft do not; that others are not there yet is nothing to shout about.
func TestServersTurnOneAway(t *testing.T) {
	refused := fmt.Errorf("10.0.0.1:8300: %w", enroll.Refuse(enroll.ReasonNodeIDInUse, "was this host cloned?"))
	for _, c := range []struct {
		name string
		err  error
		loud bool
	}{
		{"nothing", nil, false},
		{"not there", errors.New("connection refused"), false},
		{"busy", enroll.Refuse(enroll.ReasonUnavailable, "ask again"), false},
		{"refused", errors.Join(errors.New("no other server told what changed"), refused), true},
	} {
		var log bytes.Buffer
		j := &joiner{log: slog.New(slog.NewTextHandler(&log, nil)), node: "n", cfg: Join{
			Start: []string{"10.0.0.1"}, ServerPort: 8300,
			Refresh: func(context.Context, []string) error { return c.err },
		}, gossip: lonely{}}
		for range 3 {
			if err := j.refresh(t.Context()); !errors.Is(err, c.err) {
				t.Errorf("%s: %v", c.name, err)
			}
		}
		if loud := strings.Contains(log.String(), "was this host cloned?") && strings.Contains(log.String(), "level=ERROR"); loud != c.loud || (!loud && log.Len() > 0) || strings.Count(log.String(), "\n") > 1 {
			t.Errorf("%s: %s", c.name, log.String())
		}
	}
}

// lonely is gossip that remembers nobody.
type lonely struct{ Gossip }

func (lonely) Peers() []string { return nil }
