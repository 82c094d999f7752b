package gossip

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/memberlist"
	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/weftmesh/weft/catalog"
)

func TestMain(m *testing.M) {
	// A probe that is under way when memberlist shuts down runs to its own timeout.
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("github.com/hashicorp/memberlist.(*Memberlist).probeNode"))
}

func start(t *testing.T, name string, edit func(*Config)) (g *Gossip, stop func()) {
	t.Helper()
	cfg := Config{
		NodeName: name,
		NodeID:   "id-of-" + name,
		BindAddr: "127.0.0.1",
		Tags:     map[string]string{"role": "consul", "dc": "dc1"},
		Label:    "dc1",
	}
	if edit != nil {
		edit(&cfg)
	}
	g, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- g.Run(ctx) }()
	stop = func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run of %s: %v", name, err)
		}
	}
	return g, stop
}

// eventually polls, since memberlist offers no barrier.
func eventually(t *testing.T, within time.Duration, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(within)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("not within %s: %s", within, what)
		}
		<-tick.C
	}
}

func statusOf(g *Gossip, name string) catalog.MemberStatus {
	for _, m := range g.Members() {
		if m.Name == name {
			return m.Status
		}
	}
	return catalog.MemberNone
}

func TestThreeMembers(t *testing.T) {
	key := bytes.Repeat([]byte{7}, 32)
	secret := func(c *Config) { c.SecretKeys = [][]byte{key} }
	a, stopA := start(t, "a", secret)
	defer stopA()
	b, stopB := start(t, "b", secret)
	defer stopB()
	c, stopC := start(t, "c", secret)
	ctx := context.Background()

	for _, g := range []*Gossip{b, c} {
		if n, err := g.Join(ctx, []string{a.Addr()}); err != nil || n != 1 {
			t.Fatalf("join: %d, %v", n, err)
		}
	}
	for _, g := range []*Gossip{a, b, c} {
		eventually(t, 10*time.Second, "three are alive", func() bool { return len(g.table.alive()) == 3 })
	}
	m := b.Members()
	if m[0].Name != "b" || m[1].Name != "a" || m[2].Name != "c" {
		t.Fatalf("self first, then by name: %v", m)
	}
	if m[1].ID != "id-of-a" || m[1].Tags["role"] != "consul" || m[1].Port == 0 || m[1].Addr != "127.0.0.1" {
		t.Fatalf("member lost its tags or address: %+v", m[1])
	}

	if err := b.SetTags(map[string]string{"role": "node"}); err != nil {
		t.Fatal(err)
	}
	eventually(t, 10*time.Second, "a sees b's new tags", func() bool {
		m, _ := a.table.get("b")
		return m.Tags["role"] == "node"
	})

	if err := c.Leave(ctx); err != nil {
		t.Fatal(err)
	}
	stopC()
	for _, g := range []*Gossip{a, b} {
		eventually(t, 10*time.Second, "c has left", func() bool { return statusOf(g, "c") == catalog.MemberLeft })
	}
	select {
	case <-a.Changed():
	default:
		t.Error("no word of the changes")
	}
}

func TestFailedMemberForceLeft(t *testing.T) {
	a, stopA := start(t, "a", nil)
	defer stopA()
	b, stopB := start(t, "b", nil)
	defer stopB()
	c, stopC := start(t, "c", nil)
	for _, g := range []*Gossip{b, c} {
		if _, err := g.Join(context.Background(), []string{a.Addr()}); err != nil {
			t.Fatal(err)
		}
	}
	for _, g := range []*Gossip{a, b, c} {
		eventually(t, 10*time.Second, "three are alive", func() bool { return len(g.table.alive()) == 3 })
	}
	if err := a.ForceLeave("b", false); !errors.Is(err, catalog.ErrConflict) {
		t.Errorf("forcing an alive member: %v", err)
	}
	if err := a.ForceLeave("nobody", false); !errors.Is(err, catalog.ErrNotFound) {
		t.Errorf("forcing an unknown member: %v", err)
	}
	stopC() // without goodbye
	for _, g := range []*Gossip{a, b} {
		eventually(t, 60*time.Second, "c has failed", func() bool { return statusOf(g, "c") == catalog.MemberFailed })
	}
	if err := a.ForceLeave("c", false); err != nil {
		t.Fatal(err)
	}
	for _, g := range []*Gossip{a, b} {
		eventually(t, 10*time.Second, "c counts as left", func() bool { return statusOf(g, "c") == catalog.MemberLeft })
	}
	a.table.reap(time.Now().Add(time.Hour))
	if statusOf(a, "c") != catalog.MemberNone || statusOf(a, "a") != catalog.MemberAlive {
		t.Errorf("after reaping: %v", a.Members())
	}
}

func TestStrangersStayOut(t *testing.T) {
	a, stopA := start(t, "a", func(c *Config) { c.SecretKeys = [][]byte{bytes.Repeat([]byte{1}, 32)} })
	defer stopA()
	for name, edit := range map[string]func(*Config){
		"no key":      nil,
		"other key":   func(c *Config) { c.SecretKeys = [][]byte{bytes.Repeat([]byte{2}, 32)} },
		"other label": func(c *Config) { c.SecretKeys = [][]byte{bytes.Repeat([]byte{1}, 32)}; c.Label = "dc2" },
	} {
		x, stopX := start(t, "x", edit)
		if n, err := x.Join(context.Background(), []string{a.Addr()}); err == nil || n != 0 {
			t.Errorf("%s: joined %d, %v", name, n, err)
		}
		stopX()
	}
	if len(a.Members()) != 1 {
		t.Errorf("a stranger came in: %v", a.Members())
	}
}

func TestAdmit(t *testing.T) {
	refused := errors.New("not one of ours")
	a, stopA := start(t, "a", func(c *Config) {
		c.Admit = func(m catalog.Member) error {
			if m.ID != "id-of-b" {
				return refused
			}
			return nil
		}
	})
	defer stopA()
	b, stopB := start(t, "b", nil)
	defer stopB()
	x, stopX := start(t, "x", nil)
	defer stopX()
	if _, err := b.Join(context.Background(), []string{a.Addr()}); err != nil {
		t.Fatal(err)
	}
	_, _ = x.Join(context.Background(), []string{a.Addr()}) // x may think that it joined
	eventually(t, 10*time.Second, "b is in", func() bool { return statusOf(a, "b") == catalog.MemberAlive })
	if statusOf(a, "x") != catalog.MemberNone {
		t.Error("x was admitted")
	}
}

func TestConfigRefused(t *testing.T) {
	good := func() Config { return Config{NodeName: "n", BindAddr: "127.0.0.1"} }
	for name, edit := range map[string]func(*Config){
		"no name":        func(c *Config) { c.NodeName = "" },
		"long name":      func(c *Config) { c.NodeName = strings.Repeat("x", 129) },
		"bind host name": func(c *Config) { c.BindAddr = "localhost" },
		"short key":      func(c *Config) { c.SecretKeys = [][]byte{{1, 2, 3}} },
		"too many tags":  func(c *Config) { c.Tags = map[string]string{"k": strings.Repeat("v", 600)} },
	} {
		c := good()
		edit(&c)
		if g, err := New(c); !errors.Is(err, catalog.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
			if g != nil {
				g.Close()
			}
		}
	}
}

func TestPortInUse(t *testing.T) {
	a, stop := start(t, "a", nil)
	defer stop()
	_, err := New(Config{NodeName: "b", BindAddr: "127.0.0.1", BindPort: int(a.list.LocalNode().Port)})
	if err == nil || !strings.Contains(err.Error(), a.Addr()) {
		t.Fatalf("the error does not name the address: %v", err)
	}
}

func TestTagsRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		tags := rapid.MapOf(rapid.String(), rapid.String()).Draw(t, "tags")
		b, err := encodeTags(tags)
		if err != nil {
			if len(b) != 0 || !errors.Is(err, catalog.ErrInvalid) {
				t.Fatalf("%d bytes and %v", len(b), err)
			}
			return
		}
		if len(b) > memberlist.MetaMaxSize {
			t.Fatalf("%d bytes", len(b))
		}
		got, err := decodeTags(b)
		if err != nil || len(got) != len(tags) {
			t.Fatalf("%v became %v, %v", tags, got, err)
		}
		for k, v := range tags {
			if got[k] != v {
				t.Fatalf("tag %q: %q became %q", k, v, got[k])
			}
		}
	})
}

func FuzzDecodeTags(f *testing.F) {
	f.Add([]byte{tagsVersion, 1, 'a', 1, 'b'})
	f.Add([]byte{tagsVersion, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1})
	f.Fuzz(func(t *testing.T, b []byte) {
		if tags, err := decodeTags(b); err == nil {
			if _, err := encodeTags(tags); err != nil && len(b) <= memberlist.MetaMaxSize {
				t.Fatalf("%v came from %d bytes and does not fit", tags, len(b))
			}
		}
	})
}

func TestIntentBeforeFailure(t *testing.T) {
	tb := newTable("a", slog.New(slog.DiscardHandler))
	n := &memberlist.Node{Name: "c"}
	tb.put(n, catalog.MemberAlive)
	if !tb.apply(intent{Name: "c", At: time.Now().UnixMilli()}) || tb.apply(intent{Name: "c", At: 1}) {
		t.Fatal("an intent about an alive member is kept once")
	}
	tb.put(n, catalog.MemberFailed)
	if m, _ := tb.get("c"); m.Status != catalog.MemberLeft {
		t.Fatalf("status %s", m.Status)
	}
	tb.put(n, catalog.MemberAlive)
	tb.put(n, catalog.MemberFailed)
	if m, _ := tb.get("c"); m.Status != catalog.MemberFailed {
		t.Fatalf("a used intent counted again: %s", m.Status)
	}
}

func TestLogAdapter(t *testing.T) {
	var buf bytes.Buffer
	a := &logAdapter{log: slog.New(slog.NewTextHandler(&buf, nil)), seen: map[string]time.Time{}}
	for range 3 {
		_, _ = a.Write([]byte("[WARN] memberlist: cannot reach x\n"))
		_, _ = a.Write([]byte("[DEBUG] memberlist: detail\n"))
	}
	out := buf.String()
	if strings.Count(out, "cannot reach x") != 1 || !strings.Contains(out, "level=WARN") || strings.Contains(out, "detail") {
		t.Fatalf("log:\n%s", out)
	}
}

// FuzzMessages gives what another member says, of every kind, to who hears it.
func FuzzMessages(f *testing.F) {
	for _, kind := range []byte{msgLeave, msgUser, msgKeys, msgKeysDone, 0, 255} {
		for _, text := range []string{"", "{}", `{"Name":"b","Time":18446744073709551615}`, `{"ID":"x","Op":"install","Key":"AA=="}`, `{"From":5}`, "[", "\xc1"} {
			f.Add(append([]byte{kind}, text...), int64(1))
		}
	}
	f.Add([]byte(`{"Vec":[1e308,-1e308],"Error":-1,"Adjustment":1e308,"Height":-1}`), int64(time.Millisecond))
	g, err := New(Config{NodeName: "a", BindAddr: "127.0.0.1", Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { _ = g.list.Shutdown() })
	d := &delegate{g}
	f.Fuzz(func(_ *testing.T, b []byte, rtt int64) {
		d.NotifyMsg(b)
		d.NotifyPingComplete(&memberlist.Node{Name: "b"}, time.Duration(rtt), b)
	})
}
