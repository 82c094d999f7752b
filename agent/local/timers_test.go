package local

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/catalog/store"
)

func asJSON(t interface{ Fatal(...any) }, v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestSyncTimes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, f := open(t, "", nil)
		stop := run(t, s)
		defer stop()
		time.Sleep(time.Second)
		_, before := f.last()
		start := time.Now()
		register(t, s, `{"Name":"a"}`)
		synctest.Wait()
		if _, n := f.last(); n != before+1 || time.Since(start) != 0 {
			t.Errorf("the first change is sent at once: %d statements more", n-before)
		}
		for i := range 20 {
			register(t, s, fmt.Sprintf(`{"Name":"b%d"}`, i))
		}
		time.Sleep(coalesce)
		synctest.Wait()
		if state, n := f.last(); n != before+2 || len(state.Services) != 21 {
			t.Errorf("20 changes took %d statements, which know %d services", n-before-1, len(state.Services))
		}
		time.Sleep(10*time.Minute + time.Second)
		if _, n := f.last(); n < before+2+8 || n > before+2+11 {
			t.Errorf("%d statements in ten quiet minutes", n-before-2)
		}
	})
}

func TestRetry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, f := open(t, "", nil)
		f.setFail(errors.New("down"))
		stop := run(t, s)
		defer stop()
		for i := range 60 {
			register(t, s, fmt.Sprintf(`{"Name":"b%d"}`, i))
			time.Sleep(time.Second)
		}
		if _, n := f.last(); n < 8 || n > 25 {
			t.Errorf("%d attempts in a minute without servers", n)
		}
		f.setFail(nil)
		time.Sleep(retryMax)
		synctest.Wait()
		if state, _ := f.last(); len(state.Services) != 60 {
			t.Errorf("they know %d services", len(state.Services))
		}
	})
}

func TestOutputAloneWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, f := open(t, "", nil)
		stop := run(t, s)
		defer stop()
		register(t, s, `{"Name":"a","Check":{"CheckID":"c","TTL":"10h","Status":"passing"}}`)
		time.Sleep(time.Second)
		if err := s.UpdateTTL("c", "passing", "new output"); err != nil {
			t.Fatal(err)
		}
		if s.Host().Checks["c"].Output != "new output" {
			t.Error("this host does not know it")
		}
		time.Sleep(2 * time.Minute) // a full statement goes out in between
		if c := f.check("c"); c.Output != "" {
			t.Errorf("the servers know it already: %q", c.Output)
		}
		time.Sleep(3*time.Minute + time.Second)
		if c := f.check("c"); c.Output != "new output" {
			t.Errorf("the servers do not know it after 5 minutes: %q", c.Output)
		}
		if err := s.UpdateTTL("c", "critical", "down"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(coalesce)
		synctest.Wait()
		if c := f.check("c"); c.Status != "critical" || c.Output != "down" {
			t.Errorf("a changed status waits: %+v", c)
		}
	})
}

func TestTTLExpires(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, f := open(t, "", nil)
		stop := run(t, s)
		defer stop()
		register(t, s, `{"Name":"a","Check":{"CheckID":"c","TTL":"30s","OutputMaxSize":20}}`)
		if err := s.UpdateTTL("c", "passing", "01234567890123456789012345678901234567890123456789"); err != nil {
			t.Fatal(err)
		}
		if got := s.Host().Checks["c"].Output; got != "01234567890123456789 ... (captured 20 of 50 bytes)" {
			t.Errorf("output %q", got)
		}
		time.Sleep(29 * time.Second)
		synctest.Wait()
		if s.Host().Checks["c"].Status != "passing" {
			t.Error("expired early")
		}
		time.Sleep(time.Second + coalesce)
		synctest.Wait()
		if c := f.check("c"); c.Status != "critical" || c.Output[:54] != "TTL expired (last output before timeout follows): 0123" {
			t.Errorf("%+v", c)
		}
	})
}

func TestTTLOverRestart(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		s, _ := open(t, dir, nil)
		stop := run(t, s)
		register(t, s, `{"Name":"a","Check":{"CheckID":"c","TTL":"30s"}}`)
		register(t, s, `{"Name":"b","Check":{"CheckID":"d","TTL":"5s"}}`)
		for _, id := range []string{"c", "d"} {
			if err := s.UpdateTTL(id, "passing", "fine"); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		stop()
		time.Sleep(10 * time.Second)
		s, _ = open(t, dir, nil)
		if c := s.Host().Checks["c"]; c.Status != "passing" || c.Output != "fine" {
			t.Errorf("c did not survive: %+v", c)
		}
		if c := s.Host().Checks["d"]; c.Status != "critical" {
			t.Errorf("d expired while the agent was away: %+v", c)
		}
		stop = run(t, s)
		defer stop()
		time.Sleep(19 * time.Second)
		synctest.Wait()
		if s.Host().Checks["c"].Status != "passing" {
			t.Error("expired early")
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if s.Host().Checks["c"].Status != "critical" {
			t.Error("the time of a TTL check began anew with the agent")
		}
	})
}

func TestReap(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		s, f := open(t, dir, nil)
		stop := run(t, s)
		defer stop()
		register(t, s, `{"Name":"a","Port":1,"Check":{"CheckID":"c","TTL":"24h","DeregisterCriticalServiceAfter":"90s"},"Connect":{"SidecarService":{}}}`)
		register(t, s, `{"Name":"b","Check":{"CheckID":"d","TTL":"24h","Status":"passing","DeregisterCriticalServiceAfter":"1s"}}`)
		time.Sleep(80 * time.Second)
		if err := s.UpdateTTL("d", "critical", ""); err != nil {
			t.Fatal(err)
		}
		time.Sleep(59 * time.Second) // a has been critical for 139 s, b for 59 s
		synctest.Wait()
		if got := ids(s.Host().Services); got != "b" {
			t.Errorf("after a's time: %s", got)
		}
		time.Sleep(31 * time.Second)
		synctest.Wait()
		if state, _ := f.last(); len(state.Services)+len(state.Checks) != 0 {
			t.Errorf("after b's time: %+v", state)
		}
	})
	s, _ := open(t, dir, nil)
	if len(s.Host().Services) != 0 {
		t.Errorf("reaped services came back: %s", ids(s.Host().Services))
	}
}

// TestModel registers and deregisters at random and holds the servers' idea of this
// host, and that of a restarted agent, against what was asked for.
func TestModel(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		s, f := open(t, "", nil)
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan struct{})
		go func() { defer close(done); _ = s.Run(ctx) }()
		defer func() { cancel(); <-done }()

		type svc struct{ sidecar, check bool }
		want := map[string]svc{}
		name := rapid.SampledFrom([]string{"a", "b", "c", "d"})
		steps := rapid.IntRange(1, 15).Draw(rt, "steps")
		for range steps {
			n := name.Draw(rt, "name")
			switch rapid.IntRange(0, 3).Draw(rt, "step") {
			case 0:
				err := s.Deregister(ctx, n)
				if _, known := want[n]; known != (err == nil) || (!known && !errors.Is(err, catalog.ErrNotFound)) {
					rt.Fatalf("deregister %s: %v", n, err)
				}
				delete(want, n)
			case 1:
				if err := s.UpdateTTL("service:"+n, "passing", ""); (err == nil) != want[n].check {
					rt.Fatalf("update %s: %v", n, err)
				}
			default:
				x := svc{rapid.Bool().Draw(rt, "sidecar"), rapid.Bool().Draw(rt, "check")}
				js := `{"Name":"` + n + `","Port":80`
				if x.check {
					js += `,"Check":{"TTL":"1h"}`
				}
				if x.sidecar {
					js += `,"Connect":{"SidecarService":{}}`
				}
				if _, err := tryRegister(s, js+"}", RegisterOptions{ReplaceExistingChecks: true}); err != nil {
					rt.Fatal(err)
				}
				want[n] = x
			}
		}
		if err := s.WaitSynced(ctx); err != nil {
			rt.Fatal(err)
		}
		state, _ := f.last()
		services, checks, ports := map[string]bool{}, 0, map[int]bool{}
		for n, x := range want {
			services[n] = true
			if x.check {
				checks++
			}
			if x.sidecar {
				services[n+sidecarSuffix] = true
				checks += 2
			}
		}
		if len(state.Services) != len(services) || len(state.Checks) != checks {
			rt.Fatalf("they know %s, wanted %v", asJSON(rt, state), want)
		}
		for _, e := range state.Services {
			if !services[e.ID] {
				rt.Fatalf("they know %s", e.ID)
			}
			if e.Kind == catalog.KindConnectProxy {
				if ports[e.Port] {
					rt.Fatalf("port %d is given twice", e.Port)
				}
				ports[e.Port] = true
			}
		}
		if a, b := asJSON(rt, s.Host().Services), len(state.Services); len(s.Host().Services) != b {
			rt.Fatalf("host %s", a)
		}
	})
}

// oddTexts are what names, IDs and the like may be, and may not.
var oddTexts = []string{
	"", "a", "b", "a b", "A", "ü", "*", "consul", "serfHealth", "_node_maintenance", "a\x00b", "a\nb", "\xff",
	strings.Repeat("x", 470), strings.Repeat("x", 480), strings.Repeat("x", 491), strings.Repeat("x", 492), strings.Repeat("x", 512), strings.Repeat("x", 513),
}

func drawOdd(t *rapid.T) *catalog.ServiceRegistration {
	text := rapid.SampledFrom(oddTexts)
	reg := &catalog.ServiceRegistration{
		Name: text.Draw(t, "name"), ID: text.Draw(t, "ID"), Port: 80,
		Kind: rapid.SampledFrom([]catalog.ServiceKind{"", "", "", catalog.KindConnectProxy, catalog.KindMeshGateway, "odd"}).Draw(t, "kind"),
	}
	if rapid.Bool().Draw(t, "tag") {
		reg.Tags = []string{text.Draw(t, "the tag")}
	}
	if reg.Kind == catalog.KindConnectProxy {
		reg.Proxy = &catalog.ConnectProxy{DestinationServiceName: text.Draw(t, "destination"), DestinationServiceID: text.Draw(t, "destination's ID")}
	}
	if rapid.IntRange(0, 3).Draw(t, "sidecar") == 0 {
		reg.Connect = &catalog.ServiceConnect{SidecarService: &catalog.ServiceRegistration{Name: text.Draw(t, "sidecar's name")}}
	}
	for range rapid.IntRange(0, 2).Draw(t, "checks") {
		reg.Checks = append(reg.Checks, drawOddCheck(t))
	}
	return reg
}

func drawOddCheck(t *rapid.T) *catalog.CheckDefinition {
	text := rapid.SampledFrom(oddTexts)
	return &catalog.CheckDefinition{
		Name: text.Draw(t, "check's name"), CheckID: text.Draw(t, "check ID"), ServiceID: text.Draw(t, "check's service"), TTL: time.Hour,
		Status: rapid.SampledFrom([]string{"", "passing", "critical", "odd"}).Draw(t, "status"),
	}
}

// TestWhatIsAcceptedCanBeStated: a registration that an agent accepts and the servers
// refuse keeps all that the host says out of the catalog, and so do two of them that
// cannot stand together.
func TestWhatIsAcceptedCanBeStated(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		dir := ""
		if rapid.IntRange(0, 9).Draw(rt, "on disk") == 0 {
			dir = t.TempDir()
		}
		s, _ := open(t, dir, nil)
		text := rapid.SampledFrom(oddTexts)
		for range rapid.IntRange(1, 8).Draw(rt, "steps") {
			switch rapid.IntRange(0, 6).Draw(rt, "step") {
			case 0:
				_, _ = s.RegisterCheck(t.Context(), drawOddCheck(rt))
			case 1:
				for id := range s.Host().Services {
					if err := s.ServiceMaintenance(id, true, text.Draw(rt, "reason")); err != nil {
						rt.Fatalf("maintenance of %q: %v", id, err)
					}
				}
			case 2:
				_ = s.Deregister(t.Context(), text.Draw(rt, "gone"))
			case 3:
				_, _ = s.ApplyFiles(t.Context(), []*catalog.ServiceRegistration{drawOdd(rt)}, []*catalog.CheckDefinition{drawOddCheck(rt)})
			default:
				_, _ = s.Register(t.Context(), drawOdd(rt), RegisterOptions{})
			}
		}
		stated(rt, s)
		if dir != "" {
			again, _ := open(t, dir, nil)
			stated(rt, again)
		}
	})
}

// stated says all of a host to an empty catalog.
func stated(t *rapid.T, s *State) {
	servers, err := store.New(store.Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer servers.Close()
	s.mu.Lock()
	state, _ := s.statement()
	s.mu.Unlock()
	cmd := &catalog.SyncNode{State: state}
	if err := cmd.Validate(); err != nil {
		t.Fatalf("the servers refuse %s: %v", asJSON(t, state), err)
	}
	if _, err := servers.Apply(2, cmd); err != nil {
		t.Fatalf("the servers do not take %s: %v", asJSON(t, state), err)
	}
}
