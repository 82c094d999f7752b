package identity

import (
	"errors"
	"fmt"
	"net/url"
	"strings"
	"unicode"
	"unicode/utf8"
)

// ErrInvalidID is wrapped by every error about an ID that is not acceptable.
var ErrInvalidID = errors.New("invalid SPIFFE ID")

const (
	scheme = "spiffe"
	// maxURI bounds an ID; SPIFFE asks that at least 2048 bytes be supported.
	maxURI = 2048
	// partition is the optional prefix that Consul Enterprise writes.
	partition = "/ap/default"
)

// ID is one of ServiceID, AgentID, ServerID, ServerNodeID, GatewayID and SigningID. Values are
// comparable: two IDs are the same identity exactly when they are equal.
type ID interface {
	// Domain is the trust domain, "<uuid>.consul".
	Domain() string
	// URI is the ID as it stands in a certificate.
	URI() *url.URL
	// String is URI as text, the only accepted spelling.
	String() string
	// Validate says why no certificate can carry this ID.
	Validate() error
}

// ServiceID names a service: spiffe://<td>/ns/default/dc/<dc>/svc/<service>.
type ServiceID struct{ TrustDomain, Datacenter, Service string }

// AgentID names the agent of a node: spiffe://<td>/agent/client/dc/<dc>/id/<node>.
type AgentID struct{ TrustDomain, Datacenter, Node string }

// ServerID names the servers of a datacenter: spiffe://<td>/agent/server/dc/<dc>.
type ServerID struct{ TrustDomain, Datacenter string }

// ServerNodeID names one server: spiffe://<td>/agent/server/dc/<dc>/id/<node>.
type ServerNodeID struct{ TrustDomain, Datacenter, Node string }

// GatewayID names the mesh gateways of a datacenter: spiffe://<td>/gateway/mesh/dc/<dc>.
type GatewayID struct{ TrustDomain, Datacenter string }

// SigningID names a certificate authority: spiffe://<td>.
type SigningID struct{ TrustDomain string }

// Domain implements ID.
func (id ServiceID) Domain() string { return id.TrustDomain }

// Domain implements ID.
func (id AgentID) Domain() string { return id.TrustDomain }

// Domain implements ID.
func (id ServerID) Domain() string { return id.TrustDomain }

// Domain implements ID.
func (id ServerNodeID) Domain() string { return id.TrustDomain }

// Domain implements ID.
func (id GatewayID) Domain() string { return id.TrustDomain }

// Domain implements ID.
func (id SigningID) Domain() string { return id.TrustDomain }

// URI implements ID.
func (id ServiceID) URI() *url.URL {
	return uri(id.TrustDomain, "/ns/default/dc/"+id.Datacenter+"/svc/"+id.Service)
}

// URI implements ID.
func (id AgentID) URI() *url.URL {
	return uri(id.TrustDomain, "/agent/client/dc/"+id.Datacenter+"/id/"+id.Node)
}

// URI implements ID.
func (id ServerID) URI() *url.URL { return uri(id.TrustDomain, "/agent/server/dc/"+id.Datacenter) }

// URI implements ID.
func (id ServerNodeID) URI() *url.URL {
	return uri(id.TrustDomain, "/agent/server/dc/"+id.Datacenter+"/id/"+id.Node)
}

// URI implements ID.
func (id GatewayID) URI() *url.URL { return uri(id.TrustDomain, "/gateway/mesh/dc/"+id.Datacenter) }

// URI implements ID.
func (id SigningID) URI() *url.URL { return uri(id.TrustDomain, "") }

// String implements ID.
func (id ServiceID) String() string { return id.URI().String() }

// String implements ID.
func (id AgentID) String() string { return id.URI().String() }

// String implements ID.
func (id ServerID) String() string { return id.URI().String() }

// String implements ID.
func (id ServerNodeID) String() string { return id.URI().String() }

// String implements ID.
func (id GatewayID) String() string { return id.URI().String() }

// String implements ID.
func (id SigningID) String() string { return id.URI().String() }

// Validate implements ID. Services whose names hold a slash, a control character
// or the like are legal in the catalog and can have no identity, as in Consul.
func (id ServiceID) Validate() error {
	return validate(id, field{"datacenter", id.Datacenter}, field{"service", id.Service})
}

// Validate implements ID.
func (id AgentID) Validate() error {
	return validate(id, field{"datacenter", id.Datacenter}, field{"node", id.Node})
}

// Validate implements ID.
func (id ServerID) Validate() error { return validate(id, field{"datacenter", id.Datacenter}) }

// Validate implements ID.
func (id ServerNodeID) Validate() error {
	return validate(id, field{"datacenter", id.Datacenter}, field{"node", id.Node})
}

// Validate implements ID.
func (id GatewayID) Validate() error { return validate(id, field{"datacenter", id.Datacenter}) }

// Validate implements ID.
func (id SigningID) Validate() error { return validate(id) }

// SNI is the server name that a client sends to reach the service:
// "<service>.default.<dc>.internal.<trust domain>". It only routes, it proves
// nothing. Empty when the service's name cannot stand in a host name.
func (id ServiceID) SNI() string {
	name := strings.ToLower(id.Service + ".default." + id.Datacenter + sniSuffix(id.TrustDomain))
	if len(name) > 253 {
		return ""
	}
	for label := range strings.SplitSeq(name, ".") {
		if !validLabel(label) || len(label) > 63 {
			return ""
		}
	}
	return name
}

func sniSuffix(trustDomain string) string { return ".internal." + trustDomain }

// Parse reads an ID of any kind, strictly: one spelling per ID, nothing repaired.
// The prefix /ap/default, which Consul Enterprise writes, is accepted and dropped.
func Parse(s string) (ID, error) {
	if len(s) > maxURI {
		return nil, fmt.Errorf("%w: %d bytes long, at most %d are allowed", ErrInvalidID, len(s), maxURI)
	}
	rest, ok := strings.CutPrefix(s, scheme+"://")
	if !ok {
		return nil, refuse(s, "it does not start with "+scheme+"://")
	}
	domain, path := rest, ""
	if i := strings.IndexByte(rest, '/'); i >= 0 {
		domain, path = rest[:i], rest[i:]
	}
	if err := validDomain(domain); err != nil {
		return nil, refuse(s, err.Error())
	}
	trimmed := path
	if after, found := strings.CutPrefix(path, partition); found && strings.HasPrefix(after, "/") {
		trimmed = after
	}
	id, err := parsePath(domain, trimmed)
	if err != nil {
		return nil, refuse(s, err.Error())
	}
	// Any other way to write the same ID (needless escapes, a query, a fragment)
	// differs from the one that we write.
	if want := id.String(); want != scheme+"://"+domain+trimmed {
		return nil, refuse(s, fmt.Sprintf("it is another spelling of %q", want))
	}
	return id, nil
}

// ParseServiceID reads the ID of a service and refuses every other kind.
func ParseServiceID(s string) (ServiceID, error) {
	id, err := Parse(s)
	if err != nil {
		return ServiceID{}, err
	}
	svc, ok := id.(ServiceID)
	if !ok {
		return ServiceID{}, refuse(s, "it does not name a service")
	}
	return svc, nil
}

func parsePath(domain, path string) (ID, error) {
	if path == "" {
		return SigningID{domain}, nil
	}
	seg := strings.Split(path[1:], "/")
	for i, raw := range seg {
		dec, err := url.PathUnescape(raw)
		if err != nil {
			return nil, errors.New("a path segment is badly escaped")
		}
		if err := validSegment(dec); err != nil {
			return nil, err
		}
		seg[i] = dec
	}
	switch {
	case len(seg) == 6 && seg[0] == "ns" && seg[2] == "dc" && seg[4] == "svc":
		if seg[1] != "default" {
			return nil, errors.New("namespaces other than default do not exist here")
		}
		return ServiceID{domain, seg[3], seg[5]}, nil
	case len(seg) == 6 && seg[0] == "agent" && seg[1] == "client" && seg[2] == "dc" && seg[4] == "id":
		return AgentID{domain, seg[3], seg[5]}, nil
	case len(seg) == 4 && seg[0] == "agent" && seg[1] == "server" && seg[2] == "dc":
		return ServerID{domain, seg[3]}, nil
	case len(seg) == 6 && seg[0] == "agent" && seg[1] == "server" && seg[2] == "dc" && seg[4] == "id":
		return ServerNodeID{domain, seg[3], seg[5]}, nil
	case len(seg) == 4 && seg[0] == "gateway" && seg[1] == "mesh" && seg[2] == "dc":
		return GatewayID{domain, seg[3]}, nil
	}
	return nil, errors.New("its path is of no known kind")
}

func uri(domain, path string) *url.URL { return &url.URL{Scheme: scheme, Host: domain, Path: path} }

type field struct{ noun, value string }

func validate(id ID, fields ...field) error {
	if err := validDomain(id.Domain()); err != nil {
		return fmt.Errorf("%w: %w", ErrInvalidID, err)
	}
	for _, f := range fields {
		if err := validSegment(f.value); err != nil {
			return fmt.Errorf("%w: %s %s: %w", ErrInvalidID, f.noun, quote(f.value), err)
		}
	}
	if n := len(id.String()); n > maxURI {
		return fmt.Errorf("%w: %d bytes long, at most %d are allowed", ErrInvalidID, n, maxURI)
	}
	return nil
}

func validDomain(d string) error {
	if d == "" {
		return errors.New("the trust domain is empty")
	}
	if len(d) > 255 {
		return errors.New("the trust domain is longer than 255 bytes")
	}
	for label := range strings.SplitSeq(d, ".") {
		if !validLabel(label) {
			return fmt.Errorf("%s is no trust domain: lower-case letters, digits, '-', '_' and single dots only", quote(d))
		}
	}
	return nil
}

func validLabel(l string) bool {
	for i := range len(l) {
		c := l[i]
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' && c != '_' {
			return false
		}
	}
	return l != ""
}

func validSegment(s string) error {
	switch {
	case s == "":
		return errors.New("a path segment is empty")
	case s == "." || s == "..":
		return errors.New("a path segment is . or ..")
	case strings.ContainsAny(s, `/\`):
		return errors.New("a slash cannot stand in an identity")
	case !utf8.ValidString(s):
		return errors.New("it is not UTF-8")
	case strings.ContainsFunc(s, unicode.IsControl):
		return errors.New("control characters cannot stand in an identity")
	}
	return nil
}

func refuse(s, why string) error { return fmt.Errorf("%w %s: %s", ErrInvalidID, quote(s), why) }

// quote makes foreign text safe and short enough for a log line.
func quote(s string) string {
	const most = 200
	if len(s) > most {
		return fmt.Sprintf("%q…", s[:most])
	}
	return fmt.Sprintf("%q", s)
}
