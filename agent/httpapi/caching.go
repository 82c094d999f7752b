package httpapi

import (
	"context"
	"errors"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/catalog/wire"
)

// caching says how a read may be answered from what the agent knows, as Consul
// documents it for each endpoint. Elsewhere ?cached is of no effect.
type caching int

const (
	notCached caching = iota
	// simple endpoints obey Cache-Control.
	simple
	// refreshed endpoints are kept current in the background; Cache-Control is checked and
	// otherwise of no effect.
	refreshed
)

// cachings are the endpoints that may be answered from what the agent knows.
var cachings = map[string]caching{
	"/v1/catalog/datacenters":      simple,
	"/v1/catalog/services":         simple,
	"/v1/query/:query":             simple,
	"/v1/catalog/service/:service": refreshed,
	"/v1/catalog/connect/:service": refreshed,
	"/v1/health/service/:service":  refreshed,
	"/v1/health/connect/:service":  refreshed,
	"/v1/health/ingress/:service":  refreshed,
	"/v1/discovery-chain/:service": refreshed,
	pathIntentions + "/match":      refreshed,
}

// cacheControl is what a request says of the age of its answer.
type cacheControl struct {
	// revalidate asks the servers anew, whatever the agent knows.
	revalidate bool
	// maxAge asks them anew when what the agent knows is older; 0: however old it is.
	maxAge time.Duration
	// ifError is how old what the agent knows may be to answer when they do not.
	ifError time.Duration
}

// outlives tells whether an answer is too old.
func (c cacheControl) outlives(age time.Duration) bool { return c.maxAge > 0 && age > c.maxAge }

// parseCacheControl refuses ages that are no numbers; unknown directives are ignored.
func parseCacheControl(v string) (out cacheControl, err error) {
	for part := range strings.SplitSeq(strings.ToLower(v), ",") {
		name, value, _ := strings.Cut(strings.TrimSpace(part), "=")
		switch name {
		case "must-revalidate":
			out.revalidate = true
		case "max-age", "stale-if-error":
			n, err := strconv.ParseUint(value, 10, 32)
			if err != nil {
				return out, &httpError{http.StatusBadRequest, "Invalid Cache-Control header."}
			}
			d := time.Duration(n) * time.Second //nolint:gosec // 32 bits
			if name == "max-age" {
				out.maxAge, out.revalidate = d, out.revalidate || n == 0
			} else {
				out.ifError = d
			}
		}
	}
	return out, nil
}

// parseCached reads whether what the agent knows may answer.
func (c *call) parseCached(cfg Config) error {
	kind := cachings[c.route.Path]
	c.opts.cached = kind != notCached && c.query.Has("cached") && !cfg.NoCache
	if !c.opts.cached {
		return nil
	}
	control, err := parseCacheControl(c.r.Header.Get("Cache-Control"))
	if kind == simple {
		c.opts.control = control
	}
	return err
}

// revalidated asks the servers for what could be answered from what the agent knows,
// which answers all the same where the client prefers that to an error.
func (q *queries) revalidated(ctx context.Context, c *call, req *wire.ReadRequest) (*wire.ReadReply, error) {
	fresh := *req
	fresh.Consistency = wire.Default
	rep, err := q.servers.Read(ctx, &fresh)
	c.opts.fetched = err == nil
	if err == nil || c.opts.control.ifError == 0 || !errors.Is(err, catalog.ErrUnavailable) {
		return rep, err
	}
	fresh.Consistency = wire.Stale
	known, kerr := q.servers.Read(ctx, &fresh)
	if kerr != nil || known.Meta.LastContact > c.opts.control.ifError {
		return nil, err
	}
	return known, nil
}

// setCached says whether an answer was asked for before, so that this agent had it, and
// for how long it has not heard from the servers.
func (c *call) setCached(hit bool, age time.Duration) {
	h := c.w.Header()
	if !hit || c.opts.fetched {
		h.Set("X-Cache", "MISS")
		return
	}
	h.Set("X-Cache", "HIT")
	h.Set("Age", strconv.FormatInt(int64(age.Seconds()), 10)) // 0 while views are kept current
}
