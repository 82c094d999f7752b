package catalog

import (
	"fmt"
	"strings"
)

// TerminatingGateway lists the services outside of the mesh that a gateway speaks for.
type TerminatingGateway struct {
	EntryHead
	Services []LinkedService
}

// LinkedService is one of them, or the wildcard for all that are not in the mesh.
// Files are those of the gateway's host.
type LinkedService struct {
	Name                   Name   `json:",omitempty"`
	Namespace              string `json:",omitempty"`
	CAFile                 string `json:",omitempty"`
	CertFile               string `json:",omitempty"`
	KeyFile                string `json:",omitempty"`
	SNI                    string `json:",omitempty"`
	DisableAutoHostRewrite bool   `json:",omitempty"`
}

// EntryKind implements ConfigEntry.
func (*TerminatingGateway) EntryKind() string { return KindTerminatingGatewayEntry }

// Normalize implements ConfigEntry.
func (*TerminatingGateway) Normalize() {}

// Validate implements ConfigEntry.
func (e *TerminatingGateway) Validate() error {
	if err := validEntryName(e.Name); err != nil {
		return err
	}
	seen := map[Name]bool{}
	for _, s := range e.Services {
		if s.Name == "" {
			return Invalidf("Service name cannot be blank.") //nolint:staticcheck // the words clients know
		}
		if err := onlyDefaultTenancy("Service "+s.Name, s.Namespace, ""); err != nil {
			return err
		}
		if err := validName("Service", s.Name); err != nil {
			return err
		}
		if seen[s.Name] {
			return Invalidf("Service %q was specified more than once within a namespace", s.Name)
		}
		seen[s.Name] = true
		if (s.CertFile == "") != (s.KeyFile == "") {
			return Invalidf("Service %q must have a CertFile, CAFile, and KeyFile specified for TLS origination, or neither CertFile nor KeyFile", s.Name)
		}
		if s.CertFile != "" && s.CAFile == "" {
			return Invalidf("Service %q must have a CertFile, CAFile, and KeyFile specified for TLS origination", s.Name)
		}
	}
	return nil
}

// IngressGateway says what a gateway into the mesh listens on.
type IngressGateway struct {
	EntryHead
	TLS       GatewayTLS
	Defaults  *IngressServiceConfig `json:",omitempty"`
	Listeners []IngressListener
}

// IngressServiceConfig bounds what a gateway asks of each service.
type IngressServiceConfig struct {
	MaxConnections        uint32
	MaxPendingRequests    uint32
	MaxConcurrentRequests uint32
	PassiveHealthCheck    *PassiveHealthCheck `json:",omitempty"`
}

// GatewayTLS is how a gateway ends TLS.
type GatewayTLS struct {
	Enabled       bool
	SDS           *GatewayTLSSDS `json:",omitempty"`
	TLSMinVersion string         `json:",omitempty"`
	TLSMaxVersion string         `json:",omitempty"`
	CipherSuites  []string       `json:",omitempty"`
}

// GatewayTLSSDS is carried for compatibility.
type GatewayTLSSDS struct {
	ClusterName  string `json:",omitempty"`
	CertResource string `json:",omitempty"`
}

// GatewayServiceTLS is the TLS of one service of a listener.
type GatewayServiceTLS struct {
	SDS *GatewayTLSSDS `json:",omitempty"`
}

// IngressListener is a port and the services behind it.
type IngressListener struct {
	Port     int
	Protocol string
	TLS      *GatewayTLS `json:",omitempty"`
	Services []IngressService
}

// IngressService is a service, or the wildcard for all, and the hosts that lead to it.
type IngressService struct {
	Name                  Name
	Hosts                 []string
	Namespace             string               `json:",omitempty"`
	Partition             string               `json:",omitempty"`
	TLS                   *GatewayServiceTLS   `json:",omitempty"`
	RequestHeaders        *HTTPHeaderModifiers `json:",omitempty"`
	ResponseHeaders       *HTTPHeaderModifiers `json:",omitempty"`
	MaxConnections        uint32               `json:",omitempty"`
	MaxPendingRequests    uint32               `json:",omitempty"`
	MaxConcurrentRequests uint32               `json:",omitempty"`
	PassiveHealthCheck    *PassiveHealthCheck  `json:",omitempty"`
}

// EntryKind implements ConfigEntry.
func (*IngressGateway) EntryKind() string { return KindIngressGatewayEntry }

// Normalize implements ConfigEntry.
func (e *IngressGateway) Normalize() {
	for i := range e.Listeners {
		l := &e.Listeners[i]
		if l.Protocol == "" {
			l.Protocol = ProtocolTCP
		}
		l.Protocol = strings.ToLower(l.Protocol)
	}
}

// Validate implements ConfigEntry.
func (e *IngressGateway) Validate() error {
	if err := validEntryName(e.Name); err != nil {
		return err
	}
	if err := e.TLS.validate(); err != nil {
		return err
	}
	ports := map[int]bool{}
	for i := range e.Listeners {
		l := &e.Listeners[i]
		if ports[l.Port] {
			return Invalidf("port %d declared on two listeners", l.Port)
		}
		ports[l.Port] = true
		if err := l.validate(); err != nil {
			return err
		}
	}
	if e.Defaults != nil {
		return e.Defaults.PassiveHealthCheck.validate("Defaults.PassiveHealthCheck")
	}
	return nil
}

func (t *GatewayTLS) validate() error {
	if t == nil {
		return nil
	}
	return validTLS(t.TLSMinVersion, t.TLSMaxVersion, t.CipherSuites)
}

func (l *IngressListener) validate() error {
	if l.Protocol != ProtocolTCP && !IsHTTP(l.Protocol) {
		return Invalidf("protocol must be 'tcp', 'http', 'http2', or 'grpc'. '%s' is an unsupported protocol", l.Protocol)
	}
	if err := validPort("listener port", l.Port); err != nil {
		return err
	}
	if err := l.TLS.validate(); err != nil {
		return err
	}
	at := fmt.Sprintf("(listener on port %d)", l.Port)
	switch {
	case len(l.Services) == 0:
		return Invalidf("No service declared for listener with port %d", l.Port)
	case len(l.Services) > 1 && l.Protocol == ProtocolTCP:
		return Invalidf("Multiple services per listener are only supported for L7 protocols, 'http', 'grpc' and 'http2' %s", at)
	}
	seen, hosts := map[Name]bool{}, map[string]bool{}
	for _, s := range l.Services {
		if err := s.validate(l.Protocol, at); err != nil {
			return err
		}
		if seen[s.Name] {
			return Invalidf("Service %s cannot be added multiple times %s", s.Name, at)
		}
		seen[s.Name] = true
		for _, h := range s.Hosts {
			if hosts[h] {
				return Invalidf("Hosts must be unique within a specific listener %s", at)
			}
			hosts[h] = true
		}
	}
	return nil
}

func (s *IngressService) validate(protocol, at string) error {
	switch {
	case s.Name == "":
		return Invalidf("Service name cannot be blank %s", at)
	case s.Name == Wildcard && protocol != ProtocolHTTP:
		return Invalidf("Wildcard service name is only valid for protocol = 'http' %s", at)
	case s.Name == Wildcard && len(s.Hosts) > 0:
		return Invalidf("Associating hosts to a wildcard service is not supported %s", at)
	case len(s.Hosts) > 0 && protocol == ProtocolTCP:
		return Invalidf("Associating hosts to a service is not supported for the tcp protocol %s", at)
	case (s.RequestHeaders != nil || s.ResponseHeaders != nil) && protocol == ProtocolTCP:
		return Invalidf("request headers only valid for http, http2 or grpc: remove RequestHeaders and ResponseHeaders of %s %s", s.Name, at)
	}
	where := "Service " + s.Name
	if err := onlyDefaultTenancy(where, s.Namespace, s.Partition); err != nil {
		return err
	}
	if err := validName("Service", s.Name); err != nil {
		return err
	}
	for _, h := range s.Hosts {
		if err := validHost(h); err != nil {
			return Invalidf("%s %s: %w", where, at, err)
		}
	}
	if err := s.PassiveHealthCheck.validate(where + " PassiveHealthCheck"); err != nil {
		return err
	}
	if err := s.RequestHeaders.validate(where + " RequestHeaders"); err != nil {
		return err
	}
	return s.ResponseHeaders.validate(where + " ResponseHeaders")
}

// validHost takes host names, "*", and "*." before one, with a port perhaps.
func validHost(h string) error {
	if h == "*" {
		return nil
	}
	name := h
	if host, port, ok := strings.Cut(h, ":"); ok {
		if port == "" || strings.Trim(port, "0123456789") != "" {
			return fmt.Errorf("host %q must be a valid DNS hostname: %q is no port", h, port)
		}
		name = host
	}
	name = strings.TrimPrefix(name, "*.")
	if strings.Contains(name, "*") {
		return fmt.Errorf("host %q is not valid, a wildcard specifier is only allowed as the leftmost label", h)
	}
	if name == "" || len(name) > 253 {
		return fmt.Errorf("host %q must be a valid DNS hostname", h)
	}
	for label := range strings.SplitSeq(strings.ToLower(strings.TrimSuffix(name, ".")), ".") {
		if !isLabel(label) {
			return fmt.Errorf("host %q must be a valid DNS hostname", h)
		}
	}
	return nil
}
