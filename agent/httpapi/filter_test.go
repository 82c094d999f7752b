package httpapi

import (
	"strings"
	"testing"
	"time"

	"github.com/weftmesh/weft/catalog"
)

type filterItem struct {
	Name     string
	Port     int
	On       bool
	Tags     []string
	Meta     map[string]string
	Checks   []filterCheck
	Deep     *filterDeep
	Weights  catalog.Weights
	Secret   string `bexpr:"-"`
	unseen   string
	Children []*filterItem
}

type filterCheck struct {
	Status string
	Tags   []string
	Inner  []struct{ N int }
}

type filterDeep struct {
	Name string
	More *filterDeep
}

func TestFilter(t *testing.T) {
	full := filterItem{
		Name: "web", Port: 80, On: true, Tags: []string{"a", `q"uote`}, Meta: map[string]string{"k": "v", "odd-key": "1"},
		Checks:  []filterCheck{{Status: "passing", Tags: []string{"x"}}, {Status: "critical", Inner: []struct{ N int }{{1}, {2}}}},
		Deep:    &filterDeep{Name: "d", More: &filterDeep{Name: "m"}},
		Weights: catalog.Weights{Passing: 3}, Children: []*filterItem{{Name: "kid"}},
	}
	bare := filterItem{Name: "db"}
	for expr, want := range map[string][2]bool{
		``:                                         {true, true},
		`Name == web`:                              {true, false},
		`Name != web`:                              {false, true},
		`Port == 80 and On == true`:                {true, false},
		`not (Port == 80 or Name == db)`:           {false, false},
		`"a" in Tags`:                              {true, false},
		`a not in Tags`:                            {false, true},
		`Tags contains a`:                          {true, false},
		`Tags is empty`:                            {false, true},
		`Meta.k == v`:                              {true, false},
		`Meta.k != v`:                              {false, true},
		`Meta["odd-key"] == 1`:                     {true, false},
		`k in Meta`:                                {true, false},
		`Name matches "^w.b$"`:                     {true, false},
		`Checks.Status == critical`:                {true, false},
		`Checks.Status != critical`:                {true, false}, // any element that is not
		`not Checks.Status == critical`:            {false, true},
		`Checks.Tags contains x`:                   {true, false},
		`x in Checks.Tags and Name == web`:         {true, false},
		`Checks.Inner.N == 2`:                      {true, false},
		`Deep.Name == d`:                           {true, false},
		`Deep.Name != d`:                           {false, true},
		`Deep.More.Name == m`:                      {true, false},
		`Deep.More.Name is empty`:                  {false, true},
		`Deep is nil`:                              {false, true},
		`Weights.Passing == 3`:                     {true, false},
		`Children.Name == kid`:                     {true, false},
		`any Checks as c { c.Status == critical }`: {true, false},
		`any Checks as i, c { c.Status == critical and i != 0 }`:     {true, false},
		`all Tags as _, x { x != a }`:                                {false, true},
		`any Meta as k { k == "odd-key" }`:                           {true, false},
		`(any Checks as c { c.Inner.N == 1 }) or Deep.Name == other`: {true, false},
		"`q\"uote` in Tags and Checks.Status == passing":             {true, false},
	} {
		f, err := newFilter[filterItem](expr)
		if err != nil {
			t.Errorf("%s: %v", expr, err)
			continue
		}
		for i, item := range []filterItem{full, bare} {
			if got, err := f.match(item); err != nil || got != want[i] {
				t.Errorf("%s on %s: %v %v, want %v", expr, item.Name, got, err, want[i])
			}
		}
	}
	for expr, want := range map[string]string{
		`(`:                               "1:2 (1): no match found",
		`)(`:                              "1:1 (0): no match found",
		`Nope == 1`:                       `Selector "Nope" is not valid`,
		`Secret == 1`:                     `Selector "Secret" is not valid`,
		`unseen == 1`:                     `Selector "unseen" is not valid`,
		`Name.More == 1`:                  `Selector "Name.More" is not valid`,
		`Checks.Nope == 1`:                `Selector "Checks.Nope" is not valid`,
		`Name == web and No == 1`:         `Selector "No" is not valid`,
		`any Checks as c { c.Nope == 1 }`: "is not valid",
		strings.Repeat("x", maxFilter+1):  "at most",
	} {
		if _, err := newFilter[filterItem](expr); err == nil || !strings.HasPrefix(err.Error(), "Failed to create boolean expression evaluator: ") || !strings.Contains(err.Error(), want) {
			t.Errorf("%.40s: %v, want %s", expr, err, want)
		}
	}
	if f, err := newFilter[filterItem](`Port == abc`); err != nil {
		t.Error(err)
	} else if _, err := f.match(full); err == nil {
		t.Error("a port was compared with a word")
	}
	_ = full.unseen
}

// The parser backtracks; what would take it exponential time must be refused soon.
func TestFilterIsBounded(t *testing.T) {
	for _, expr := range []string{
		strings.Repeat("(", 4000), strings.Repeat("(", 30) + "Name == web" + strings.Repeat(")", 30),
		strings.Repeat("not ", 1500) + "Name == web", strings.Repeat("Name == web and ", 400) + "Name == web",
		strings.Repeat("any Checks as c { ", 200) + "Name == web" + strings.Repeat(" }", 200),
	} {
		start := time.Now()
		if f, err := newFilter[filterItem](expr); err == nil {
			_, _ = f.match(filterItem{Name: "web"})
		}
		if d := time.Since(start); d > 5*time.Second {
			t.Errorf("%.20s… took %v", expr, d)
		}
	}
}
