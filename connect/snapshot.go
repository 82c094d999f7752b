package connect

import (
	"net/netip"
	"time"

	"github.com/weftmesh/weft/catalog"
)

// Snapshot is all that a Service knows of the world, as of one moment. It is
// immutable, holds no key, and reads the same from an agent in process, over HTTP
// or from a JSON file.
type Snapshot struct {
	// Index orders snapshots of one source; Proxy.Applied reports it.
	Index uint64

	// Service is the identity: the name that stands in the leaf certificate.
	Service     catalog.Name
	Datacenter  string
	TrustDomain string // "<uuid>.consul"
	// Roots are the certificate authorities trusted now, PEM, old ones included.
	Roots []string
	// SigningRoot is the one of Roots, PEM, that signs new leaves. A leaf of another
	// root is renewed at once. Empty: a leaf is renewed when Roots gains one.
	SigningRoot string `json:",omitempty"`

	// RevokedSerials and RevokedIDs are certificates, by the serials of leaves in hex
	// with colons, and SPIFFE IDs that are not trusted whoever vouches for them.
	RevokedSerials []string `json:",omitempty"`
	RevokedIDs     []string `json:",omitempty"`

	// Intentions can decide for Service as destination; Default where none matches.
	Intentions catalog.Intentions
	Default    catalog.Action

	// Local is where the application listens: "host:port", or the absolute path of
	// a Unix socket. Empty: nothing is accepted.
	Local string
	// Inbound is the address of the mTLS listener, "host:port". Empty: none.
	Inbound string

	Upstreams []Upstream
	// Expose are paths of the application past the mesh.
	Expose []Exposed `json:",omitempty"`
	// Capture is nil unless the host redirects connections of the application here.
	Capture *Capture `json:",omitempty"`
	Limits  Limits
	// Rest is nil while the instance serves as it should.
	Rest *Rest `json:",omitempty"`
	// AccessLog is nil where that of the ServiceConfig holds.
	AccessLog *AccessLog `json:",omitempty"`
}

// Upstream is a destination that Service dials through a loopback listener.
type Upstream struct {
	// Name is the destination service: the identity that the far end must show, unless
	// the instance says another.
	Name       catalog.Name
	Datacenter string
	// Listen is the loopback listener: "host:port", or the path of a Unix socket.
	// Empty: reached by Service.Dial only.
	Listen     string
	SocketMode string // octal permissions of a Unix socket, "" for 0600
	// Instances are the endpoints, in any order; unhealthy ones are left out.
	Instances      []Endpoint
	ConnectTimeout time.Duration // for each instance; 0 is 5 s
	// MaxConnections bounds the connections that are open, or being opened, to it; 0: no cap.
	MaxConnections int `json:",omitempty"`
	// Ejection says when an instance that fails is left alone.
	Ejection Ejection `json:",omitzero"`
	// Virtual are the addresses that stand for it where connections are captured.
	Virtual []netip.Addr `json:",omitempty"`
	// Implicit: nobody named it, and intentions let Service reach it.
	Implicit bool `json:",omitempty"`
}

// Endpoint is the mTLS address of one instance of an upstream.
type Endpoint struct {
	ID     string // instance ID, for logs
	Node   string
	Addr   string // host:port
	Status catalog.Status
	Weight int // 0 counts as 1
	// Service is the identity that it must show, where that is not the upstream's name.
	Service catalog.Name `json:",omitempty"`
	// Priority puts off instances: they are tried when none with a lower one can be reached.
	Priority int `json:",omitempty"`
	// Direct are the addresses by which a captured connection asks for this instance.
	Direct []netip.AddrPort `json:",omitempty"`
}

// Limits bound what a peer may cost. Zero fields take their defaults.
type Limits struct {
	HandshakeTimeout      time.Duration // 5 s
	MaxInboundConnections int           // 0: no cap
	DrainTimeout          time.Duration // 5 s: how long running connections may finish
	LocalConnectTimeout   time.Duration // 5 s, to the application
	// EndTimeout is DrainTimeout once the proxy ends, where that is another: another
	// process has taken over.
	EndTimeout time.Duration `json:"-"`
}
