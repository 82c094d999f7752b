package catalog

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// ServiceIntentions is the config entry that holds every intention of one
// destination, most specific source first.
type ServiceIntentions struct {
	Name    Name // the destination, or a pattern: see Covers
	Sources []*SourceIntention
	JWT     *IntentionJWT `json:",omitempty"`
	// Mode holds for the sources that have none of their own.
	Mode IntentionMode     `json:",omitempty"`
	Meta map[string]string `json:",omitempty"`
	RaftIndex
}

// SourceIntention is what one source may do: an Action, or L7 Permissions.
type SourceIntention struct {
	Name        Name
	Peer        string                 `json:",omitempty"`
	Action      Action                 `json:",omitempty"`
	Permissions []*IntentionPermission `json:",omitempty"`
	Precedence  int
	Type        string
	Description string        `json:",omitempty"`
	Mode        IntentionMode `json:",omitempty"`
	// Legacy fields belong to intentions made by the deprecated ID endpoints.
	LegacyID         string            `json:",omitempty"`
	LegacyMeta       map[string]string `json:",omitempty"`
	LegacyCreateTime *time.Time        `json:",omitempty"`
	LegacyUpdateTime *time.Time        `json:",omitempty"`
}

// IntentionPermission is one L7 rule; the first that matches a request decides.
type IntentionPermission struct {
	Action Action
	HTTP   *IntentionHTTP `json:",omitempty"`
	JWT    *IntentionJWT  `json:",omitempty"`
}

// IntentionHTTP says which requests a permission is about. At most one path
// field is set; all that is set must match.
type IntentionHTTP struct {
	PathExact  string                `json:",omitempty"`
	PathPrefix string                `json:",omitempty"`
	PathRegex  string                `json:",omitempty"`
	Header     []IntentionHTTPHeader `json:",omitempty"`
	Methods    []string              `json:",omitempty"`
}

// IntentionHTTPHeader matches a request header.
type IntentionHTTPHeader struct {
	Name       string
	Present    bool   `json:",omitempty"`
	Exact      string `json:",omitempty"`
	Prefix     string `json:",omitempty"`
	Suffix     string `json:",omitempty"`
	Contains   string `json:",omitempty"`
	Regex      string `json:",omitempty"`
	Invert     bool   `json:",omitempty"`
	IgnoreCase bool   `json:",omitempty"`
}

// IntentionJWT requires a token of an end user.
type IntentionJWT struct {
	Providers []*IntentionJWTProvider
}

// IntentionJWTProvider names a jwt-provider entry and the claims it must show.
type IntentionJWTProvider struct {
	Name         string
	VerifyClaims []*IntentionJWTClaim `json:",omitempty"`
}

// IntentionJWTClaim is a claim by its path and the value it must have.
type IntentionJWTClaim struct {
	Path  []string
	Value string
}

// EntryKind implements ConfigEntry.
func (*ServiceIntentions) EntryKind() string { return KindServiceIntentions }

// EntryName implements ConfigEntry.
func (e *ServiceIntentions) EntryName() string { return e.Name }

// Raft implements ConfigEntry.
func (e *ServiceIntentions) Raft() *RaftIndex { return &e.RaftIndex }

// Normalize implements ConfigEntry: types and precedences are set, sources are
// sorted most specific first, keeping the order of equals.
func (e *ServiceIntentions) Normalize() {
	for _, s := range e.Sources {
		if s == nil {
			continue
		}
		if s.Type == "" {
			s.Type = "consul"
		}
		s.Precedence = Precedence(s.Name, e.Name)
		for _, p := range s.Permissions {
			if p != nil && p.HTTP != nil {
				for i, m := range p.HTTP.Methods {
					p.HTTP.Methods[i] = strings.ToUpper(m)
				}
			}
		}
	}
	slices.SortStableFunc(e.Sources, func(a, b *SourceIntention) int {
		return cmp.Compare(b.rank(), a.rank())
	})
}

// rank orders sources; what Validate will refuse goes last.
func (s *SourceIntention) rank() int {
	if s == nil {
		return 0
	}
	return exactness(s.Name)
}

// Validate implements ConfigEntry. Errors name the field by its place.
func (e *ServiceIntentions) Validate() error {
	if e.Name == "" {
		return Invalidf("service-intentions: Name is required")
	}
	if err := validName("service-intentions: Name", e.Name); err != nil {
		return err
	}
	if err := validPattern("Name", e.Name); err != nil {
		return err
	}
	if len(e.Sources) == 0 {
		return Invalidf("At least one source is required")
	}
	if err := e.Mode.validate("Mode"); err != nil {
		return err
	}
	seen := make(map[[2]string]bool, len(e.Sources))
	for i, s := range e.Sources {
		at := fmt.Sprintf("Sources[%d]", i)
		if s == nil || s.Name == "" {
			return Invalidf("%s.Name is required", at)
		}
		if err := validName(at+".Name", s.Name); err != nil {
			return err
		}
		if err := validPattern(at+".Name", s.Name); err != nil {
			return err
		}
		if s.Type != "" && s.Type != "consul" {
			return Invalidf("%s.Type must be set to 'consul'", at)
		}
		if err := s.Mode.validate(at + ".Mode"); err != nil {
			return err
		}
		if err := s.validateVerdict(at, e.Name); err != nil {
			return err
		}
		key := [2]string{s.Peer, s.Name}
		if seen[key] {
			return Invalidf("%s defines %q more than once", at, s.Name)
		}
		seen[key] = true
	}
	return nil
}

func (s *SourceIntention) validateVerdict(at string, destination Name) error {
	if len(s.Permissions) == 0 {
		if s.Action != ActionAllow && s.Action != ActionDeny {
			return Invalidf("%s.Action must be set to 'allow' or 'deny'", at)
		}
		return nil
	}
	if s.Action != "" {
		return Invalidf("%s.Action must be omitted if Permissions are specified", at)
	}
	if IsPattern(destination) {
		return Invalidf("%s.Permissions cannot be specified on intentions with wildcarded destinations", at)
	}
	for j, p := range s.Permissions {
		where := fmt.Sprintf("%s.Permissions[%d]", at, j)
		if p == nil || (p.Action != ActionAllow && p.Action != ActionDeny) {
			return Invalidf("%s.Action must be set to 'allow' or 'deny'", where)
		}
		if p.HTTP == nil && p.JWT == nil {
			return Invalidf("%s.HTTP or JWT is required", where)
		}
		if err := p.HTTP.validate(where + ".HTTP"); err != nil {
			return err
		}
	}
	return nil
}

func (h *IntentionHTTP) validate(at string) error {
	if h == nil {
		return nil
	}
	paths := 0
	for _, p := range []string{h.PathExact, h.PathPrefix} {
		if p != "" {
			paths++
			if !strings.HasPrefix(p, "/") {
				return Invalidf("%s: path %q must begin with '/'", at, p)
			}
		}
	}
	if h.PathRegex != "" {
		paths++
	}
	if paths > 1 {
		return Invalidf("%s should only contain at most one of PathExact, PathPrefix, or PathRegex", at)
	}
	if err := validRegex(at+".PathRegex", h.PathRegex); err != nil {
		return err
	}
	for k, hdr := range h.Header {
		where := fmt.Sprintf("%s.Header[%d]", at, k)
		if hdr.Name == "" {
			return Invalidf("%s missing required Name field", where)
		}
		set := 0
		for _, on := range []bool{hdr.Present, hdr.Exact != "", hdr.Prefix != "", hdr.Suffix != "", hdr.Contains != "", hdr.Regex != ""} {
			if on {
				set++
			}
		}
		if set != 1 {
			return Invalidf("%s should contain one of Present, Exact, Prefix, Suffix, Contains, or Regex", where)
		}
		if err := validRegex(where+".Regex", hdr.Regex); err != nil {
			return err
		}
	}
	seen := map[string]bool{}
	for _, m := range h.Methods {
		if m == "" || strings.ContainsAny(m, " \t\r\n") {
			return Invalidf("%s.Methods contains an invalid method %q", at, m)
		}
		if seen[m] {
			return Invalidf("%s.Methods contains %q more than once", at, m)
		}
		seen[m] = true
	}
	return nil
}

// HasPermissions tells whether a source has rules about requests.
func (e *ServiceIntentions) HasPermissions() bool {
	for _, s := range e.Sources {
		if s != nil && len(s.Permissions) > 0 {
			return true
		}
	}
	return false
}

// JWTProviders names the providers that the entry refers to, each once.
func (e *ServiceIntentions) JWTProviders() []string {
	var out []string
	add := func(j *IntentionJWT) {
		if j == nil {
			return
		}
		for _, p := range j.Providers {
			if p != nil && !slices.Contains(out, p.Name) {
				out = append(out, p.Name)
			}
		}
	}
	add(e.JWT)
	for _, s := range e.Sources {
		if s == nil {
			continue
		}
		for _, p := range s.Permissions {
			if p != nil {
				add(p.JWT)
			}
		}
	}
	return out
}

// Intentions gives the entry as intentions, in its own order.
func (e *ServiceIntentions) Intentions() Intentions {
	out := make(Intentions, 0, len(e.Sources))
	for _, s := range e.Sources {
		if s == nil {
			continue
		}
		i := &Intention{
			ID:              s.LegacyID,
			Description:     s.Description,
			SourcePeer:      s.Peer,
			SourceName:      s.Name,
			SourceType:      s.Type,
			DestinationName: e.Name,
			Action:          s.Action,
			Permissions:     s.Permissions,
			JWT:             e.JWT,
			Mode:            cmp.Or(s.Mode, e.Mode),
			Meta:            e.Meta,
			Precedence:      s.Precedence,
			CreatedAt:       s.LegacyCreateTime,
			UpdatedAt:       s.LegacyUpdateTime,
			RaftIndex:       e.RaftIndex,
		}
		if s.LegacyID != "" {
			i.Meta = s.LegacyMeta
		}
		out = append(out, i)
	}
	return out
}

// Clone returns a copy that may be changed, and normalized, without touching e.
func (e *ServiceIntentions) Clone() *ServiceIntentions {
	c := *e
	c.Sources = make([]*SourceIntention, len(e.Sources))
	for i, s := range e.Sources {
		c.Sources[i] = s.clone()
	}
	c.Meta = maps.Clone(e.Meta)
	return &c
}

// clone copies what Normalize may change; the rest is shared.
func (s *SourceIntention) clone() *SourceIntention {
	if s == nil {
		return nil
	}
	c := *s
	c.Permissions = slices.Clone(s.Permissions)
	for i, p := range c.Permissions {
		if p == nil || p.HTTP == nil {
			continue
		}
		http := *p.HTTP
		http.Methods = slices.Clone(http.Methods)
		cp := *p
		cp.HTTP = &http
		c.Permissions[i] = &cp
	}
	return &c
}
