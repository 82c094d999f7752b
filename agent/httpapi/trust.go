package httpapi

import (
	"cmp"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/catalog/acl"
	"github.com/weftmesh/weft/connect/enroll"
)

// trustAPI makes join tokens, and revokes tokens and nodes.
type trustAPI struct {
	cfg Config
	q   *queries
}

func (a trustAPI) routes() []Route {
	read, write := Permission{acl.Read, acl.Operator, ""}, Permission{acl.Write, acl.Operator, ""}
	change := func(method, path, summary string, f func(*call) (any, error)) Route {
		return Route{Method: method, Path: path, Summary: summary, Permission: write, MaxBody: bodyNone, params: paramsWrite, handle: f}
	}
	token := change(http.MethodPut, "/v1/internal/join-token", "make a join token; on the hosts of servers only", a.mint)
	token.Params, token.local, token.params = []Param{{"ttl", "how long it is good; 24h when it is not set"}}, true, paramsToken
	revoke := change(http.MethodPut, "/v1/internal/revocation/token/:id", "revoke a join token", a.revokeToken)
	revoke.Params = []Param{{"expires", "when the token ends by itself, RFC 3339; a year from now when it is not set"}}
	return []Route{
		token,
		{
			Method: http.MethodGet, Path: "/v1/internal/revocations", Summary: "join tokens and nodes that were revoked",
			Permission: read, MaxBody: bodyNone, params: paramsRead, handle: a.list,
		},
		revoke,
		change(http.MethodPut, "/v1/internal/revocation/node/:node", "revoke a node, by its name or ID: its connections are closed and it does not come back", a.revokeNode),
		change(http.MethodDelete, "/v1/internal/revocation/node/:node", "allow a node that was revoked, by its name or ID", a.allowNode),
	}
}

// joinTokenView is a new token. It is shown once.
type joinTokenView struct {
	ID        string
	Token     string
	ClusterID string
	Expires   time.Time
}

func (a trustAPI) mint(c *call) (any, error) {
	if a.cfg.Mint == nil {
		return nil, &httpError{http.StatusForbidden, "Join tokens are made on the hosts of servers only: ask there, or run weft join-token -secret-file where the cluster secret is"}
	}
	var ttl time.Duration
	if text := c.query.Get("ttl"); text != "" {
		var err error
		if ttl, err = time.ParseDuration(text); err != nil || ttl <= 0 {
			return nil, badRequest(fmt.Sprintf("Invalid ttl %q: a duration like 24h is expected", text))
		}
	}
	t, err := a.cfg.Mint(ttl)
	switch {
	case errors.Is(err, enroll.ErrToken):
		return nil, badRequest(err.Error())
	case err != nil:
		return nil, err
	}
	a.cfg.Logger.Info("a join token was made", "peer", c.r.RemoteAddr, "id", t.ID, "expires", t.Expires)
	return joinTokenView{ID: t.ID, Token: t.Text(), ClusterID: t.ClusterID, Expires: t.Expires}, nil
}

// graceOfRevoked is how much longer than a token its revocation is kept: servers take the
// token a little longer than it says, and what is forgotten is judged by the clock of
// whoever revokes something else.
const graceOfRevoked = 24 * time.Hour

// revocationView is a revocation as clients see it.
type revocationView struct {
	Kind    string
	ID      string
	Node    string `json:",omitempty"`
	At      time.Time
	Expires *time.Time `json:",omitempty"`

	CreateIndex, ModifyIndex uint64
}

func (a trustAPI) list(c *call) (any, error) {
	v, err := a.q.read(c, catalog.Query{Kind: catalog.QueryRevocations})
	if err != nil {
		return nil, err
	}
	out := make([]revocationView, 0, len(v.Revocations))
	for _, r := range v.Revocations {
		view := revocationView{Kind: r.Kind, ID: r.ID, Node: r.Node, At: r.At, CreateIndex: r.CreateIndex, ModifyIndex: r.ModifyIndex}
		if !r.Expires.IsZero() {
			view.Expires = &r.Expires
		}
		out = append(out, view)
	}
	return out, nil
}

func (a trustAPI) revokeToken(c *call) (any, error) {
	id, err := c.need("the ID of the token")
	if err != nil {
		return nil, err
	}
	now := time.Now().UTC().Truncate(time.Second)
	r := catalog.Revocation{Kind: catalog.RevokedToken, ID: strings.ToLower(id), At: now, Expires: now.Add(enroll.MaxTTL)}
	if text := c.query.Get("expires"); text != "" {
		if r.Expires, err = time.Parse(time.RFC3339, text); err != nil || r.Expires.Year() > 9998 { // JSON has no year 10000
			return nil, badRequest(fmt.Sprintf("Invalid expires %q: a time like 2026-01-02T15:04:05Z is expected", text))
		}
	}
	r.Expires = r.Expires.Add(graceOfRevoked)
	return a.revoke(c, r)
}

func (a trustAPI) revokeNode(c *call) (any, error) {
	name, err := c.need("the name or ID of the node")
	if err != nil {
		return nil, err
	}
	v, err := a.q.peek(c, catalog.Query{Kind: catalog.QueryNodes})
	if err != nil {
		return nil, err
	}
	now := time.Now().UTC().Truncate(time.Second)
	named := func(n *catalog.Node) (string, string) { return n.Node, n.ID }
	found := meant(name, v.Nodes, named)
	switch {
	case len(found) > 1:
		return nil, ambiguous(name, "nodes of the catalog have", found, named)
	case len(found) == 1 && found[0].ID == "":
		return nil, catalog.Conflictf("node %q: the catalog has no ID for it, so it is no host with an agent; one that is not there can be revoked by its ID", name)
	case len(found) == 1:
		return a.revoke(c, catalog.Revocation{Kind: catalog.RevokedNode, ID: strings.ToLower(found[0].ID), Node: found[0].Node, At: now})
	case isNodeID(name): // one that the catalog has forgotten may still have its certificate
		return a.revoke(c, catalog.Revocation{Kind: catalog.RevokedNode, ID: strings.ToLower(name), At: now})
	}
	return nil, catalog.NotFoundf("node %q: no node of the catalog has this name or ID; one that is not there can be revoked by its ID", name)
}

func isNodeID(text string) bool { return text != "" && catalog.ValidNodeID(text) == nil }

// meant gives the rows that an operator means by a name or an ID. Agents may register
// hosts under any name: what looks like an ID is never a name, and a name that is the
// same but for its case does not stand for another.
func meant[T any](text string, rows []T, named func(T) (name, id string)) (found []T) {
	which := func(same func(name, id string) bool) []T {
		var out []T
		for _, r := range rows {
			if same(named(r)) {
				out = append(out, r)
			}
		}
		return out
	}
	if isNodeID(text) {
		return which(func(_, id string) bool { return strings.EqualFold(id, text) })
	}
	if found = which(func(name, _ string) bool { return name == text }); len(found) > 0 {
		return found
	}
	return which(func(name, _ string) bool { return strings.EqualFold(name, text) })
}

// ambiguous lists those among whom an operator has to choose.
func ambiguous[T any](text, have string, found []T, named func(T) (name, id string)) error {
	const most = 8
	var list []string
	for _, r := range found[:min(len(found), most)] {
		name, id := named(r)
		list = append(list, fmt.Sprintf("%s (%s)", name, cmp.Or(id, "without an ID")))
	}
	if len(found) > most {
		list = append(list, fmt.Sprintf("%d more", len(found)-most))
	}
	return catalog.Conflictf("node %q: %d %s this name: %s; name one by its ID", text, len(found), have, strings.Join(list, ", "))
}

func (a trustAPI) revoke(c *call, r catalog.Revocation) (any, error) {
	if _, err := c.apply(a.cfg.Servers, &catalog.Revoke{Revocation: r}); err != nil {
		return nil, err
	}
	return revocationView{Kind: r.Kind, ID: r.ID, Node: r.Node, At: r.At}, nil
}

func (a trustAPI) allowNode(c *call) (any, error) {
	name, err := c.need("the name or ID of the node")
	if err != nil {
		return nil, err
	}
	v, err := a.q.peek(c, catalog.Query{Kind: catalog.QueryRevocations})
	if err != nil {
		return nil, err
	}
	nodes := slices.DeleteFunc(slices.Clone(v.Revocations), func(r *catalog.Revocation) bool { return r.Kind != catalog.RevokedNode })
	named := func(r *catalog.Revocation) (string, string) { return r.Node, r.ID }
	found := meant(name, nodes, named)
	switch len(found) {
	case 0:
		return nil, catalog.NotFoundf("node %q: no revoked node has this name or ID", name)
	case 1:
		r := found[0]
		if _, err := c.apply(a.cfg.Servers, &catalog.Allow{Kind: r.Kind, ID: r.ID}); err != nil {
			return nil, err
		}
		return revocationView{Kind: r.Kind, ID: r.ID, Node: r.Node, At: r.At}, nil
	default:
		return nil, ambiguous(name, "revoked nodes had", found, named)
	}
}
