package catalog

import (
	"cmp"
	"fmt"
	"slices"
	"time"
)

// Action is what an intention, or the judge, says of a request.
type Action string

// Actions. ActionAudit lets the request pass and records what Deny would have done.
const (
	ActionAllow Action = "allow"
	ActionDeny  Action = "deny"
	ActionAudit Action = "audit"
)

// Allowed tells whether a request with this verdict passes.
func (a Action) Allowed() bool { return a == ActionAllow || a == ActionAudit }

// IntentionMode says what becomes of what an intention denies.
type IntentionMode string

// Modes. ModeEnforce, or none, refuses it. ModeAudit lets it pass, and records it:
// a rule that is tried out first breaks nobody.
const (
	ModeEnforce IntentionMode = "enforce"
	ModeAudit   IntentionMode = "audit"
)

func (m IntentionMode) validate(at string) error {
	switch m {
	case "", ModeEnforce, ModeAudit:
		return nil
	}
	return Invalidf("%s must be 'enforce' or 'audit', not %q", at, string(m))
}

// Intention says whether Source may reach Destination. It is one source of a
// service-intentions entry, seen from the side of who talks to whom.
type Intention struct {
	// ID and LegacyMeta are set only for intentions made by the deprecated ID endpoints.
	ID          string
	Description string
	SourcePeer  string
	// SourceName and DestinationName are services, or patterns: see Covers.
	SourceName      Name
	SourceType      string // always "consul"
	DestinationName Name
	// Action is empty when Permissions decide.
	Action      Action
	Permissions []*IntentionPermission
	JWT         *IntentionJWT
	Mode        IntentionMode
	Meta        map[string]string
	Precedence  int
	// CreatedAt and UpdatedAt are those of legacy intentions, else nil.
	CreatedAt *time.Time
	UpdatedAt *time.Time
	RaftIndex
}

// Ref names the intention that decided. The zero Ref is the default action.
type Ref struct {
	Source      Name
	Destination Name
	SourcePeer  string
	Precedence  int
	// Permission is the 1-based place of the L7 permission that decided, 0 for none.
	Permission int
}

// IsDefault tells whether no intention matched.
func (r Ref) IsDefault() bool { return r == Ref{} }

func (r Ref) String() string {
	if r.IsDefault() {
		return "default"
	}
	src := r.Source
	if r.SourcePeer != "" {
		src += "@" + r.SourcePeer
	}
	s := fmt.Sprintf("%s → %s (precedence %d)", src, r.Destination, r.Precedence)
	if r.Permission > 0 {
		s += fmt.Sprintf(" permission %d", r.Permission)
	}
	return s
}

// Request is what the judge is asked about: a verified source, a destination and,
// where the proxy speaks L7, the parsed request.
type Request struct {
	Source      Name
	SourcePeer  string
	Destination Name
}

// Decision is the verdict of the judge and why.
type Decision struct {
	Action Action
	Rule   Ref // which intention and permission decided; zero = the default
}

// Reason says in words which rule decided.
func (d Decision) Reason() string {
	if d.Rule.IsDefault() {
		return fmt.Sprintf("default: %s, no intention matches", d.Action)
	}
	return fmt.Sprintf("%s by intention %s", d.Action, d.Rule)
}

// Intentions are the rules for one destination or source (or all of them), most
// specific first, as Sort leaves them.
type Intentions []*Intention

// Decide is the one judge. It returns the verdict of the most specific intention
// that matches r, or fallback when none does; any fallback but allow is deny.
//
// An intention with L7 permissions, or one that asks for a JWT, never allows a
// request that carries no HTTP: what cannot be shown to match is denied. What an
// intention in audit mode would deny is ActionAudit.
func (in Intentions) Decide(r Request, fallback Action) Decision {
	var best *Intention
	for _, i := range in {
		if !i.matches(r) {
			continue
		}
		if best == nil || moreSpecific(i, best) < 0 {
			best = i
		}
	}
	if best == nil {
		if fallback != ActionAllow {
			fallback = ActionDeny
		}
		return Decision{Action: fallback}
	}
	d := Decision{Action: ActionDeny, Rule: Ref{
		Source: best.SourceName, Destination: best.DestinationName,
		SourcePeer: best.SourcePeer, Precedence: best.precedence(),
	}}
	if best.Action.Allowed() && len(best.Permissions) == 0 && best.JWT == nil {
		d.Action = best.Action
	}
	if d.Action == ActionDeny && best.Mode == ModeAudit {
		d.Action = ActionAudit
	}
	return d
}

func (i *Intention) matches(r Request) bool {
	if i.SourcePeer != r.SourcePeer {
		return false
	}
	return Covers(i.SourceName, r.Source) && Covers(i.DestinationName, r.Destination)
}

// Precedence is the rank of an intention by how exact its two names are, first the
// destination. The numbers are Consul's; 7, which it leaves to namespaces, is that of
// destinations like "job-*". Among intentions of one number the one with the more exact
// destination, then with the more exact source, comes first.
func Precedence(source, destination Name) int {
	switch {
	case !IsPattern(destination) && !IsPattern(source):
		return 9
	case !IsPattern(destination):
		return 8
	case IsPartial(destination):
		return 7
	case !IsPattern(source):
		return 6
	default:
		return 5
	}
}

func (i *Intention) precedence() int { return Precedence(i.SourceName, i.DestinationName) }

func moreSpecific(a, b *Intention) int {
	return cmp.Or(
		cmp.Compare(b.precedence(), a.precedence()),
		cmp.Compare(exactness(b.DestinationName), exactness(a.DestinationName)),
		cmp.Compare(exactness(b.SourceName), exactness(a.SourceName)),
		cmp.Compare(a.SourcePeer, b.SourcePeer),
		cmp.Compare(a.SourceName, b.SourceName),
		cmp.Compare(a.DestinationName, b.DestinationName),
	)
}

// Sort orders intentions most specific first, then by name, so that equal sets
// are listed equally.
func (in Intentions) Sort() { slices.SortStableFunc(in, moreSpecific) }
