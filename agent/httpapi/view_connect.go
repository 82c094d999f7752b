package httpapi

import (
	"strings"
	"time"

	"github.com/weftmesh/weft/catalog"
)

// rootsView is the set of certificate authorities that are trusted.
type rootsView struct {
	ActiveRootID string
	TrustDomain  string
	Roots        []rootView
}

// rootView is a root without anything of its key.
type rootView struct {
	ID                  string
	Name                string
	SerialNumber        uint64
	SigningKeyID        string
	ExternalTrustDomain string
	NotBefore           time.Time
	NotAfter            time.Time
	RootCert            string
	IntermediateCerts   []string
	Active              bool
	PrivateKeyType      string
	PrivateKeyBits      int
	CreateIndex         uint64
	ModifyIndex         uint64
}

func viewRoots(v *catalog.View) rootsView {
	out := rootsView{Roots: []rootView{}}
	if v.CAConfig != nil && v.CAConfig.ClusterID != "" {
		out.TrustDomain = catalog.TrustDomain(v.CAConfig.ClusterID)
	}
	for _, r := range v.Roots {
		if r.Active {
			out.ActiveRootID = r.ID
		}
		intermediates := r.IntermediateCerts
		if len(intermediates) == 0 {
			intermediates = nil
		}
		out.Roots = append(out.Roots, rootView{
			ID: r.ID, Name: r.Name, SerialNumber: r.SerialNumber, SigningKeyID: r.SigningKeyID,
			ExternalTrustDomain: r.ExternalTrustDomain, NotBefore: r.NotBefore, NotAfter: r.NotAfter,
			RootCert: r.RootCert, IntermediateCerts: intermediates, Active: r.Active,
			PrivateKeyType: r.PrivateKeyType, PrivateKeyBits: r.PrivateKeyBits,
			CreateIndex: r.CreateIndex, ModifyIndex: r.ModifyIndex,
		})
	}
	return out
}

// rootsPEM is every trusted root, one after the other.
func rootsPEM(v *catalog.View) []byte {
	var b strings.Builder
	for _, r := range v.Roots {
		b.WriteString(strings.TrimRight(r.RootCert, "\n") + "\n")
	}
	return []byte(b.String())
}

// caConfigView is the configuration of the certificate authority, without secrets.
type caConfigView struct {
	Provider                 string
	Config                   map[string]any
	State                    map[string]string
	ForceWithoutCrossSigning bool
	CreateIndex              uint64
	ModifyIndex              uint64
}

func viewCAConfig(c *catalog.CAConfig) caConfigView {
	v := caConfigView{
		Provider: c.Provider, Config: make(map[string]any, len(c.Config)),
		ForceWithoutCrossSigning: c.ForceWithoutCrossSigning, CreateIndex: c.CreateIndex, ModifyIndex: c.ModifyIndex,
	}
	for k, val := range c.Config {
		switch strings.ToLower(strings.ReplaceAll(k, "_", "")) {
		case "privatekey", "token", "tlsclientkey":
			// Keys go into the authority and never come out of it.
		default:
			v.Config[k] = val
		}
	}
	return v
}

// leafView is a certificate, with its key only where the caller asked for one.
type leafView struct {
	SerialNumber  string
	CertPEM       string
	PrivateKeyPEM string `json:",omitempty"`
	Service       string
	ServiceURI    string
	ValidAfter    time.Time
	ValidBefore   time.Time
	CreateIndex   uint64
	ModifyIndex   uint64
}

func viewLeaf(l *catalog.Leaf, key string) leafView {
	return leafView{
		SerialNumber: l.SerialNumber, CertPEM: l.CertPEM, PrivateKeyPEM: key, Service: l.Service, ServiceURI: l.ServiceURI,
		ValidAfter: l.ValidAfter, ValidBefore: l.ValidBefore, CreateIndex: l.CreateIndex, ModifyIndex: l.ModifyIndex,
	}
}
