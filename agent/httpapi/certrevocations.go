package httpapi

import (
	"net/http"
	"time"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/catalog/acl"
	"github.com/weftmesh/weft/catalog/wire"
)

// certRevocationsAPI withdraws trust in certificates and identities. Consul has none.
type certRevocationsAPI struct {
	cfg Config
	q   *queries
}

const pathCertRevocations = "/v1/connect/ca/revocations"

func (a certRevocationsAPI) routes() []Route {
	read, write := Permission{acl.Read, acl.Operator, ""}, Permission{acl.Write, acl.Operator, ""}
	named := []Param{
		{"serial", "the serial of a certificate, in hex"},
		{"uri", "a SPIFFE ID; either this or serial is required"},
		paramWaitEnforced,
	}
	return []Route{
		{
			Method: http.MethodGet, Path: pathCertRevocations, Summary: "the certificates and the identities that are revoked",
			Params: []Param{paramFilter}, Permission: read, MaxBody: bodyNone, params: paramsRead, handle: a.list,
		},
		{
			Method: http.MethodPut, Path: pathCertRevocations, Summary: "revoke a certificate or an identity; its connections are closed on both sides",
			Body: "JSON: Serial or URI, Description", Params: []Param{paramWaitEnforced},
			Permission: write, MaxBody: bodySmall, params: paramsWrite, handle: a.revoke,
		},
		{
			Method: http.MethodDelete, Path: pathCertRevocations, Summary: "trust a certificate or an identity again",
			Params: named, Permission: write, MaxBody: bodyNone, params: paramsWrite, handle: a.restore,
		},
	}
}

// certRevocationView is what is revoked.
type certRevocationView struct {
	Serial      string
	URI         string
	Description string
	RevokedAt   time.Time
	CreateIndex uint64
	ModifyIndex uint64
}

func (a certRevocationsAPI) list(c *call) (any, error) {
	f, err := newFilter[certRevocationView](c.opts.filter)
	if err != nil {
		return nil, err
	}
	v, err := a.q.read(c, catalog.Query{Kind: catalog.QueryCertRevocations})
	if err != nil {
		return nil, err
	}
	out := make([]certRevocationView, 0, len(v.RevokedCerts))
	for _, r := range v.RevokedCerts {
		out = append(out, certRevocationView{
			Serial: r.Serial, URI: r.URI, Description: r.Description, RevokedAt: r.RevokedAt,
			CreateIndex: r.CreateIndex, ModifyIndex: r.ModifyIndex,
		})
	}
	return f.slice(out)
}

func (a certRevocationsAPI) revoke(c *call) (any, error) {
	var body certRevocationView
	if err := c.decode(&body); err != nil {
		return nil, err
	}
	r := catalog.CertRevocation{Serial: body.Serial, URI: body.URI, Description: body.Description, RevokedAt: time.Now().UTC()}
	r.Normalize()
	return c.policyChange(a.cfg, &catalog.SetCertRevocation{Revocation: r}, wire.EnforcedRequest{Revocations: true})
}

func (a certRevocationsAPI) restore(c *call) (any, error) {
	r := catalog.CertRevocation{Serial: c.query.Get("serial"), URI: c.query.Get("uri")}
	r.Normalize()
	cmd := &catalog.DeleteCertRevocation{Serial: r.Serial, URI: r.URI}
	return c.policyChange(a.cfg, cmd, wire.EnforcedRequest{Revocations: true})
}

// revokedFor names the revocation that a certificate falls under, "" for none.
func revokedFor(v *catalog.View, uri, serial string) string {
	shown := catalog.CertRevocation{Serial: serial}
	shown.Normalize()
	for _, r := range v.RevokedCerts {
		switch {
		case r.URI != "" && r.URI == uri:
			return uri
		case r.Serial != "" && r.Serial == shown.Serial:
			return "serial " + r.Serial
		}
	}
	return ""
}
