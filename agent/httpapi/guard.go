package httpapi

import (
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strings"
)

// guard refuses what a browser could be made to send by a page that has no business
// with this agent: requests under a name that is not ours (DNS rebinding), and
// writes that another site started. Clients that are no browsers pass.
type guard struct {
	hosts     map[string]bool
	domain    string // ".consul"
	crossSite *http.CrossOriginProtection
	blocked   []string
	writers   []netip.Prefix
}

func newGuard(cfg Config) *guard {
	g := &guard{
		hosts:     map[string]bool{},
		domain:    "." + strings.ToLower(strings.Trim(cfg.Domain, ".")),
		crossSite: http.NewCrossOriginProtection(),
		blocked:   cfg.BlockEndpoints,
		writers:   cfg.AllowWriteFrom,
	}
	names := append([]string{cfg.Self.NodeName}, cfg.AllowedHosts...)
	if own, err := os.Hostname(); err == nil {
		names = append(names, own)
	}
	for _, n := range names {
		g.hosts[canonicalHost(n)] = true
	}
	return g
}

// check refuses a request with an error that says why and what to do.
func (g *guard) check(r *http.Request) error {
	if !overUnixSocket(r.Context()) && !g.knows(r.Host) {
		return &httpError{http.StatusForbidden, fmt.Sprintf(
			"Host %q is not a name of this agent. Call it by address, or add the name to http_config.allowed_hosts", r.Host)}
	}
	if err := g.crossSite.Check(r); err != nil {
		return &httpError{http.StatusForbidden, "Refused: a web page of another site started this request (" + err.Error() + ")"}
	}
	for _, prefix := range g.blocked {
		if strings.HasPrefix(r.URL.Path, prefix) {
			return &httpError{http.StatusForbidden, "Endpoint is blocked by agent configuration"}
		}
	}
	if !g.mayWrite(r) {
		return &httpError{http.StatusForbidden, "Access is restricted: this address may not change things, see http_config.allow_write_http_from"}
	}
	return nil
}

func (g *guard) mayWrite(r *http.Request) bool {
	switch r.Method {
	case http.MethodGet, http.MethodHead, http.MethodOptions:
		return true
	}
	if len(g.writers) == 0 || overUnixSocket(r.Context()) {
		return true
	}
	from, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return false
	}
	client := from.Addr().Unmap().WithZone("")
	return slices.ContainsFunc(g.writers, func(p netip.Prefix) bool { return p.Contains(client) })
}

// knows tells whether host may name this agent. A page on the Internet can make its
// own name resolve to us, and that name has a dot and is not under our domain.
func (g *guard) knows(host string) bool {
	h := canonicalHost(host)
	if h == "" {
		return true // HTTP/1.0 without Host: no browser sends it
	}
	if _, err := netip.ParseAddr(h); err == nil {
		return true
	}
	return g.hosts[h] || !strings.Contains(h, ".") ||
		strings.HasSuffix(h, ".localhost") || strings.HasSuffix(h, g.domain)
}

// canonicalHost strips port, brackets, zone and the final dot.
func canonicalHost(host string) string {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	host = strings.TrimSuffix(strings.TrimPrefix(host, "["), "]")
	return strings.ToLower(strings.TrimSuffix(host, "."))
}

// protect sets what every answer carries. No answer may be framed, sniffed, run as
// a page or kept by a cache: many hold what only the caller may see.
func protect(h http.Header, extra map[string]string) {
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'; sandbox")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	h.Set("Cache-Control", "no-store")
	h.Set("Referrer-Policy", "no-referrer")
	for name, value := range extra {
		h.Set(name, value)
	}
}
