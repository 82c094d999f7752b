package catalog

import "reflect"

// Name is the name of a service: the unit of identity and policy.
type Name = string

// Wildcard stands for any service in an intention.
const Wildcard Name = "*"

// ServiceKind tells ordinary services from proxies and gateways.
type ServiceKind string

// Kinds of services.
const (
	KindTypical            ServiceKind = ""
	KindConnectProxy       ServiceKind = "connect-proxy"
	KindMeshGateway        ServiceKind = "mesh-gateway"
	KindTerminatingGateway ServiceKind = "terminating-gateway"
	KindIngressGateway     ServiceKind = "ingress-gateway"
	KindAPIGateway         ServiceKind = "api-gateway"
)

// Service is one instance of a service on a node: a running copy. Its ID is
// unique on its node.
type Service struct {
	Kind              ServiceKind `weft:",omitempty"`
	ID                string      `weft:",omitempty"`
	Service           Name        `weft:",omitempty"`
	Tags              []string
	Address           string `weft:",omitempty"` // empty: the node's
	TaggedAddresses   map[string]ServiceAddress
	Meta              map[string]string
	Port              int `weft:",omitempty"`
	Ports             []ServicePort
	SocketPath        string         `weft:",omitempty"`
	Weights           *Weights       `weft:",omitempty"`
	EnableTagOverride bool           `weft:",omitempty"`
	Proxy             ConnectProxy   `weft:",omitempty"`
	Connect           ServiceConnect `weft:",omitempty"`
	Locality          *Locality      `weft:",omitempty"`
	RaftIndex
}

// ServiceAddress is one of the tagged addresses of a service.
type ServiceAddress struct {
	Address string
	Port    int
}

// ServicePort is a named port of a multi-port service.
type ServicePort struct {
	Name    string
	Port    int
	Default bool
}

// Weights say how much traffic an instance takes while passing and while warning.
type Weights struct {
	Passing int
	Warning int
}

// ServiceConnect says how an instance takes part in the mesh.
type ServiceConnect struct {
	// Native services speak the mesh's mTLS themselves.
	Native bool
	// SidecarService, in a registration only, asks for a sidecar beside the service.
	SidecarService *ServiceRegistration
}

// ConnectProxy is what a service of kind connect-proxy stands in for.
type ConnectProxy struct {
	DestinationServiceName Name              `weft:",omitempty"`
	DestinationServiceID   string            `weft:",omitempty"`
	LocalServiceAddress    string            `weft:",omitempty"`
	LocalServicePort       int               `weft:",omitempty"`
	LocalServiceSocketPath string            `weft:",omitempty"`
	Mode                   string            `weft:",omitempty"` // "", "direct" or "transparent"
	TransparentProxy       *TransparentProxy `weft:",omitempty"`
	// Config is opaque to the catalog; the proxy reads the keys that it knows.
	Config        map[string]any
	Upstreams     []Upstream
	MeshGateway   MeshGatewayConfig `weft:",omitempty"`
	Expose        ExposeConfig
	AccessLogs    *AccessLogsConfig `weft:",omitempty"`
	MutualTLSMode string            `weft:",omitempty"`
	// EnvoyExtensions is accepted for compatibility and has no effect.
	EnvoyExtensions []EnvoyExtension
}

// IsZero tells whether nothing is said.
func (p *ConnectProxy) IsZero() bool { return p == nil || reflect.ValueOf(p).Elem().IsZero() }

// TransparentProxy configures traffic capture.
type TransparentProxy struct {
	OutboundListenerPort int  `json:",omitempty"`
	DialedDirectly       bool `json:",omitempty"`
}

// MeshGatewayConfig says through which gateway traffic to other clusters goes.
type MeshGatewayConfig struct {
	Mode string `json:",omitempty"` // "", "none", "local" or "remote"
}

// AccessLogsConfig configures the access log of a proxy.
type AccessLogsConfig struct {
	Enabled             bool   `json:",omitempty"`
	DisableListenerLogs bool   `json:",omitempty"`
	Type                string `json:",omitempty"`
	Path                string `json:",omitempty"`
	JSONFormat          string `json:",omitempty"`
	TextFormat          string `json:",omitempty"`
}

// EnvoyExtension is carried for compatibility only.
type EnvoyExtension struct {
	Name          string
	Required      bool
	Arguments     map[string]any
	ConsulVersion string
	EnvoyVersion  string
}

// ExposeConfig opens chosen HTTP paths of a service past its proxy, in plaintext.
type ExposeConfig struct {
	Checks bool         `json:",omitempty"`
	Paths  []ExposePath `json:",omitempty"`
}

// ExposePath is one exposed path.
type ExposePath struct {
	ListenerPort    int    `json:",omitempty"`
	Path            string `json:",omitempty"`
	LocalPathPort   int    `json:",omitempty"`
	Protocol        string `json:",omitempty"`
	ParsedFromCheck bool   `json:",omitempty"`
}

// Upstream is a destination that a service declares it dials, and where on this
// host its listener is.
type Upstream struct {
	DestinationType      string // "service" (default) or "prepared_query"
	DestinationNamespace string
	DestinationPartition string
	DestinationPeer      string
	DestinationName      Name
	DestinationPort      string // named port of a multi-port service
	Datacenter           string
	LocalBindAddress     string // default 127.0.0.1
	LocalBindPort        int
	LocalBindSocketPath  string
	LocalBindSocketMode  string
	Config               map[string]any
	MeshGateway          MeshGatewayConfig
	CentrallyConfigured  bool
}

// ServiceRegistration is what a host says of a service when it registers it: the
// body of PUT /v1/agent/service/register, a `service` block of a file, or a
// sidecar_service stanza.
type ServiceRegistration struct {
	Kind              ServiceKind
	ID                string
	Name              Name
	Tags              []string
	Address           string
	TaggedAddresses   map[string]ServiceAddress
	Meta              map[string]string
	Port              int
	Ports             []ServicePort
	SocketPath        string
	Check             *CheckDefinition
	Checks            []*CheckDefinition
	Weights           *Weights
	Token             string
	EnableTagOverride bool
	Proxy             *ConnectProxy
	Connect           *ServiceConnect
	Locality          *Locality
	Namespace         string // refused unless empty or "default"
	Partition         string // refused unless empty or "default"
}

// Instance is a service with its node and the checks of both: what a reader of
// health wants to know.
type Instance struct {
	Node    *Node
	Service *Service
	Checks  []*Check
}

// ServiceSummary is a service as a list of services shows it. Tags are those of
// all its instances, sorted.
type ServiceSummary struct {
	Name      Name
	Tags      []string
	Instances int
	// Nodes names the nodes that have an instance, so that a reader can filter by node.
	Nodes []string
	// Addresses are those that instances have of their own, sorted, for reverse names.
	Addresses []string
}

// NodeState is the whole of what an agent says of its host: an idempotent statement.
type NodeState struct {
	Node     *Node
	Services []*Service
	Checks   []*Check
}
