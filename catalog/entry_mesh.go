package catalog

import (
	"fmt"
	"slices"
	"strings"
)

// Mesh is what holds for the whole mesh. There is one, and it has no name of its own.
type Mesh struct {
	TransparentProxy MeshTransparentProxy
	// AllowEnablingPermissiveMutualTLS lets other entries set MutualTLSMode to permissive.
	AllowEnablingPermissiveMutualTLS bool              `json:",omitempty"`
	ValidateClusters                 bool              `json:",omitempty" doc:"has no effect"`
	TLS                              *MeshTLS          `json:",omitempty"`
	HTTP                             *MeshHTTP         `json:",omitempty"`
	Peering                          *MeshPeering      `json:",omitempty"`
	Meta                             map[string]string `json:",omitempty"`
	RaftIndex
}

// MeshTransparentProxy is for proxies that capture traffic.
type MeshTransparentProxy struct {
	MeshDestinationsOnly bool
}

// MeshTLS is the TLS between proxies, by direction.
type MeshTLS struct {
	Incoming *MeshDirectionalTLS `json:",omitempty"`
	Outgoing *MeshDirectionalTLS `json:",omitempty"`
}

// MeshDirectionalTLS is that of one direction.
type MeshDirectionalTLS struct {
	TLSMinVersion string   `json:",omitempty"`
	TLSMaxVersion string   `json:",omitempty"`
	CipherSuites  []string `json:",omitempty"`
}

// MeshHTTP is for the requests that proxies take.
type MeshHTTP struct {
	SanitizeXForwardedClientCert bool
	Incoming                     *MeshDirectionalHTTP `json:",omitempty"`
}

// MeshDirectionalHTTP is that of one direction.
type MeshDirectionalHTTP struct {
	RequestNormalization *RequestNormalization `json:",omitempty"`
}

// RequestNormalization says how paths are made comparable before rules see them.
type RequestNormalization struct {
	InsecureDisablePathNormalization bool   `json:",omitempty"`
	MergeSlashes                     bool   `json:",omitempty"`
	PathWithEscapedSlashesAction     string `json:",omitempty"`
	HeadersWithUnderscoresAction     string `json:",omitempty"`
}

// MeshPeering is for clusters that trust each other.
type MeshPeering struct {
	PeerThroughMeshGateways bool `json:",omitempty"`
}

// MeshName is the name of the mesh entry.
const MeshName = "mesh"

// EntryKind implements ConfigEntry.
func (*Mesh) EntryKind() string { return KindMesh }

// EntryName implements ConfigEntry.
func (*Mesh) EntryName() string { return MeshName }

// Raft implements ConfigEntry.
func (e *Mesh) Raft() *RaftIndex { return &e.RaftIndex }

// Normalize implements ConfigEntry.
func (*Mesh) Normalize() {}

// Validate implements ConfigEntry.
func (e *Mesh) Validate() error {
	if t := e.TLS; t != nil {
		if t.Incoming != nil {
			if err := validTLS(t.Incoming.TLSMinVersion, t.Incoming.TLSMaxVersion, t.Incoming.CipherSuites); err != nil {
				return Invalidf("error in incoming TLS configuration: %w", err)
			}
		}
		if t.Outgoing != nil {
			if err := validTLS(t.Outgoing.TLSMinVersion, t.Outgoing.TLSMaxVersion, t.Outgoing.CipherSuites); err != nil {
				return Invalidf("error in outgoing TLS configuration: %w", err)
			}
		}
	}
	if e.HTTP == nil || e.HTTP.Incoming == nil || e.HTTP.Incoming.RequestNormalization == nil {
		return nil
	}
	n := e.HTTP.Incoming.RequestNormalization
	if v := n.PathWithEscapedSlashesAction; !slices.Contains(slashActions, v) {
		return Invalidf("no matching PathWithEscapedSlashesAction value found for %s, please specify one of [%s]", v, strings.Join(slashActions[1:], ", "))
	}
	if v := n.HeadersWithUnderscoresAction; !slices.Contains(underscoreActions, v) {
		return Invalidf("no matching HeadersWithUnderscoresAction value found for %s, please specify one of [%s]", v, strings.Join(underscoreActions[1:], ", "))
	}
	return nil
}

var (
	slashActions      = []string{"", "IMPLEMENTATION_SPECIFIC_DEFAULT", "KEEP_UNCHANGED", "REJECT_REQUEST", "UNESCAPE_AND_REDIRECT", "UNESCAPE_AND_FORWARD"}
	underscoreActions = []string{"", "ALLOW", "REJECT_REQUEST", "DROP_HEADER"}
	tlsVersions       = []string{"TLS_AUTO", "TLSv1_0", "TLSv1_1", "TLSv1_2", "TLSv1_3"}
	// cipherSuites are the suites that entries may name, as IANA does or as OpenSSL
	// does. They matter to TLS 1.2 only.
	cipherSuites = []string{
		"TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256", "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256",
		"TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256", "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256",
		"TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA", "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA",
		"TLS_RSA_WITH_AES_128_GCM_SHA256", "TLS_RSA_WITH_AES_128_CBC_SHA",
		"TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384", "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384",
		"TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA", "TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA",
		"TLS_RSA_WITH_AES_256_GCM_SHA384", "TLS_RSA_WITH_AES_256_CBC_SHA",
	}
	opensslSuites = []string{
		"ECDHE-ECDSA-AES128-GCM-SHA256", "ECDHE-ECDSA-CHACHA20-POLY1305", "ECDHE-RSA-AES128-GCM-SHA256", "ECDHE-RSA-CHACHA20-POLY1305",
		"ECDHE-ECDSA-AES128-SHA", "ECDHE-RSA-AES128-SHA", "AES128-GCM-SHA256", "AES128-SHA", "ECDHE-ECDSA-AES256-GCM-SHA384",
		"ECDHE-RSA-AES256-GCM-SHA384", "ECDHE-ECDSA-AES256-SHA", "ECDHE-RSA-AES256-SHA", "AES256-GCM-SHA384", "AES256-SHA",
	}
)

func validTLS(lowest, highest string, suites []string) error {
	for _, v := range []string{lowest, highest} {
		if v != "" && !slices.Contains(tlsVersions, v) {
			return Invalidf("no matching TLS version found for %s, please specify one of [%s]", v, strings.Join(tlsVersions, ", "))
		}
	}
	low, high := slices.Index(tlsVersions, lowest), slices.Index(tlsVersions, highest)
	if low > 0 && high > 0 && low > high {
		return Invalidf("configuring max version %s less than the configured min version %s", highest, lowest)
	}
	if len(suites) == 0 {
		return nil
	}
	if lowest == "TLSv1_3" {
		return Invalidf("configuring CipherSuites is only applicable to connections negotiated with TLS 1.2 or earlier, TLSMinVersion is set to %s", lowest)
	}
	for _, s := range suites {
		if !slices.Contains(cipherSuites, s) && !slices.Contains(opensslSuites, s) {
			return Invalidf("unrecognized cipher suite %s, want one of %s", s, strings.Join(cipherSuites, ", "))
		}
	}
	return nil
}

// ExportedServices says which other clusters may see which services.
type ExportedServices struct {
	EntryHead
	Services []ExportedService
}

// ExportedService is one service, or the wildcard for all, and who may see it.
type ExportedService struct {
	Name      Name
	Namespace string            `json:",omitempty"`
	Consumers []ServiceConsumer `json:",omitempty"`
}

// ServiceConsumer is a cluster by the name that it has here.
type ServiceConsumer struct {
	Partition     string `json:",omitempty"`
	Peer          string `json:",omitempty"`
	SamenessGroup string `json:",omitempty"`
}

// ExportedServicesName is the only name of an exported-services entry.
const ExportedServicesName = "default"

// EntryKind implements ConfigEntry.
func (*ExportedServices) EntryKind() string { return KindExportedServices }

// Normalize implements ConfigEntry.
func (*ExportedServices) Normalize() {}

// Validate implements ConfigEntry.
func (e *ExportedServices) Validate() error {
	if e.Name == "" {
		return errNoName
	}
	if e.Name != ExportedServicesName {
		return Invalidf("exported-services Name must be %q", ExportedServicesName)
	}
	for i, s := range e.Services {
		at := fmt.Sprintf("Services[%d]", i)
		if s.Name == "" {
			return Invalidf("%s: service name cannot be empty", at)
		}
		if err := onlyDefaultTenancy(at, s.Namespace, ""); err != nil {
			return err
		}
		if err := validName(at+".Name", s.Name); err != nil {
			return err
		}
		if len(s.Consumers) == 0 {
			return Invalidf("%s: must have at least one consumer", at)
		}
		for j, c := range s.Consumers {
			where := fmt.Sprintf("%s.Consumers[%d]", at, j)
			switch {
			case c.SamenessGroup != "":
				return Invalidf("%s: sameness-groups are an enterprise-only feature", where)
			case c.Partition != "":
				return Invalidf("%s: partitions are an enterprise-only feature", where)
			case c.Peer == "":
				return Invalidf("%s: Peer is required", where)
			case c.Peer == Wildcard:
				return Invalidf("%s: exporting to all peers (wildcard) is not supported", where)
			}
		}
	}
	return nil
}
