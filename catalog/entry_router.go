package catalog

import (
	"fmt"
	"slices"
	"strings"
)

// ServiceRouter sends the requests for a service to others by what they ask for.
// The first route that matches decides; what no route matches goes to the service.
type ServiceRouter struct {
	EntryHead
	Routes []*ServiceRoute
}

// ServiceRoute is one route; without Match it takes every request.
type ServiceRoute struct {
	Match       *ServiceRouteMatch       `json:",omitempty"`
	Destination *ServiceRouteDestination `json:",omitempty"`
}

// ServiceRouteMatch says which requests a route takes.
type ServiceRouteMatch struct {
	HTTP *ServiceRouteHTTPMatch `json:",omitempty"`
}

// ServiceRouteHTTPMatch matches a request when all that is set does.
type ServiceRouteHTTPMatch struct {
	PathExact       string                   `json:",omitempty"`
	PathPrefix      string                   `json:",omitempty"`
	PathRegex       string                   `json:",omitempty"`
	CaseInsensitive bool                     `json:",omitempty"`
	Header          []ServiceRouteHeader     `json:",omitempty"`
	QueryParam      []ServiceRouteQueryParam `json:",omitempty"`
	Methods         []string                 `json:",omitempty"`
}

// ServiceRouteHeader matches a request header.
type ServiceRouteHeader struct {
	Name    string
	Present bool   `json:",omitempty"`
	Exact   string `json:",omitempty"`
	Prefix  string `json:",omitempty"`
	Suffix  string `json:",omitempty"`
	Regex   string `json:",omitempty"`
	Invert  bool   `json:",omitempty"`
}

// ServiceRouteQueryParam matches a query parameter.
type ServiceRouteQueryParam struct {
	Name    string
	Present bool   `json:",omitempty"`
	Exact   string `json:",omitempty"`
	Regex   string `json:",omitempty"`
}

// ServiceRouteDestination is where a route leads and how.
type ServiceRouteDestination struct {
	RequestTimeout        Duration             `json:",omitempty"`
	IdleTimeout           Duration             `json:",omitempty"`
	Service               Name                 `json:",omitempty"` // empty: the router's own
	ServiceSubset         string               `json:",omitempty"`
	Namespace             string               `json:",omitempty"`
	Partition             string               `json:",omitempty"`
	PrefixRewrite         string               `json:",omitempty"`
	NumRetries            uint32               `json:",omitempty"`
	RetryOnConnectFailure bool                 `json:",omitempty"`
	RetryOn               []string             `json:",omitempty"`
	RetryOnStatusCodes    []uint32             `json:",omitempty"`
	RequestHeaders        *HTTPHeaderModifiers `json:",omitempty"`
	ResponseHeaders       *HTTPHeaderModifiers `json:",omitempty"`
}

// HTTPHeaderModifiers change the headers of a request or response: Remove, then
// Set, then Add.
type HTTPHeaderModifiers struct {
	Add    map[string]string `json:",omitempty"`
	Set    map[string]string `json:",omitempty"`
	Remove []string          `json:",omitempty"`
}

// retryConditions are the values of RetryOn.
var retryConditions = []string{
	"5xx", "gateway-error", "reset", "reset-before-request", "connect-failure", "envoy-ratelimited", "retriable-4xx",
	"refused-stream", "cancelled", "deadline-exceeded", "internal", "resource-exhausted", "unavailable",
}

// EntryKind implements ConfigEntry.
func (*ServiceRouter) EntryKind() string { return KindServiceRouter }

// Normalize implements ConfigEntry.
func (e *ServiceRouter) Normalize() {
	for _, r := range e.Routes {
		if r == nil || r.Match == nil || r.Match.HTTP == nil {
			continue
		}
		for i, m := range r.Match.HTTP.Methods {
			r.Match.HTTP.Methods[i] = strings.ToUpper(m)
		}
	}
}

// Validate implements ConfigEntry.
func (e *ServiceRouter) Validate() error {
	if err := validEntryName(e.Name); err != nil {
		return err
	}
	for i, r := range e.Routes {
		at := fmt.Sprintf("Route[%d]", i)
		if r == nil {
			return Invalidf("%s is empty", at)
		}
		var http *ServiceRouteHTTPMatch
		if r.Match != nil {
			http = r.Match.HTTP
		}
		if err := http.validate(at); err != nil {
			return err
		}
		if d := r.Destination; d != nil {
			if d.PrefixRewrite != "" && (http == nil || (http.PathExact == "" && http.PathPrefix == "")) {
				return Invalidf("%s cannot make use of PrefixRewrite without configuring either PathExact or PathPrefix", at)
			}
			if err := d.validate(at); err != nil {
				return err
			}
		}
	}
	return nil
}

func (m *ServiceRouteHTTPMatch) validate(at string) error {
	if m == nil {
		return nil
	}
	if err := validPaths(at, m.PathExact, m.PathPrefix, m.PathRegex); err != nil {
		return err
	}
	for j, h := range m.Header {
		where := fmt.Sprintf("%s Header[%d]", at, j)
		if h.Name == "" {
			return Invalidf("%s missing required Name field", where)
		}
		if countSet(h.Present, h.Exact != "", h.Prefix != "", h.Suffix != "", h.Regex != "") != 1 {
			return Invalidf("%s should contain one of Present, Exact, Prefix, Suffix, or Regex", where)
		}
		if err := validRegex(where+" Regex", h.Regex); err != nil {
			return err
		}
	}
	for j, q := range m.QueryParam {
		where := fmt.Sprintf("%s QueryParam[%d]", at, j)
		if q.Name == "" {
			return Invalidf("%s missing required Name field", where)
		}
		if countSet(q.Present, q.Exact != "", q.Regex != "") != 1 {
			return Invalidf("%s should contain one of Present, Exact, or Regex", where)
		}
		if err := validRegex(where+" Regex", q.Regex); err != nil {
			return err
		}
	}
	return validMethods(at, m.Methods)
}

func (d *ServiceRouteDestination) validate(at string) error {
	if err := onlyDefaultTenancy(at+" Destination", d.Namespace, d.Partition); err != nil {
		return err
	}
	if err := validOptionalName(at+" Destination.Service", d.Service); err != nil {
		return err
	}
	if d.Service == Wildcard {
		return Invalidf("%s Destination.Service must name one service", at)
	}
	if d.RequestTimeout < 0 || d.IdleTimeout < 0 {
		return Invalidf("%s: RequestTimeout and IdleTimeout must not be negative", at)
	}
	if d.PrefixRewrite != "" && !strings.HasPrefix(d.PrefixRewrite, "/") {
		return Invalidf("%s PrefixRewrite doesn't start with '/': %q", at, d.PrefixRewrite)
	}
	for _, r := range d.RetryOn {
		if !slices.Contains(retryConditions, r) {
			return Invalidf("%s contains an invalid retry condition: %q, want one of %s", at, r, strings.Join(retryConditions, ", "))
		}
	}
	for _, code := range d.RetryOnStatusCodes {
		if code < 100 || code > 599 {
			return Invalidf("%s: RetryOnStatusCodes: %d is no HTTP status", at, code)
		}
	}
	if err := d.RequestHeaders.validate(at + " RequestHeaders"); err != nil {
		return err
	}
	return d.ResponseHeaders.validate(at + " ResponseHeaders")
}

func (h *HTTPHeaderModifiers) validate(at string) error {
	if h == nil {
		return nil
	}
	for _, m := range []map[string]string{h.Add, h.Set} {
		for k, v := range m {
			if err := validHeader(at, k, v); err != nil {
				return err
			}
		}
	}
	for _, k := range h.Remove {
		if err := validHeader(at, k, ""); err != nil {
			return err
		}
	}
	return nil
}

// validHeader refuses what would end a header line early or name none.
func validHeader(at, name, value string) error {
	if name == "" || strings.ContainsFunc(name, notToken) {
		return Invalidf("%s: %q is not the name of a header", at, name)
	}
	if strings.ContainsAny(value, "\r\n\x00") {
		return Invalidf("%s: the value of %q has line breaks", at, name)
	}
	return nil
}

// notToken tells whether r may not stand in the name of a header. Pseudo-headers
// begin with a colon.
func notToken(r rune) bool {
	return r <= ' ' || r >= 0x7f || strings.ContainsRune(`"(),/;<=>?@[\]{}`, r)
}

func validPaths(at, exact, prefix, regex string) error {
	if countSet(exact != "", prefix != "", regex != "") > 1 {
		return Invalidf("%s should only contain at most one of PathExact, PathPrefix, or PathRegex", at)
	}
	if exact != "" && !strings.HasPrefix(exact, "/") {
		return Invalidf("%s PathExact doesn't start with '/': %q", at, exact)
	}
	if prefix != "" && !strings.HasPrefix(prefix, "/") {
		return Invalidf("%s PathPrefix doesn't start with '/': %q", at, prefix)
	}
	return validRegex(at+" PathRegex", regex)
}

func validMethods(at string, methods []string) error {
	seen := map[string]bool{}
	for _, m := range methods {
		if m == "" || strings.ContainsFunc(m, notToken) {
			return Invalidf("%s Methods contains an invalid method %q", at, m)
		}
		if seen[m] {
			return Invalidf("%s Methods contains %q more than once", at, m)
		}
		seen[m] = true
	}
	return nil
}

func countSet(set ...bool) int {
	n := 0
	for _, on := range set {
		if on {
			n++
		}
	}
	return n
}
