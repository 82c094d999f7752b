package local

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/weftmesh/weft/catalog"
)

func TestOutputLimits(t *testing.T) {
	s, _ := open(t, "", func(c *Config) { c.CheckOutputMaxSize = 3 })
	quiet, _ := open(t, "", func(c *Config) { c.DiscardCheckOutput = true })
	for _, x := range []*State{s, quiet} {
		register(t, x, `{"Name":"a","Check":{"CheckID":"c","TTL":"1h"}}`)
		if err := x.UpdateTTL("c", "passing", "abcdef"); err != nil {
			t.Fatal(err)
		}
	}
	if got := s.Host().Checks["c"].Output; got != "abc ... (captured 3 of 6 bytes)" {
		t.Errorf("%q", got)
	}
	if got := quiet.Host().Checks["c"]; got.Output != "" || got.Status != "passing" {
		t.Errorf("%+v", got)
	}
}

// TestOutputMaxSizeIsTheLeastOfBoth: a definition may ask for less than the agent allows,
// not for more.
func TestOutputMaxSizeIsTheLeastOfBoth(t *testing.T) {
	s, _ := open(t, "", func(c *Config) { c.CheckOutputMaxSize = 4 })
	for asked, want := range map[string]string{"2": "ab ... (captured 2 of 6 bytes)", "9000000": "abcd ... (captured 4 of 6 bytes)"} {
		register(t, s, `{"Name":"a","Check":{"CheckID":"c","TTL":"1h","OutputMaxSize":`+asked+`}}`)
		if err := s.UpdateTTL("c", "passing", "abcdef"); err != nil {
			t.Fatal(err)
		}
		if got := s.Host().Checks["c"].Output; got != want {
			t.Errorf("%s: %q", asked, got)
		}
	}
}

// TestOutputsThatAreTooMuch: a statement that is too large by what checks say is made
// without, so that the servers know how the host's services are.
func TestOutputsThatAreTooMuch(t *testing.T) {
	const most = 8 << 10
	var f servers
	var log strings.Builder
	s, _ := open(t, "", func(c *Config) {
		c.Logger = slog.New(slog.NewTextHandler(&log, nil))
		c.Syncer = limited{&f, most}
	})
	if err := s.Failure(); !errors.Is(err, ErrUnstated) {
		t.Errorf("before the first statement: %v", err)
	}
	for i := range 3 {
		id := fmt.Sprint("c", i)
		register(t, s, `{"Name":"a`+id+`","Check":{"CheckID":"`+id+`","TTL":"1h"}}`)
		if err := s.UpdateTTL(id, "critical", strings.Repeat("x", 4000)); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		if err := errors.Join(s.say(t.Context()), s.Failure()); err != nil {
			t.Fatal(err)
		}
	}
	if c := f.check("c2"); c == nil || c.Status != "critical" || len(c.Output) > 2*shortOutput {
		t.Errorf("they know %+v", c)
	}
	if got := s.Host().Checks["c2"].Output; len(got) != 4000 {
		t.Errorf("this host itself keeps %d bytes", len(got))
	}
	if n := strings.Count(log.String(), "level=ERROR"); n != 1 || !strings.Contains(log.String(), "check_output_max_size") {
		t.Errorf("said %d times: %s", n, log.String())
	}
	if err := s.Deregister(t.Context(), "ac0"); err != nil {
		t.Fatal(err)
	}
	if err := s.Deregister(t.Context(), "ac1"); err != nil {
		t.Fatal(err)
	}
	if err := s.say(t.Context()); err != nil {
		t.Fatal(err)
	}
	if c := f.check("c2"); len(c.Output) != 4000 {
		t.Errorf("with room again they know %d bytes", len(c.Output))
	}
}

// limited are servers that take so much at once.
type limited struct {
	*servers
	most int
}

func (l limited) Sync(ctx context.Context, want catalog.NodeState) (uint64, error) {
	b, err := json.Marshal(want)
	if err != nil {
		return 0, err
	}
	if len(b) > l.most {
		return 0, fmt.Errorf("%d bytes: %w", len(b), catalog.ErrTooLarge)
	}
	return l.servers.Sync(ctx, want)
}
