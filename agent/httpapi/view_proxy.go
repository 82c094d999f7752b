package httpapi

import "github.com/weftmesh/weft/catalog"

// catalogProxyView is a proxy as the catalog shows it.
type catalogProxyView struct {
	DestinationServiceName string `json:",omitempty"`
	DestinationServiceID   string `json:",omitempty"`
	LocalServiceAddress    string `json:",omitempty"`
	LocalServicePort       int    `json:",omitempty"`
	LocalServiceSocketPath string `json:",omitempty"`
	Mode                   string
	TransparentProxy       *transparentProxyView `json:",omitempty"`
	Config                 map[string]any        `json:",omitempty" bexpr:"-"`
	Upstreams              []catalogUpstreamView `json:",omitempty"`
	MeshGateway            meshGatewayView
	Expose                 exposeView
	AccessLogs             *catalog.AccessLogsConfig `json:",omitempty"`
	MutualTLSMode          string                    `json:",omitempty"`
	EnvoyExtensions        []catalog.EnvoyExtension  `json:",omitempty" bexpr:"-"`
}

// agentProxyView is a proxy as the agent shows its own: it leaves out more of what
// is empty.
type agentProxyView struct {
	DestinationServiceName string                `json:",omitempty"`
	DestinationServiceID   string                `json:",omitempty"`
	LocalServiceAddress    string                `json:",omitempty"`
	LocalServicePort       int                   `json:",omitempty"`
	LocalServiceSocketPath string                `json:",omitempty"`
	Mode                   string                `json:",omitempty"`
	TransparentProxy       *transparentProxyView `json:",omitempty"`
	Config                 map[string]any        `json:",omitempty" bexpr:"-"`
	Upstreams              []agentUpstreamView   `json:",omitempty"`
	MeshGateway            meshGatewayView
	Expose                 exposeView
	AccessLogs             *catalog.AccessLogsConfig `json:",omitempty"`
	MutualTLSMode          string                    `json:",omitempty"`
	EnvoyExtensions        []catalog.EnvoyExtension  `json:",omitempty" bexpr:"-"`
}

type transparentProxyView struct {
	OutboundListenerPort int  `json:",omitempty"`
	DialedDirectly       bool `json:",omitempty"`
}

type meshGatewayView struct {
	Mode string `json:",omitempty"`
}

type exposeView struct {
	Checks bool             `json:",omitempty"`
	Paths  []exposePathView `json:",omitempty"`
}

type exposePathView struct {
	ListenerPort    int    `json:",omitempty"`
	Path            string `json:",omitempty"`
	LocalPathPort   int    `json:",omitempty"`
	Protocol        string `json:",omitempty"`
	ParsedFromCheck bool
}

// catalogUpstreamView and agentUpstreamView differ in what they leave out.
type catalogUpstreamView struct {
	DestinationType      string
	DestinationNamespace string `json:",omitempty"`
	DestinationPartition string `json:",omitempty"`
	DestinationPeer      string `json:",omitempty"`
	DestinationName      string
	DestinationPort      string `json:",omitempty"`
	Datacenter           string
	LocalBindAddress     string         `json:",omitempty"`
	LocalBindPort        int            `json:",omitempty"`
	LocalBindSocketPath  string         `json:",omitempty"`
	LocalBindSocketMode  string         `json:",omitempty"`
	Config               map[string]any `json:",omitempty" bexpr:"-"`
	MeshGateway          meshGatewayView
	CentrallyConfigured  bool `json:",omitempty" bexpr:"-"`
}

type agentUpstreamView struct {
	DestinationType      string `json:",omitempty"`
	DestinationNamespace string `json:",omitempty"`
	DestinationPartition string `json:",omitempty"`
	DestinationPeer      string `json:",omitempty"`
	DestinationName      string
	DestinationPort      string         `json:",omitempty"`
	Datacenter           string         `json:",omitempty"`
	LocalBindAddress     string         `json:",omitempty"`
	LocalBindPort        int            `json:",omitempty"`
	LocalBindSocketPath  string         `json:",omitempty"`
	LocalBindSocketMode  string         `json:",omitempty"`
	Config               map[string]any `json:",omitempty" bexpr:"-"`
	MeshGateway          meshGatewayView
	CentrallyConfigured  bool `json:",omitempty" bexpr:"-"`
}

func viewCatalogProxy(p *catalog.ConnectProxy) catalogProxyView {
	v := catalogProxyView{
		DestinationServiceName: p.DestinationServiceName,
		DestinationServiceID:   p.DestinationServiceID,
		LocalServiceAddress:    p.LocalServiceAddress,
		LocalServicePort:       p.LocalServicePort,
		LocalServiceSocketPath: p.LocalServiceSocketPath,
		Mode:                   p.Mode,
		TransparentProxy:       (*transparentProxyView)(p.TransparentProxy),
		Config:                 p.Config,
		MeshGateway:            meshGatewayView(p.MeshGateway),
		Expose:                 exposeView{Checks: p.Expose.Checks},
		AccessLogs:             p.AccessLogs,
		MutualTLSMode:          p.MutualTLSMode,
		EnvoyExtensions:        p.EnvoyExtensions,
	}
	for _, e := range p.Expose.Paths {
		v.Expose.Paths = append(v.Expose.Paths, exposePathView(e))
	}
	for i := range p.Upstreams {
		u := &p.Upstreams[i]
		v.Upstreams = append(v.Upstreams, catalogUpstreamView{
			DestinationType: u.DestinationType, DestinationNamespace: u.DestinationNamespace,
			DestinationPartition: u.DestinationPartition, DestinationPeer: u.DestinationPeer,
			DestinationName: u.DestinationName, DestinationPort: u.DestinationPort, Datacenter: u.Datacenter,
			LocalBindAddress: u.LocalBindAddress, LocalBindPort: u.LocalBindPort,
			LocalBindSocketPath: u.LocalBindSocketPath, LocalBindSocketMode: u.LocalBindSocketMode,
			Config: u.Config, MeshGateway: meshGatewayView(u.MeshGateway), CentrallyConfigured: u.CentrallyConfigured,
		})
	}
	return v
}

func viewAgentProxy(p *catalog.ConnectProxy) *agentProxyView {
	c := viewCatalogProxy(p)
	v := &agentProxyView{
		DestinationServiceName: c.DestinationServiceName,
		DestinationServiceID:   c.DestinationServiceID,
		LocalServiceAddress:    c.LocalServiceAddress,
		LocalServicePort:       c.LocalServicePort,
		LocalServiceSocketPath: c.LocalServiceSocketPath,
		Mode:                   c.Mode,
		TransparentProxy:       c.TransparentProxy,
		Config:                 c.Config,
		MeshGateway:            c.MeshGateway,
		Expose:                 c.Expose,
		AccessLogs:             c.AccessLogs,
		MutualTLSMode:          c.MutualTLSMode,
		EnvoyExtensions:        c.EnvoyExtensions,
	}
	for _, u := range c.Upstreams {
		v.Upstreams = append(v.Upstreams, agentUpstreamView(u))
	}
	return v
}
