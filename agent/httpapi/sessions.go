package httpapi

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/catalog/acl"
	"github.com/weftmesh/weft/catalog/wire"
)

// sessionsAPI makes, shows, renews and ends sessions.
type sessionsAPI struct {
	cfg Config
	q   *queries
}

func (a sessionsAPI) routes() []Route {
	write := func(path, summary string, perm string, f func(*call) (any, error)) Route {
		return Route{
			Method: http.MethodPut, Path: path, Summary: summary, MaxBody: bodyNone,
			Permission: Permission{acl.Write, acl.Session, perm}, params: paramsWrite, invalid: http.StatusInternalServerError, handle: f,
		}
	}
	read := func(path, summary string, of string, f func(*call) (any, error)) Route {
		return Route{
			Method: http.MethodGet, Path: path, Summary: summary, MaxBody: bodyNone,
			Permission: Permission{acl.Read, acl.Session, of}, params: paramsRead, handle: f,
		}
	}
	create := write("/v1/session/create", "make a session that may hold keys as locks", "Node", a.create)
	create.MaxBody = bodySmall
	create.Body = "JSON, all of it optional: Name, Node, LockDelay, Behavior (release or delete), TTL, NodeChecks, ServiceChecks"
	return []Route{
		create,
		write("/v1/session/destroy/:session", "end a session; one that is not there is no error", "", a.destroy),
		write("/v1/session/renew/:session", "let the TTL of a session begin anew; 404 when it ended", "", a.renew),
		read("/v1/session/info/:session", "a session, in a list that is empty when there is none", "", a.info),
		read("/v1/session/node/:node", "the sessions of a node", "node", a.ofNode),
		read("/v1/session/list", "every session", "", a.list),
	}
}

// sessionView is a session as it is read.
type sessionView struct {
	ID            string
	Name          string
	Node          string
	LockDelay     time.Duration
	Behavior      string
	TTL           string
	NodeChecks    []string
	ServiceChecks []sessionCheckView
	CreateIndex   uint64
	ModifyIndex   uint64
}

type sessionCheckView struct {
	ID        string
	Namespace string
}

func viewSessions(in []*catalog.Session) []sessionView {
	out := make([]sessionView, 0, len(in))
	for _, s := range in {
		v := sessionView{
			ID: s.ID, Name: s.Name, Node: s.Node, LockDelay: s.LockDelay, Behavior: s.Behavior, TTL: s.TTL,
			CreateIndex: s.CreateIndex, ModifyIndex: s.ModifyIndex,
		}
		if len(s.NodeChecks) > 0 {
			v.NodeChecks = s.NodeChecks
		}
		for _, c := range s.ServiceChecks {
			v.ServiceChecks = append(v.ServiceChecks, sessionCheckView(c))
		}
		out = append(out, v)
	}
	return out
}

type sessionBody struct {
	ID            string // of a session that was read; a new one gets its own
	Name          string
	Node          string
	LockDelay     any
	Behavior      string
	TTL           string
	NodeChecks    []string
	ServiceChecks []sessionCheckView
	Checks        []string // former name of NodeChecks
	Datacenter    string
	CreateIndex   uint64
	ModifyIndex   uint64
	tenancy       `mapstructure:",squash"`
}

func (a sessionsAPI) create(c *call) (any, error) {
	s, err := a.decode(c)
	if err != nil {
		return nil, err
	}
	s.ID = uuid.NewString()
	_, err = c.apply(a.cfg.Servers, &catalog.CreateSession{Session: *s})
	if errors.Is(err, catalog.ErrInvalid) && s.Node == a.cfg.Self.NodeName {
		waited, missing := a.awaitOwnNode(c)
		if missing != nil {
			return nil, missing
		}
		if waited {
			_, err = c.apply(a.cfg.Servers, &catalog.CreateSession{Session: *s})
		}
	}
	if err != nil {
		return nil, err
	}
	return struct{ ID string }{s.ID}, nil
}

// ownNodeWait is how long a session waits for a host that has just started: its
// leader writes the host into the catalog a moment after it joined.
const ownNodeWait = 5 * time.Second

// awaitOwnNode waits until this host is in the catalog with the check that sessions
// hang on by default. waited is whether it was not there at first.
func (a sessionsAPI) awaitOwnNode(c *call) (waited bool, err error) {
	wait := min(ownNodeWait, a.cfg.MaxQueryTime)
	ctx, cancel := context.WithTimeout(c.ctx(), wait)
	defer cancel()
	req := &wire.ReadRequest{Token: c.token, Query: catalog.Query{Kind: catalog.QueryNodeChecks, Name: a.cfg.Self.NodeName}}
	for {
		rep, err := a.cfg.Servers.Read(ctx, req)
		switch {
		case err != nil && c.ctx().Err() != nil:
			return waited, context.Cause(c.ctx())
		case err != nil && ctx.Err() == nil:
			return waited, err
		case err != nil, waited && rep.View.Index <= req.MinIndex && !holdsNodeCheck(rep.View):
			return waited, &httpError{http.StatusServiceUnavailable, "This host is not in the catalog yet, so a session has no check '" +
				catalog.NodeCheckID + "' to depend on; try again in a moment"}
		case holdsNodeCheck(rep.View):
			return waited, nil
		}
		waited, req.MinIndex, req.MaxWait = true, max(rep.View.Index, 1), wait
	}
}

func holdsNodeCheck(v *catalog.View) bool {
	return slices.ContainsFunc(v.Checks, func(ch *catalog.Check) bool { return ch.CheckID == catalog.NodeCheckID })
}

// decode reads the session of a request; without a body all is as by default.
func (a sessionsAPI) decode(c *call) (*catalog.Session, error) {
	s := &catalog.Session{
		Node: a.cfg.Self.NodeName, LockDelay: catalog.DefaultLockDelay, Behavior: catalog.SessionRelease,
		NodeChecks: []string{catalog.NodeCheckID},
	}
	b, err := c.body()
	if err != nil || len(bytes.TrimSpace(b)) == 0 {
		return s, err
	}
	given, err := catalog.ParseJSON(b)
	if err != nil {
		return nil, decodeError(b, err)
	}
	var body sessionBody
	if err := decodeInto(given, &body); err != nil {
		return nil, err
	}
	if err := refuseForeign(body.Datacenter, a.cfg.Self.Datacenter); err != nil {
		return nil, err
	}
	if err := body.tenancy.check(); err != nil {
		return nil, err
	}
	if s.LockDelay, err = lockDelay(body.LockDelay, s.LockDelay); err != nil {
		return nil, err
	}
	s.Name, s.TTL = body.Name, body.TTL
	s.Node, s.Behavior = orString(body.Node, s.Node), orString(body.Behavior, s.Behavior)
	switch {
	case hasKey(given, "nodechecks"):
		s.NodeChecks = body.NodeChecks
	case hasKey(given, "checks"):
		s.NodeChecks = body.Checks
	}
	for _, ch := range body.ServiceChecks {
		s.ServiceChecks = append(s.ServiceChecks, catalog.SessionCheck(ch))
	}
	return s, nil
}

// hasKey tells whether an object has a key, in any spelling of case and underscores.
func hasKey(object map[string]any, key string) bool {
	for k := range object {
		if strings.EqualFold(strings.ReplaceAll(k, "_", ""), key) {
			return true
		}
	}
	return false
}

// lockDelay takes a duration in words, or a number: of nanoseconds, or, when it is
// below 1000, of seconds.
func lockDelay(v any, def time.Duration) (time.Duration, error) {
	switch x := v.(type) {
	case nil:
		return def, nil
	case string:
		d, err := time.ParseDuration(x)
		if err != nil {
			return 0, badRequest("Request decode failed: LockDelay: " + err.Error())
		}
		return d, nil
	case float64:
		d := time.Duration(min(max(x, 0), float64(catalog.MaxSessionTTL))) // more than that is capped anyway
		if d < 1000 {
			d *= time.Second
		}
		return d, nil
	default:
		return 0, badRequest("Request decode failed: LockDelay is neither a duration nor a number")
	}
}

func (a sessionsAPI) destroy(c *call) (any, error) {
	id, err := c.need("session")
	if err != nil {
		return nil, err
	}
	if _, err := c.apply(a.cfg.Servers, &catalog.DestroySessions{IDs: []string{id}}); err != nil {
		return nil, err
	}
	return true, nil
}

func (a sessionsAPI) renew(c *call) (any, error) {
	id, err := c.need("session")
	if err != nil {
		return nil, err
	}
	rep, err := a.cfg.Servers.RenewSession(c.ctx(), &wire.RenewSessionRequest{Token: c.token, ID: id})
	if err != nil {
		return nil, err
	}
	return viewSessions([]*catalog.Session{rep.Session}), nil
}

func (a sessionsAPI) info(c *call) (any, error) {
	id, err := c.need("session")
	if err != nil {
		return nil, err
	}
	return a.read(c, catalog.Query{Kind: catalog.QuerySession, Name: id})
}

func (a sessionsAPI) ofNode(c *call) (any, error) {
	node, err := c.need("node name")
	if err != nil {
		return nil, err
	}
	return a.read(c, catalog.Query{Kind: catalog.QueryNodeSessions, Name: node})
}

func (a sessionsAPI) list(c *call) (any, error) {
	return a.read(c, catalog.Query{Kind: catalog.QuerySessions})
}

func (a sessionsAPI) read(c *call, q catalog.Query) (any, error) {
	v, err := a.q.read(c, q)
	if err != nil {
		return nil, err
	}
	return a.q.share(c, v, func() (any, error) { return viewSessions(v.Sessions), nil })
}
