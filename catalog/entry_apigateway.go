package catalog

import (
	"strings"
)

// APIGateway says what a gateway into the mesh listens on; routes bind to its listeners.
type APIGateway struct {
	EntryHead
	Listeners []APIGatewayListener
	TLS       *GatewayTLS         `json:",omitempty"`
	Defaults  *UpstreamLimits     `json:",omitempty"`
	ExtAuthz  *APIGatewayExtAuthz `json:",omitempty" doc:"has no effect"`
	Status    EntryStatus         `bexpr:"-"`
}

// APIGatewayExtAuthz is carried for compatibility.
type APIGatewayExtAuthz struct{ Enabled bool }

// APIGatewayListener is a port with a name.
type APIGatewayListener struct {
	Name                string
	Hostname            string
	Port                int
	Protocol            string
	TLS                 APIGatewayTLS
	Override            *APIGatewayPolicy `json:",omitempty"`
	Default             *APIGatewayPolicy `json:",omitempty"`
	MaxRequestHeadersKB *uint32           `json:",omitempty"`
}

// APIGatewayTLS is how a listener ends TLS.
type APIGatewayTLS struct {
	Certificates []ResourceReference
	SDS          *GatewayTLSSDS `json:",omitempty"`
	MaxVersion   string
	MinVersion   string
	CipherSuites []string
}

// APIGatewayPolicy asks requests for tokens of end users.
type APIGatewayPolicy struct {
	JWT *IntentionJWT `json:",omitempty"`
}

// ResourceReference names a config entry, or a part of one.
type ResourceReference struct {
	Kind        string
	Name        string
	SectionName string
	Namespace   string `json:",omitempty"`
	Partition   string `json:",omitempty"`
}

// EntryKind implements ConfigEntry.
func (*APIGateway) EntryKind() string { return KindAPIGatewayEntry }

// EntryStatus gives access to the status.
func (e *APIGateway) EntryStatus() *EntryStatus { return &e.Status }

// Normalize implements ConfigEntry.
func (e *APIGateway) Normalize() {
	for i := range e.Listeners {
		l := &e.Listeners[i]
		l.Protocol = strings.ToLower(l.Protocol)
		for j := range l.TLS.Certificates {
			if c := &l.TLS.Certificates[j]; c.Kind == "" {
				c.Kind = KindInlineCertificate
			}
		}
	}
	if t := e.TLS; t != nil && !t.Enabled && t.SDS == nil && t.TLSMinVersion == "" && t.TLSMaxVersion == "" && len(t.CipherSuites) == 0 {
		e.TLS = nil
	}
}

// Validate implements ConfigEntry.
func (e *APIGateway) Validate() error {
	if err := validEntryName(e.Name); err != nil {
		return err
	}
	names, ports := map[string]bool{}, map[int]string{}
	for i := range e.Listeners {
		l := &e.Listeners[i]
		if !isDashed(l.Name) {
			return Invalidf("listener name %q is invalid, must be at least 1 character and contain only letters, numbers, or dashes", l.Name)
		}
		if names[l.Name] {
			return Invalidf("found multiple listeners with the name %q", l.Name)
		}
		names[l.Name] = true
		if err := l.validate(); err != nil {
			return err
		}
		if p, used := ports[l.Port]; used && (p != l.Protocol || p == ProtocolTCP) {
			return Invalidf("listener %q: port %d is used by another listener; listeners share a port only with one HTTP protocol and different hostnames", l.Name, l.Port)
		}
		ports[l.Port] = l.Protocol
	}
	if err := e.TLS.validate(); err != nil {
		return err
	}
	if e.Defaults != nil {
		return e.Defaults.PassiveHealthCheck.validate("Defaults.PassiveHealthCheck")
	}
	return nil
}

func (l *APIGatewayListener) validate() error {
	switch l.Protocol {
	case ProtocolHTTP, ProtocolHTTP2, ProtocolGRPC, ProtocolTCP:
	default:
		return Invalidf("listener %q: unsupported listener protocol %q, must be one of 'tcp', 'http', 'http2' or 'grpc'", l.Name, l.Protocol)
	}
	if l.Port < 1 || l.Port > 65535 {
		return Invalidf("listener port %d not in the range 1-65535", l.Port)
	}
	if l.Hostname != "" {
		if !IsHTTP(l.Protocol) {
			return Invalidf("listener %q: hostname specification is only valid for http listeners", l.Name)
		}
		if err := validHost(l.Hostname); err != nil {
			return Invalidf("listener %q: %w", l.Name, err)
		}
	}
	if l.Override != nil || l.Default != nil {
		return Invalidf("listener %q: JWT policies of a gateway are an enterprise-only feature; remove Override and Default", l.Name)
	}
	if err := validTLS(l.TLS.MinVersion, l.TLS.MaxVersion, l.TLS.CipherSuites); err != nil {
		return err
	}
	for _, c := range l.TLS.Certificates {
		if c.Kind != KindInlineCertificate && c.Kind != KindFileSystemCertificate {
			return Invalidf("unsupported certificate kind: %q, must be '%s' or '%s'", c.Kind, KindInlineCertificate, KindFileSystemCertificate)
		}
		if c.Name == "" {
			return Invalidf("certificate reference must have a name")
		}
		if err := onlyDefaultTenancy("certificate "+c.Name, c.Namespace, c.Partition); err != nil {
			return err
		}
	}
	return nil
}

// TCPRoute leads the connections of a listener to a service.
type TCPRoute struct {
	EntryHead
	Parents  []ResourceReference
	Services []TCPRouteService
	Status   EntryStatus `bexpr:"-"`
}

// TCPRouteService is the service.
type TCPRouteService struct {
	Name      Name
	Namespace string             `json:",omitempty"`
	Partition string             `json:",omitempty"`
	TLS       *GatewayServiceTLS `json:",omitempty"`
	Limits    *UpstreamLimits    `json:",omitempty"`
}

// EntryKind implements ConfigEntry.
func (*TCPRoute) EntryKind() string { return KindTCPRoute }

// EntryStatus gives access to the status.
func (e *TCPRoute) EntryStatus() *EntryStatus { return &e.Status }

// Normalize implements ConfigEntry.
func (e *TCPRoute) Normalize() { normalizeParents(e.Parents) }

// Validate implements ConfigEntry.
func (e *TCPRoute) Validate() error {
	if err := validEntryName(e.Name); err != nil {
		return err
	}
	if len(e.Services) > 1 {
		return Invalidf("tcp-route currently only supports one service")
	}
	for _, s := range e.Services {
		if err := onlyDefaultTenancy("Service "+s.Name, s.Namespace, s.Partition); err != nil {
			return err
		}
	}
	return validParents(e.Parents)
}

func normalizeParents(in []ResourceReference) {
	for i := range in {
		if in[i].Kind == "" {
			in[i].Kind = KindAPIGatewayEntry
		}
	}
}

func validParents(in []ResourceReference) error {
	seen := map[ResourceReference]bool{}
	for _, p := range in {
		switch {
		case p.Kind != KindAPIGatewayEntry:
			return Invalidf("unsupported parent kind: %q, must be '%s'", p.Kind, KindAPIGatewayEntry)
		case p.Name == "":
			return Invalidf("parent must have a name")
		case seen[p]:
			return Invalidf("route parents must be unique: %s/%s %s is given more than once", p.Kind, p.Name, p.SectionName)
		}
		seen[p] = true
		if err := onlyDefaultTenancy("parent "+p.Name, p.Namespace, p.Partition); err != nil {
			return err
		}
	}
	return nil
}

func isDashed(s string) bool {
	return s != "" && strings.Trim(strings.ToLower(s), "abcdefghijklmnopqrstuvwxyz0123456789-") == ""
}

func validPort(field string, p int) error {
	if p < 1 || p > 65535 {
		return Invalidf("%s %d not in the range 1-65535", field, p)
	}
	return nil
}

func onlyDefaultTenancy(at, namespace, partition string) error {
	for _, t := range []struct{ what, v string }{{"Namespace", namespace}, {"Partition", partition}} {
		if t.v != "" && !strings.EqualFold(t.v, "default") {
			return Invalidf("%s.%s %q: there is only \"default\"", at, t.what, t.v)
		}
	}
	return nil
}
