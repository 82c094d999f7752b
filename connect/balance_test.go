package connect

import (
	"errors"
	"testing"
	"time"

	"github.com/weftmesh/weft/catalog"
)

func TestBalancer(t *testing.T) {
	now := time.Unix(1e9, 0)
	fresh := func() *balancer { return &balancer{now: func() time.Time { return now }} }
	of := func(es ...Endpoint) *upstream {
		return &upstream{Upstream: Upstream{Name: "db", Instances: es}, key: "db"}
	}
	pick := func(b *balancer, up *upstream) *candidate { return b.pick(up, make([]bool, len(up.Instances))) }
	passing, warning := catalog.StatusPassing, catalog.StatusWarning

	t.Run("load is even", func(t *testing.T) {
		b, up := fresh(), of(Endpoint{Addr: "a"}, Endpoint{Addr: "b"}, Endpoint{Addr: "c"})
		counts := map[string]int{}
		for range 3000 {
			counts[pick(b, up).Addr]++
		}
		for a, n := range counts {
			if n < 950 || n > 1050 {
				t.Errorf("%s has %d of 3000 open connections", a, n)
			}
		}
	})
	t.Run("weights count", func(t *testing.T) {
		b, up := fresh(), of(Endpoint{Addr: "a", Weight: 3}, Endpoint{Addr: "b", Weight: 1})
		held, short := map[string]int{}, map[string]int{}
		for range 4000 {
			held[pick(b, up).Addr]++
		}
		b = fresh()
		for range 4000 {
			c := pick(b, up)
			short[c.Addr]++
			b.done(c.state)
		}
		for name, n := range map[string]int{"held": held["a"], "short": short["a"]} {
			if n < 2800 || n > 3200 {
				t.Errorf("%s: the heavy one got %d of 4000, want about 3000", name, n)
			}
		}
	})
	t.Run("passing before warning before skipped", func(t *testing.T) {
		b, up := fresh(), of(Endpoint{Addr: "w", Status: warning}, Endpoint{Addr: "p", Status: passing}, Endpoint{Addr: "q", Status: passing})
		bad := b.state(up, &up.Instances[1])
		bad.active++
		b.failed(bad, now, false, errors.New("refused"))
		var order []string
		tried := make([]bool, 3)
		for range 3 {
			order = append(order, b.pick(up, tried).Addr)
		}
		if b.pick(up, tried) != nil {
			t.Error("a fourth of three")
		}
		if order[0] != "q" || order[1] != "w" || order[2] != "p" {
			t.Errorf("order %v, want q, w, p", order)
		}
	})
	t.Run("low numbers of priority first", func(t *testing.T) {
		b, up := fresh(), of(Endpoint{Addr: "c", Priority: 7}, Endpoint{Addr: "b", Priority: 1, Status: warning}, Endpoint{Addr: "a", Status: warning},
			Endpoint{Addr: "x", Priority: -3}, Endpoint{Addr: "skipped"}, Endpoint{Addr: "z", Priority: 1 << 40})
		bad := b.state(up, &up.Instances[4])
		bad.active++
		b.failed(bad, now, false, errors.New("refused"))
		order := ""
		tried := make([]bool, len(up.Instances))
		for range up.Instances {
			order += b.pick(up, tried).Addr + " "
		}
		if order != "x a b c z skipped " {
			t.Errorf("order %s", order)
		}
	})
	t.Run("skipped for a while, then tried once", func(t *testing.T) {
		b, up := fresh(), of(Endpoint{Addr: "a"}, Endpoint{Addr: "b"})
		a := b.state(up, &up.Instances[0])
		a.active++
		b.failed(a, now, false, errors.New("refused"))
		for range 50 {
			if c := pick(b, up); c.Addr == "a" {
				t.Fatal("picked while it was skipped")
			}
		}
		now = now.Add(skipMin)
		if c := pick(b, up); c.Addr != "a" {
			t.Fatal("an idle instance was not tried again")
		}
		if c := pick(b, up); c.Addr == "a" {
			t.Error("a second connection before the first told anything")
		}
		b.reached(a)
		if c := pick(b, up); c.Addr != "a" {
			t.Error("not picked after it worked")
		}
	})
	t.Run("never all skipped", func(t *testing.T) {
		b, up := fresh(), of(Endpoint{Addr: "a"}, Endpoint{Addr: "b"})
		for i := range up.Instances {
			s := b.state(up, &up.Instances[i])
			for range 40 {
				s.active++
				b.failed(s, now, false, errors.New("refused"))
			}
			if s.until.Sub(now) > skipMax || s.active != 0 {
				t.Errorf("skipped for %s, %d active", s.until.Sub(now), s.active)
			}
		}
		if pick(b, up) == nil {
			t.Error("nothing was picked though instances are there")
		}
	})
	t.Run("what is gone is forgotten", func(t *testing.T) {
		b, up := fresh(), of(Endpoint{Addr: "a"}, Endpoint{Addr: "b"})
		pick(b, up)
		pick(b, up)
		b.done(b.state(up, &up.Instances[0]))
		b.keep(newWorld(nil, nil))
		if len(b.all) != 1 {
			t.Errorf("%d endpoints remembered, want the one with a connection", len(b.all))
		}
	})
}
