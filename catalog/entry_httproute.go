package catalog

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// HTTPRoute leads the requests of listeners to services.
type HTTPRoute struct {
	EntryHead
	Parents   []ResourceReference
	Rules     []HTTPRouteRule
	Hostnames []string
	Status    EntryStatus `bexpr:"-"`
}

// HTTPRouteRule is for requests that one of Matches, or the lack of any, takes.
type HTTPRouteRule struct {
	Filters         HTTPFilters
	ResponseFilters HTTPResponseFilters
	Matches         []HTTPMatch
	Services        []HTTPRouteService
}

// HTTPMatch matches a request when all that is set does.
type HTTPMatch struct {
	Headers []HTTPHeaderMatch
	Method  string
	Path    HTTPPathMatch
	Query   []HTTPQueryMatch
}

// HTTPHeaderMatch matches a header.
type HTTPHeaderMatch struct {
	Match  string
	Name   string
	Value  string
	Invert bool `json:",omitempty"`
}

// HTTPPathMatch matches the path.
type HTTPPathMatch struct {
	Match string
	Value string
}

// HTTPQueryMatch matches a query parameter.
type HTTPQueryMatch struct {
	Match string
	Name  string
	Value string
}

// HTTPFilters change a request on its way.
type HTTPFilters struct {
	Headers       []HTTPHeaderFilter
	URLRewrite    *HTTPURLRewrite
	RetryFilter   *HTTPRetryFilter
	TimeoutFilter *HTTPTimeoutFilter
	JWT           *IntentionJWT
	ExtProc       []map[string]any    `json:",omitempty" bexpr:"-" doc:"has no effect"`
	ExtAuthz      *APIGatewayExtAuthz `json:",omitempty" doc:"has no effect"`
}

// HTTPResponseFilters change a response on its way.
type HTTPResponseFilters struct {
	Headers []HTTPHeaderFilter
}

// HTTPHeaderFilter changes headers.
type HTTPHeaderFilter struct {
	Add    map[string]string
	Remove []string
	Set    map[string]string
}

// HTTPURLRewrite replaces the part of the path that matched.
type HTTPURLRewrite struct {
	Path string
}

// HTTPRetryFilter says what is tried again.
type HTTPRetryFilter struct {
	NumRetries            uint32
	RetryOn               []string
	RetryOnStatusCodes    []uint32
	RetryOnConnectFailure bool
}

// HTTPTimeoutFilter bounds requests.
type HTTPTimeoutFilter struct {
	RequestTimeout time.Duration
	IdleTimeout    time.Duration
}

// HTTPRouteService is a service with its share of the requests.
type HTTPRouteService struct {
	Name            Name
	Weight          int
	Filters         HTTPFilters
	ResponseFilters HTTPResponseFilters
	Namespace       string             `json:",omitempty"`
	Partition       string             `json:",omitempty"`
	TLS             *GatewayServiceTLS `json:",omitempty"`
	Limits          *UpstreamLimits    `json:",omitempty"`
}

// EntryKind implements ConfigEntry.
func (*HTTPRoute) EntryKind() string { return KindHTTPRoute }

// EntryStatus gives access to the status.
func (e *HTTPRoute) EntryStatus() *EntryStatus { return &e.Status }

// Normalize implements ConfigEntry: a service without weight weighs 1.
func (e *HTTPRoute) Normalize() {
	normalizeParents(e.Parents)
	for i := range e.Rules {
		for j := range e.Rules[i].Services {
			if s := &e.Rules[i].Services[j]; s.Weight == 0 {
				s.Weight = 1
			}
		}
		for j := range e.Rules[i].Matches {
			e.Rules[i].Matches[j].Method = strings.ToUpper(e.Rules[i].Matches[j].Method)
		}
	}
}

// Validate implements ConfigEntry.
func (e *HTTPRoute) Validate() error {
	if err := validEntryName(e.Name); err != nil {
		return err
	}
	for _, h := range e.Hostnames {
		if err := validHost(h); err != nil {
			return Invalidf("Hostnames: %w", err)
		}
	}
	if err := validParents(e.Parents); err != nil {
		return err
	}
	for i := range e.Rules {
		if err := e.Rules[i].validate(fmt.Sprintf("Rule[%d]", i)); err != nil {
			return err
		}
	}
	return nil
}

func (r *HTTPRouteRule) validate(at string) error {
	if err := r.Filters.validate(at + ", Filters"); err != nil {
		return err
	}
	if err := validHeaderFilters(at+", ResponseFilters", r.ResponseFilters.Headers); err != nil {
		return err
	}
	for j, m := range r.Matches {
		if err := m.validate(fmt.Sprintf("%s, Match[%d]", at, j)); err != nil {
			return err
		}
	}
	for j, s := range r.Services {
		where := fmt.Sprintf("%s, Service[%d]", at, j)
		if s.Weight < 0 {
			return Invalidf("%s, weight must not be negative, it is %d", where, s.Weight)
		}
		if err := onlyDefaultTenancy(where, s.Namespace, s.Partition); err != nil {
			return err
		}
		if err := s.Filters.validate(where + ", Filters"); err != nil {
			return err
		}
		if err := validHeaderFilters(where+", ResponseFilters", s.ResponseFilters.Headers); err != nil {
			return err
		}
	}
	return nil
}

var httpMethods = []string{"", "CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE"}

func (m *HTTPMatch) validate(at string) error {
	if !slices.Contains(httpMethods, m.Method) {
		return Invalidf("%s, Method contains an invalid method %q", at, m.Method)
	}
	switch m.Path.Match {
	case "":
		if m.Path.Value != "" {
			return Invalidf("%s, Path, match type should be one of exact, prefix, or regex", at)
		}
	case "exact", "prefix":
		if !strings.HasPrefix(m.Path.Value, "/") {
			return Invalidf("%s, Path, %s type match doesn't start with '/': %q", at, m.Path.Match, m.Path.Value)
		}
	case "regex":
		if err := validRegex(at+", Path", m.Path.Value); err != nil {
			return err
		}
	default:
		return Invalidf("%s, Path, match type should be one of exact, prefix, or regex", at)
	}
	for i, h := range m.Headers {
		where := fmt.Sprintf("%s, Headers[%d]", at, i)
		if err := validMatch(where, h.Name, h.Match, h.Value, "exact", "prefix", "regex", "present", "suffix"); err != nil {
			return err
		}
	}
	for i, q := range m.Query {
		where := fmt.Sprintf("%s, Query[%d]", at, i)
		if err := validMatch(where, q.Name, q.Match, q.Value, "exact", "regex", "present"); err != nil {
			return err
		}
	}
	return nil
}

func validMatch(at, name, match, value string, types ...string) error {
	if !slices.Contains(types, match) {
		return Invalidf("%s, match type should be one of %s", at, strings.Join(types, ", "))
	}
	if name == "" {
		return Invalidf("%s missing required Name field", at)
	}
	if match == "regex" {
		return validRegex(at, value)
	}
	return nil
}

func (f *HTTPFilters) validate(at string) error {
	if err := validHeaderFilters(at, f.Headers); err != nil {
		return err
	}
	if f.JWT != nil {
		return Invalidf("%s: JWT filters of a route are an enterprise-only feature; remove JWT", at)
	}
	if r := f.RetryFilter; r != nil {
		d := ServiceRouteDestination{RetryOn: r.RetryOn, RetryOnStatusCodes: r.RetryOnStatusCodes}
		if err := d.validate(at + ", RetryFilter"); err != nil {
			return err
		}
	}
	if t := f.TimeoutFilter; t != nil && (t.RequestTimeout < 0 || t.IdleTimeout < 0) {
		return Invalidf("%s, TimeoutFilter: timeouts must not be negative", at)
	}
	return nil
}

func validHeaderFilters(at string, in []HTTPHeaderFilter) error {
	for i, h := range in {
		m := HTTPHeaderModifiers{Add: h.Add, Set: h.Set, Remove: h.Remove}
		if err := m.validate(fmt.Sprintf("%s, Headers[%d]", at, i)); err != nil {
			return err
		}
	}
	return nil
}
