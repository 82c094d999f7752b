package httpapi

import (
	"crypto/tls"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/catalog/acl"
)

// certificatesAPI says when certificates end.
type certificatesAPI struct {
	cfg Config
	q   *queries
}

func (a certificatesAPI) routes() []Route {
	return []Route{{
		Method: http.MethodGet, Path: "/v1/agent/metrics/certificates",
		Summary:    "when the certificates end that this agent knows: of its proxies, of the mesh's authorities, of HTTPS; the first to end first",
		Permission: Permission{acl.Read, acl.Agent, ""}, MaxBody: bodyNone, params: paramsToken, local: true, handle: a.list,
	}}
}

// certificateView says when a certificate ends.
type certificateView struct {
	Kind          string // "root", "leaf" or "https"
	Name          string
	Serial        string
	NotBefore     time.Time
	NotAfter      time.Time
	RemainingDays float64
	Error         string `json:",omitempty"` // why it was not renewed
}

func (a certificatesAPI) list(c *call) (any, error) {
	out := []certificateView{}
	if a.cfg.Proxies != nil {
		for _, p := range a.cfg.Proxies.Status() {
			if cert := p.Certificate; cert != nil {
				out = append(out, certificateView{Kind: "leaf", Name: p.Proxy, Serial: cert.Serial, NotBefore: cert.NotBefore, NotAfter: cert.NotAfter, Error: cert.Error})
			}
		}
	}
	v, err := a.q.peek(c, catalog.Query{Kind: catalog.QueryRoots})
	if err != nil {
		return nil, err
	}
	for _, r := range v.Roots {
		out = append(out, certificateView{Kind: "root", Name: r.Name, Serial: strconv.FormatUint(r.SerialNumber, 10), NotBefore: r.NotBefore, NotAfter: r.NotAfter})
	}
	if len(a.cfg.TLSAddrs) > 0 {
		own, err := tls.LoadX509KeyPair(a.cfg.TLS.CertFile, a.cfg.TLS.KeyFile)
		if err != nil {
			return nil, fmt.Errorf("the certificate of the HTTP API: %w", err)
		}
		out = append(out, certificateView{
			Kind: "https", Name: own.Leaf.Subject.CommonName, Serial: own.Leaf.SerialNumber.String(),
			NotBefore: own.Leaf.NotBefore, NotAfter: own.Leaf.NotAfter,
		})
	}
	for i := range out {
		out[i].RemainingDays = max(0, time.Until(out[i].NotAfter).Hours()/24)
	}
	slices.SortStableFunc(out, func(a, b certificateView) int { return a.NotAfter.Compare(b.NotAfter) })
	return out, nil
}
