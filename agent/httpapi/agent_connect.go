package httpapi

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/catalog/acl"
	"github.com/weftmesh/weft/catalog/wire"
	"github.com/weftmesh/weft/connect/identity"
)

// agentConnectAPI serves applications that speak the mesh's mTLS themselves, and
// proxies that run outside the agent.
type agentConnectAPI struct {
	cfg Config
	q   *queries
}

func (a agentConnectAPI) routes() []Route {
	const base = "/v1/agent/connect/"
	service := Permission{acl.Write, acl.Service, "service"}
	return []Route{
		{
			Method: http.MethodPost, Path: base + "authorize", Summary: "whether the holder of a certificate may connect to a service, and why",
			Body: "JSON: Target, ClientCertURI, ClientCertSerial", MaxBody: bodySmall,
			Permission: Permission{acl.Write, acl.Service, "Target"}, params: paramsToken, handle: a.authorize,
		},
		{
			Method: http.MethodGet, Path: base + "ca/roots", Summary: "the certificate authorities that the mesh trusts, as this agent knows them",
			MaxBody: bodyNone, params: paramsRead, handle: a.roots,
		},
		{
			Method: http.MethodGet, Path: base + "ca/leaf/:service", Summary: "a certificate for a service with a private key of its own; waits for the next with index",
			Permission: service, MaxBody: bodyNone, params: paramsRead, local: true, handle: a.leaf,
		},
		{
			Method: http.MethodPut, Path: base + "ca/sign/:service", Summary: "sign a certificate request for a service; the key stays with the caller",
			Body: "a certificate request in PEM, with the service's SPIFFE ID as its only name", MaxBody: bodySmall,
			Permission: service, params: paramsToken, local: true, handle: a.sign,
		},
	}
}

func (a agentConnectAPI) roots(c *call) (any, error) {
	v, err := a.q.read(c, catalog.Query{Kind: catalog.QueryRoots})
	if err != nil {
		return nil, err
	}
	c.setCached(true, 0) // the agent follows the roots for its own proxies
	return viewRoots(v), nil
}

func (a agentConnectAPI) leaf(c *call) (any, error) {
	if c.tail == "" {
		return nil, internal("URI must be either service, agent, server, or kind: the service name is missing")
	}
	if a.cfg.Leaves == nil {
		return nil, errNotOffered("certificates with keys")
	}
	leaf, key, err := a.nextLeaf(c)
	if err != nil {
		return nil, err
	}
	// Whoever holds the answer is the service: say who asked.
	a.cfg.Logger.Info("certificate with its key handed out", "service", c.tail, "addr", c.r.RemoteAddr, "id", leaf.SerialNumber)
	setIndex(c.w.Header(), leaf.ModifyIndex)
	c.setCached(false, 0)
	return viewLeaf(leaf, key), nil
}

// nextLeaf waits for a certificate newer than index, and gives the present one when
// the wait is over.
func (a agentConnectAPI) nextLeaf(c *call) (*catalog.Leaf, string, error) {
	if c.opts.index == 0 {
		ctx, cancel := context.WithTimeout(c.ctx(), readTimeout)
		defer cancel()
		return a.cfg.Leaves.Leaf(ctx, c.tail, c.token, 0)
	}
	ctx, cancel := context.WithTimeout(c.ctx(), c.opts.wait)
	defer cancel()
	leaf, key, err := a.cfg.Leaves.Leaf(ctx, c.tail, c.token, c.opts.index)
	if err == nil || !errors.Is(err, context.DeadlineExceeded) || c.ctx().Err() != nil {
		return leaf, key, err
	}
	now, stop := context.WithTimeout(c.ctx(), readTimeout)
	defer stop()
	return a.cfg.Leaves.Leaf(now, c.tail, c.token, 0)
}

func (a agentConnectAPI) sign(c *call) (any, error) {
	if c.tail == "" {
		return nil, badRequest("Missing service name")
	}
	b, err := c.body()
	if err != nil {
		return nil, err
	}
	der, err := identity.DecodeCSR(b)
	if err != nil {
		return nil, badRequest("Request decode failed: " + err.Error())
	}
	if err := a.checkRequest(der, c.tail); err != nil {
		return nil, err
	}
	rep, err := a.cfg.Servers.Sign(c.ctx(), &wire.SignRequest{Token: c.token, CSR: der})
	if err != nil {
		return nil, err
	}
	a.cfg.Logger.Info("certificate request signed", "service", c.tail, "addr", c.r.RemoteAddr, "id", rep.Leaf.SerialNumber)
	return viewLeaf(&rep.Leaf, ""), nil
}

// checkRequest refuses a request for another identity than that of the path, which
// is what the caller was authorised for. The authority checks the rest.
func (a agentConnectAPI) checkRequest(der []byte, service catalog.Name) error {
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return badRequest("Request decode failed: certificate request: " + err.Error())
	}
	if len(csr.URIs) != 1 {
		return badRequest(fmt.Sprintf("The certificate request names %d URIs, want the one SPIFFE ID of %s", len(csr.URIs), service))
	}
	id, err := identity.ParseServiceID(csr.URIs[0].String())
	if err != nil {
		return badRequest("The certificate request is for no service: " + err.Error())
	}
	if id.Service != service || id.Datacenter != a.cfg.Self.Datacenter {
		return badRequest(fmt.Sprintf("The certificate request is for %s, not for %s in %s", id, service, a.cfg.Self.Datacenter))
	}
	return nil
}

type authorizeBody struct {
	Target           catalog.Name
	ClientCertURI    string
	ClientCertSerial string
	Namespace        string
	Partition        string
}

type authorizeView struct {
	Authorized bool
	Reason     string
}

func (a agentConnectAPI) authorize(c *call) (any, error) {
	var body authorizeBody
	if err := c.decode(&body); err != nil {
		return nil, err
	}
	if err := (tenancy{Namespace: body.Namespace, Partition: body.Partition}).check(); err != nil {
		return nil, err
	}
	if body.Target == "" {
		return nil, badRequest("Target service must be specified")
	}
	id, err := identity.ParseServiceID(body.ClientCertURI)
	if err != nil {
		return nil, badRequest("ClientCertURI not a valid Connect identifier: " + err.Error())
	}
	if err := c.require(a.cfg, body.Target); err != nil {
		return nil, err
	}
	roots, err := a.q.peek(c, catalog.Query{Kind: catalog.QueryRoots})
	if err != nil {
		return nil, err
	}
	query := catalog.Query{Kind: catalog.QueryIntentionsDest, Name: body.Target}
	v, err := a.q.peek(c, query)
	if err != nil {
		return nil, err
	}
	c.setCached(a.q.seen.hit(query), 0)
	if td := viewRoots(roots).TrustDomain; td != "" && !strings.EqualFold(id.TrustDomain, td) {
		return authorizeView{false, "Identity from an external trust domain: " + id.TrustDomain}, nil
	}
	if what := revokedFor(roots, id.String(), body.ClientCertSerial); what != "" {
		return authorizeView{false, "Revoked: " + what}, nil
	}
	d := v.Intentions.Decide(catalog.Request{Source: id.Service, Destination: body.Target}, v.Default)
	if !d.Action.Allowed() {
		a.cfg.Logger.Log(c.ctx(), slog.LevelDebug, "authorize refused", "source", id.Service, "destination", body.Target, "rule", d.Rule.String())
	}
	return authorizeView{d.Action.Allowed(), authorizeReason(d)}, nil
}

// authorizeReason says why in Consul's words.
func authorizeReason(d catalog.Decision) string {
	if d.Rule.IsDefault() {
		return "Default behavior configured by ACLs"
	}
	return fmt.Sprintf("Matched L4 intention: default/%s => default/%s (Precedence: %d, Action: %s)",
		d.Rule.Source, d.Rule.Destination, d.Rule.Precedence, strings.ToUpper(string(d.Action)))
}
