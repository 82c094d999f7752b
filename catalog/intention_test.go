package catalog

import (
	"cmp"
	"math/rand/v2"
	"os"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

func TestPrecedence(t *testing.T) {
	for _, c := range []struct {
		source, destination Name
		want                int
	}{
		{"web", "db", 9},
		{"*", "db", 8},
		{"web", "*", 6},
		{"*", "*", 5},
		{"we*", "db", 8},
		{"web", "d*", 7},
		{"we*", "d*", 7},
		{"*", "d*", 7},
		{"we*", "*", 5},
	} {
		if got := Precedence(c.source, c.destination); got != c.want {
			t.Errorf("%s → %s has precedence %d, want %d", c.source, c.destination, got, c.want)
		}
	}
}

// namesOf are all names that stand for n, the most exact first.
func namesOf(n Name) []Name {
	out := []Name{n}
	for i := len(n); i >= 0; i-- {
		out = append(out, n[:i]+"*")
	}
	return out
}

var pairsMade = map[[2]Name][][2]Name{} // of tests that run one after another

// pairsOf are all pairs of names that an intention for a request may have, in the order
// of their precedence: destination first.
func pairsOf(source, destination Name) (out [][2]Name) {
	if made, ok := pairsMade[[2]Name{source, destination}]; ok {
		return made
	}
	defer func() { pairsMade[[2]Name{source, destination}] = out }()
	for _, d := range namesOf(destination) {
		for _, s := range namesOf(source) {
			out = append(out, [2]Name{s, d})
		}
	}
	return out
}

// decideByForce is Decide without cleverness: for each pair of names that match, most
// exact first, it looks for an intention with just those names.
func decideByForce(in Intentions, r Request, fallback Action) (Action, Ref) {
	for _, pair := range pairsOf(r.Source, r.Destination) {
		for _, i := range in {
			if i.SourceName != pair[0] || i.DestinationName != pair[1] || i.SourcePeer != r.SourcePeer {
				continue
			}
			ref := Ref{Source: pair[0], Destination: pair[1], SourcePeer: r.SourcePeer, Precedence: Precedence(pair[0], pair[1])}
			if i.Permissions != nil || i.JWT != nil {
				return ActionDeny, ref
			}
			switch i.Action {
			case ActionAllow, ActionAudit:
				return i.Action, ref
			default:
				return ActionDeny, ref
			}
		}
	}
	if fallback == ActionAllow {
		return ActionAllow, Ref{}
	}
	return ActionDeny, Ref{}
}

var (
	decideNames   = []Name{"web", "db", "we", "we*", "w*", "web*", "d*", "*"}
	decidePeers   = []string{"", "", "east"}
	decideActions = []Action{ActionAllow, ActionDeny, ActionAudit, "", "nonsense"}
)

func drawIntentions(t *rapid.T) Intentions {
	var in Intentions
	seen := map[[3]string]bool{}
	for range rapid.IntRange(0, 12).Draw(t, "intentions") {
		i := &Intention{
			SourceName:      rapid.SampledFrom(decideNames).Draw(t, "source"),
			DestinationName: rapid.SampledFrom(decideNames).Draw(t, "destination"),
			SourcePeer:      rapid.SampledFrom(decidePeers).Draw(t, "peer"),
			Action:          rapid.SampledFrom(decideActions).Draw(t, "action"),
		}
		// Precedence as stored is for show: a wrong one must not decide.
		i.Precedence = rapid.IntRange(0, 20).Draw(t, "precedence")
		switch rapid.IntRange(0, 6).Draw(t, "L7") {
		case 0:
			i.Permissions = []*IntentionPermission{{Action: ActionAllow, HTTP: &IntentionHTTP{PathPrefix: "/"}}}
		case 1:
			i.JWT = &IntentionJWT{}
		}
		if k := [3]string{i.SourceName, i.DestinationName, i.SourcePeer}; !seen[k] {
			seen[k] = true
			in = append(in, i)
		}
	}
	return in
}

func TestDecideAgainstBruteForce(t *testing.T) { rapid.Check(t, checkDecide) }

// TestP17DecideAtLength judges a million pairs in two ways at full count, fewer otherwise.
func TestP17DecideAtLength(t *testing.T) {
	n := 50_000
	if os.Getenv("WEFT_PROMISE") == "full" {
		n = 1_000_000
	}
	r := rand.New(rand.NewPCG(1, 7)) //nolint:gosec // the same each time
	of := func(list []string) string { return list[r.IntN(len(list))] }
	names := []Name{"web", "db", "we", "web2", "*", "w*", "we*", "web*", "d*"}
	var in Intentions
	for i := range n {
		if i%8 == 0 {
			seen := map[[3]string]bool{}
			in = in[:0]
			for range r.IntN(20) {
				x := &Intention{SourceName: of(names), DestinationName: of(names), SourcePeer: of(decidePeers), Action: decideActions[r.IntN(len(decideActions))]}
				if k := [3]string{x.SourceName, x.DestinationName, x.SourcePeer}; !seen[k] {
					seen[k] = true
					in = append(in, x)
				}
			}
			if r.IntN(2) == 0 {
				in.Sort()
			}
		}
		req := Request{Source: of(names[:4]), Destination: of(names[:4]), SourcePeer: of(decidePeers)}
		fallback := decideActions[r.IntN(len(decideActions))]
		action, ref := decideByForce(in, req, fallback)
		if d := in.Decide(req, fallback); d.Action != action || d.Rule != ref {
			t.Fatalf("%d: %+v of %d intentions: %s, by force %s by %s", i, req, len(in), d.Reason(), action, ref)
		}
	}
}

func FuzzDecide(f *testing.F) { f.Fuzz(rapid.MakeFuzz(checkDecide)) }

func checkDecide(t *rapid.T) {
	in := drawIntentions(t)
	r := Request{
		Source:      rapid.SampledFrom([]Name{"web", "db", "we", "other"}).Draw(t, "source"),
		Destination: rapid.SampledFrom([]Name{"web", "db", "we", "other"}).Draw(t, "destination"),
		SourcePeer:  rapid.SampledFrom(decidePeers).Draw(t, "peer"),
	}
	fallback := rapid.SampledFrom(decideActions).Draw(t, "default")
	action, ref := decideByForce(in, r, fallback)
	for _, order := range []string{"as drawn", "sorted", "reversed"} {
		switch order {
		case "sorted":
			in.Sort()
		case "reversed":
			slices.Reverse(in)
		}
		d := in.Decide(r, fallback)
		if d.Action != action || d.Rule != ref {
			t.Fatalf("%+v, %s: %s, by force %s by %s", r, order, d.Reason(), action, ref)
		}
	}
	// What only some could see must not change the verdict: an agent judges by the
	// intentions of its destination, the API by all.
	some := slices.DeleteFunc(slices.Clone(in), func(i *Intention) bool {
		return !Covers(i.DestinationName, r.Destination)
	})
	if d := some.Decide(r, fallback); d.Action != action || d.Rule != ref {
		t.Fatalf("%+v: with the destination's intentions alone %s", r, d.Reason())
	}
}

func TestDecisionSaysWhy(t *testing.T) {
	in := Intentions{
		{SourceName: "web", DestinationName: "db", Action: ActionDeny},
		{SourceName: "api", SourcePeer: "east", DestinationName: "*", Action: ActionAllow},
	}
	for _, c := range []struct {
		r    Request
		want string
	}{
		{Request{Source: "web", Destination: "db"}, "deny by intention web → db (precedence 9)"},
		{Request{Source: "api", SourcePeer: "east", Destination: "db"}, "allow by intention api@east → * (precedence 6)"},
		{Request{Source: "x", Destination: "db"}, "default: deny, no intention matches"},
	} {
		if got := in.Decide(c.r, "").Reason(); got != c.want {
			t.Errorf("got %q, want %q", got, c.want)
		}
	}
	if got := (Ref{Source: "a", Destination: "b", Precedence: 9, Permission: 2}).String(); got != "a → b (precedence 9) permission 2" {
		t.Error(got)
	}
}

func TestSortIsTotal(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		in := drawIntentions(t)
		other := slices.Clone(in)
		slices.SortFunc(other, func(a, b *Intention) int { return cmp.Compare(a.Precedence, b.Precedence) })
		in.Sort()
		other.Sort()
		if !slices.Equal(in, other) {
			t.Fatal("two orders of one set are sorted differently")
		}
	})
}

func BenchmarkDecide(b *testing.B) {
	var in Intentions
	for _, src := range []Name{"a", "b", "c", "d", "e", "f", "g", "web", "*"} {
		in = append(in, &Intention{SourceName: src, DestinationName: "db", Action: ActionAllow})
	}
	b.ReportAllocs()
	for b.Loop() {
		if !in.Decide(Request{Source: "web", Destination: "db"}, ActionDeny).Action.Allowed() {
			b.Fatal("denied")
		}
	}
}
