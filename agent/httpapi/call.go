package httpapi

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/catalog/wire"
)

// call is one request on its way through a handler.
type call struct {
	w     http.ResponseWriter
	r     *http.Request
	route *Route
	tail  string // the path's parameter
	query url.Values
	token string
	opts  queryOptions
	stage stage
}

// stage is how a call treats a blocking query.
type stage uint8

const (
	alone    stage = iota // waits in its own handler
	probing               // gives errParks instead of waiting
	together              // waits for a crowd, whose members were all found to be up to date
	overdue               // has waited: whatever there is
)

// errParks says that a call which is probing would have to wait.
var errParks = errors.New("the query blocks")

// queryOptions are the common parameters of a request.
type queryOptions struct {
	index       uint64
	wait        time.Duration // with jitter; 0 when index is
	consistency wire.Consistency
	maxStale    time.Duration // 0: no bound
	cached      bool          // what the agent knows may answer
	control     cacheControl  // what that is bounded by
	fetched     bool          // the servers have answered nevertheless
	filter      string
}

func (c *call) ctx() context.Context { return c.r.Context() }

// parse reads the common parameters that the route takes. Errors name the
// parameter; their order is Consul's.
func (c *call) parse(cfg Config) error {
	query, err := url.ParseQuery(c.r.URL.RawQuery)
	if err != nil {
		return &httpError{http.StatusBadRequest, "Invalid query: " + err.Error()}
	}
	c.query = query
	c.token = tokenOf(c.r, query)
	if err := refuseTenancy(c.r, query); err != nil {
		return err
	}
	p := c.route.params
	if p == paramsToken {
		return c.authorize(cfg)
	}
	if p == paramsRead || p == paramsDiscovery || p == paramsBlockLocal {
		if err := c.parseBlocking(cfg); err != nil {
			return err
		}
		c.opts.filter = query.Get("filter")
	}
	if p == paramsRead || p == paramsDiscovery || p == paramsConsistency {
		if err := c.parseConsistency(cfg, p == paramsDiscovery); err != nil {
			return err
		}
	}
	if p != paramsBlockLocal {
		dc := query.Get("dc")
		if dc == "" {
			dc = query.Get("datacenter")
		}
		if dc != "" && dc != cfg.Self.Datacenter {
			return &httpError{http.StatusInternalServerError, "No path to datacenter"}
		}
	}
	return c.authorize(cfg)
}

func (c *call) authorize(cfg Config) error {
	if !c.route.local || c.route.Permission.Resource == "" {
		return nil
	}
	if c.route.Permission.Of == "" {
		return c.require(cfg, "")
	}
	return c.require(cfg, c.tail)
}

// require refuses a caller whose token lacks the route's permission for name.
func (c *call) require(cfg Config, name string) error {
	auth, err := cfg.Authorize(c.token)
	if err != nil {
		return err
	}
	p := c.route.Permission
	if !auth.Allowed(p.Verb, p.Resource, name) {
		return fmt.Errorf("%w: this needs the permission %s", catalog.ErrDenied, p)
	}
	return nil
}

func (c *call) parseBlocking(cfg Config) error {
	wait := cfg.DefaultQueryTime
	if v := c.query.Get("wait"); v != "" {
		d, err := time.ParseDuration(v)
		if err != nil {
			return &httpError{http.StatusBadRequest, "Invalid wait time"}
		}
		if d > 0 {
			wait = min(d, cfg.MaxQueryTime)
		}
	}
	if v := c.query.Get("index"); v != "" {
		i, err := strconv.ParseUint(v, 10, 64)
		if err != nil {
			return &httpError{http.StatusBadRequest, "Invalid index"}
		}
		c.opts.index = i
	}
	// The jitter spreads clients that began to wait together.
	c.opts.wait = wait + rand.N(wait/16+1)
	return nil
}

func (c *call) parseConsistency(cfg Config, discovery bool) error {
	_, stale := c.query["stale"]
	_, consistent := c.query["consistent"]
	_, leader := c.query["leader"]
	if stale && consistent {
		return &httpError{http.StatusBadRequest, "Cannot specify ?stale with ?consistent, conflicting semantics."}
	}
	if consistent && c.query.Has("cached") && !cfg.NoCache {
		return &httpError{http.StatusBadRequest, "Cannot specify ?cached with ?consistent, conflicting semantics."}
	}
	if v := c.query.Get("max_stale"); v != "" {
		d, err := time.ParseDuration(v)
		if err != nil || d < 0 {
			return &httpError{http.StatusBadRequest, fmt.Sprintf("Invalid max_stale value %q", v)}
		}
		c.opts.maxStale = d
	}
	switch {
	case stale || c.opts.maxStale > 0:
		c.opts.consistency = wire.Stale
	case consistent:
		c.opts.consistency = wire.Consistent
	case discovery && !leader && cfg.DiscoveryMaxStale > 0:
		c.opts.consistency, c.opts.maxStale = wire.Stale, cfg.DiscoveryMaxStale
	}
	return c.parseCached(cfg)
}

// tokenOf finds the ACL token: the query first, then the headers.
func tokenOf(r *http.Request, query url.Values) string {
	if t := query.Get("token"); t != "" {
		return t
	}
	if t := r.Header.Get("X-Consul-Token"); t != "" {
		return t
	}
	if scheme, t, ok := strings.Cut(r.Header.Get("Authorization"), " "); ok && strings.EqualFold(scheme, "Bearer") {
		return strings.TrimSpace(t)
	}
	return ""
}

// refuseTenancy refuses namespaces and partitions: there is one tenancy.
func refuseTenancy(r *http.Request, query url.Values) error {
	for _, t := range []struct{ param, header, noun string }{
		{"ns", "X-Consul-Namespace", "Namespaces"},
		{"partition", "X-Consul-Partition", "Partitions"},
	} {
		if query.Has(t.param) {
			return &httpError{http.StatusBadRequest, fmt.Sprintf("Invalid query parameter: %q - %s are a Consul Enterprise feature", t.param, t.noun)}
		}
		if r.Header.Get(t.header) != "" {
			return &httpError{http.StatusBadRequest, fmt.Sprintf("Invalid header: %q - %s are a Consul Enterprise feature", t.header, t.noun)}
		}
	}
	return nil
}

// boolParam reads a parameter that is true when it stands alone.
func (c *call) boolParam(name string) (bool, error) {
	if !c.query.Has(name) {
		return false, nil
	}
	v := c.query.Get(name)
	if v == "" {
		return true, nil
	}
	b, err := strconv.ParseBool(v)
	if err != nil {
		return false, &httpError{http.StatusBadRequest, "Invalid value for ?" + name}
	}
	return b, nil
}

// cas reads the parameter cas.
func (c *call) cas() (index uint64, set bool, err error) {
	if !c.query.Has("cas") {
		return 0, false, nil
	}
	index, err = strconv.ParseUint(c.query.Get("cas"), 10, 64)
	if err != nil {
		return 0, false, &httpError{http.StatusBadRequest, fmt.Sprintf("Invalid value for cas: %q is no index", c.query.Get("cas"))}
	}
	return index, true, nil
}

// need refuses an empty path parameter.
func (c *call) need(what string) (string, error) {
	if c.tail == "" {
		return "", &httpError{http.StatusBadRequest, "Missing " + what}
	}
	return c.tail, nil
}

// apply puts a command through the log, after it passed validation here, so that
// input which nobody could accept costs no round trip.
func (c *call) apply(servers Servers, cmd catalog.Command) (*wire.ApplyReply, error) {
	if err := cmd.Validate(); err != nil {
		return nil, err
	}
	return servers.Apply(c.ctx(), &wire.ApplyRequest{Token: c.token, Command: wire.Command{Command: cmd}})
}

// errNotOffered says that a component was left out of this agent.
func errNotOffered(what string) error {
	return &httpError{http.StatusNotImplemented, "This agent does not offer " + what}
}
