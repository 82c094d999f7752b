package catalog

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func TestTemplatesFill(t *testing.T) {
	q := &PreparedQuery{
		Name: "geo-", Template: QueryTemplate{Type: TemplatePrefix, Regexp: `^geo-(.*?)-(.*)$`, RemoveEmptyTags: true},
		Service: ServiceQuery{
			Service: "${match(1)}", Tags: []string{"${match(2)}", "x-${ match(2) }", "${match(9)}"},
			Near: "$${name.full}", NodeMeta: map[string]string{"k": "${name.prefix}|${name.suffix}|${agent.segment}"},
			Failover: QueryFailover{Datacenters: []string{"${name.full}"}},
		},
	}
	if err := q.Validate(); err != nil {
		t.Fatal(err)
	}
	got, err := q.Render("geo-web-v1", "s")
	if err != nil {
		t.Fatal(err)
	}
	s := got.Service
	if s.Service != "web" || !slices.Equal(s.Tags, []string{"v1", "x-v1"}) || s.Near != "${name.full}" ||
		s.NodeMeta["k"] != "geo-|web-v1|s" || s.Failover.Datacenters[0] != "geo-web-v1" {
		t.Errorf("%+v", s)
	}
	if q.Service.Service != "${match(1)}" || q.Service.NodeMeta["k"] == s.NodeMeta["k"] {
		t.Error("Render changed the query")
	}
	if got, err := q.Render("geo-x", ""); err != nil || got.Service.Service != "" {
		t.Errorf("a name that does not match: %+v, %v", got, err)
	}
}

func TestTemplatesAreBounded(t *testing.T) {
	q := &PreparedQuery{Name: "p", Template: QueryTemplate{Type: TemplatePrefix}}
	q.Service.Service = strings.Repeat("${name.full}", 64)
	if err := q.Validate(); err != nil {
		t.Fatal(err)
	}
	if _, err := q.Render("p"+strings.Repeat("x", maxName-1), ""); !errors.Is(err, ErrInvalid) {
		t.Error(err)
	}
	if _, err := q.Render(strings.Repeat("x", maxName+1), ""); !errors.Is(err, ErrInvalid) {
		t.Error(err)
	}
	rapid.Check(t, func(t *rapid.T) {
		text := rapid.StringMatching(`[a-z${}()0-9. ]{0,40}`).Draw(t, "text")
		v := templateVars{full: "f", matches: []string{"a", "b"}}
		if out, err := v.fill(text); err == nil && len(out) > maxQueryText {
			t.Fatal(out)
		}
	})
}

func TestPreparedQueriesThatAreRefused(t *testing.T) {
	base := func() *PreparedQuery { return &PreparedQuery{Name: "q", Service: ServiceQuery{Service: "web"}} }
	if err := base().Validate(); err != nil {
		t.Fatal(err)
	}
	for text, change := range map[string]func(*PreparedQuery){
		"Must be bound to a session": func(q *PreparedQuery) { q.Name = "" },
		"Must provide a Service":     func(q *PreparedQuery) { q.Service.Service = "" },
		"redacted token":             func(q *PreparedQuery) { q.Token = "<hidden>" },
		"must be >=0":                func(q *PreparedQuery) { q.DNS.TTL = "-1s" },
		"Bad DNS TTL":                func(q *PreparedQuery) { q.DNS.TTL = "soon" },
		"Bad NearestN":               func(q *PreparedQuery) { q.Service.Failover.NearestN = -1 },
		"Targets cannot be": func(q *PreparedQuery) {
			q.Service.Failover = QueryFailover{NearestN: 1, Targets: []FailoverTarget{{Peer: "p"}}}
		},
		"Targets[0]":         func(q *PreparedQuery) { q.Service.Failover.Targets = []FailoverTarget{{}} },
		"Bad Template.Type":  func(q *PreparedQuery) { q.Template.Type = "x" },
		"without Template":   func(q *PreparedQuery) { q.Template.Regexp = "x" },
		"Bad Regexp":         func(q *PreparedQuery) { q.Template = QueryTemplate{Type: TemplatePrefix, Regexp: "("} },
		"no closing }":       func(q *PreparedQuery) { q.Template.Type = TemplatePrefix; q.Service.Service = "${name.full" },
		"is none of name":    func(q *PreparedQuery) { q.Template.Type = TemplatePrefix; q.Service.Tags = []string{"${exec(1)}"} },
		"at most 128":        func(q *PreparedQuery) { q.Service.Tags = make([]string, 129) },
		"Enterprise":         func(q *PreparedQuery) { q.Service.SamenessGroup = "g" },
		"control characters": func(q *PreparedQuery) { q.Name = "a\x00" },
		"a text has 5000":    func(q *PreparedQuery) { q.Service.Near = strings.Repeat("x", 5000) },
	} {
		q := base()
		change(q)
		if err := q.Validate(); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), text) {
			t.Errorf("%s: %v", text, err)
		}
	}
}

func TestQueriesChoose(t *testing.T) {
	instance := func(id, status string, tags ...string) *Instance {
		return &Instance{
			Node:    &Node{Node: "n-" + id, Meta: map[string]string{"rack": id}},
			Service: &Service{ID: id, Service: "web", Tags: tags, Meta: map[string]string{"v": "1"}},
			Checks:  []*Check{{CheckID: "c", Status: status}},
		}
	}
	in := []*Instance{instance("a", StatusPassing, "T1"), instance("b", StatusWarning, "t2"), instance("c", StatusCritical)}
	for name, c := range map[string]struct {
		q    ServiceQuery
		want string
	}{
		"not critical":     {ServiceQuery{}, "a b"},
		"only passing":     {ServiceQuery{OnlyPassing: true}, "a"},
		"check ignored":    {ServiceQuery{OnlyPassing: true, IgnoreCheckIDs: []string{"c"}}, "a b c"},
		"tag in any case":  {ServiceQuery{Tags: []string{"t1"}}, "a"},
		"tag forbidden":    {ServiceQuery{Tags: []string{"!t1"}}, "b"},
		"node metadata":    {ServiceQuery{NodeMeta: map[string]string{"rack": "b"}}, "b"},
		"service metadata": {ServiceQuery{ServiceMeta: map[string]string{"v": "2"}}, ""},
	} {
		var got []string
		for _, i := range c.q.Select(in) {
			got = append(got, i.Service.ID)
		}
		if strings.Join(got, " ") != c.want {
			t.Errorf("%s: %v, want %s", name, got, c.want)
		}
	}
}

func TestCoordinates(t *testing.T) {
	a, b := OriginCoordinate(), OriginCoordinate()
	b.Vec[0] = 0.1
	if d := a.DistanceTo(b); d < 100*time.Millisecond || d > 101*time.Millisecond {
		t.Error(d)
	}
	if d := a.DistanceTo(Coordinate{}); d < time.Hour {
		t.Error("coordinates that do not fit are near:", d)
	}
	for _, bad := range []Coordinate{{}, {Vec: make([]float64, 7)}} {
		if err := (&SetCoordinates{Updates: []*NodeCoordinate{{Node: "n", Coord: bad}}}).Validate(); !errors.Is(err, ErrInvalid) {
			t.Error(err)
		}
	}
}
