package conformance

import (
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/weftmesh/weft/cmd/meshtest/proc"
)

// Most cases wait for an agent rather than for the processor, so more of them run
// than there are processors.
const atATime = 6

func TestMain(m *testing.M) {
	flag.Parse()
	_ = flag.Set("test.parallel", fmt.Sprint(atATime))
	os.Exit(m.Run())
}

// tally counts over all cases.
type tally struct {
	// alone is held, for writing, by a case that shall have the machine for itself.
	alone sync.RWMutex

	mu     sync.Mutex
	cases  int
	steps  int
	failed map[string][]Difference // "area/case step" → hard differences
}

func TestRecordedAnswers(t *testing.T) {
	cases, err := Cases()
	if err != nil {
		t.Fatal(err)
	}
	pending, chosen := must(t, Pending), must(t, Chosen)
	selected := slices.DeleteFunc(slices.Clone(cases), func(c *Case) bool {
		return pending[c.area] != "" || pending[c.ID()] != ""
	})
	for name, why := range pending {
		if !slices.ContainsFunc(cases, func(c *Case) bool { return c.area == name || c.ID() == name }) {
			t.Errorf("pending.txt: no area or case is called %s", name)
		}
		t.Logf("not run yet: %s (%s)", name, why)
	}
	binary := proc.Binary(t)
	total := &tally{failed: map[string][]Difference{}}
	t.Run("cases", func(t *testing.T) {
		for _, c := range selected {
			t.Run(c.ID(), func(t *testing.T) {
				t.Parallel()
				total.replay(t, binary, c, chosen)
			})
		}
	})
	if total.cases < len(selected) {
		return // -run chose among them
	}
	t.Logf("%d cases with %d steps of %d recorded cases; %d chosen differences", total.cases, total.steps, len(cases), len(chosen))
	for key, why := range chosen {
		if !total.differs(t, binary, key, selected, chosen) {
			t.Errorf("chosen.txt: %s matches what was recorded now, or was not run; remove the line (%s)", key, why)
		}
	}
	if limit := total.steps / 50; len(chosen) > limit {
		t.Errorf("chosen.txt: %d differences, at most %d (2 %% of the steps run) may be chosen", len(chosen), limit)
	}
}

func must(t *testing.T, read func() (map[string]string, error)) map[string]string {
	t.Helper()
	m, err := read()
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// differs tells whether the step of a chosen difference differs. One that matched
// is looked at again with the machine idle: it may have been by chance. Some differ
// in what falls into the same tenth of a second, which a busy machine makes rare.
func (all *tally) differs(t *testing.T, binary, key string, cases []*Case, chosen map[string]string) bool {
	id, _, _ := strings.Cut(key, " ")
	at := slices.IndexFunc(cases, func(c *Case) bool { return c.ID() == id })
	for try := 0; try < 8 && at >= 0 && len(all.failed[key]) == 0; try++ {
		all.once(t, binary, cases[at], chosen)
	}
	return len(all.failed[key]) > 0
}

// replay runs one case. One that hangs on time gets a second try, alone: until
// then the machine is busy with five others.
func (all *tally) replay(t *testing.T, binary string, c *Case, chosen map[string]string) {
	all.alone.RLock()
	bad := all.once(t, binary, c, chosen)
	all.alone.RUnlock()
	if len(bad) > 0 && c.timed() {
		t.Logf("a second try after %d differences", len(bad))
		all.alone.Lock()
		bad = all.once(t, binary, c, chosen)
		all.alone.Unlock()
	}
	if len(bad) > 0 {
		t.Errorf("%s\n    %s", c.About, strings.Join(bad, "\n    "))
	}
	all.mu.Lock()
	defer all.mu.Unlock()
	all.cases++
	for _, s := range c.Steps {
		if s.Expect != nil {
			all.steps++
		}
	}
}

func (all *tally) once(t *testing.T, binary string, c *Case, chosen map[string]string) (bad []string) {
	hard := map[string][]Difference{}
	for _, d := range Play(binary, c) {
		key := fmt.Sprintf("%s %d", c.ID(), d.Step)
		switch {
		case d.Soft:
			if testing.Verbose() {
				t.Log(d)
			}
			continue
		case d.Step == 0 || chosen[key] == "":
			bad = append(bad, d.String())
		default:
			t.Logf("chosen (%s)\n    %s", chosen[key], d)
		}
		hard[key] = append(hard[key], d)
	}
	all.mu.Lock()
	defer all.mu.Unlock()
	for key, d := range hard {
		all.failed[key] = d
	}
	return bad
}
