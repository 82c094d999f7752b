package local

import (
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"github.com/weftmesh/weft/catalog"
)

// sidecarSuffix makes the ID and the name of a sidecar from those of its service.
const sidecarSuffix = "-sidecar-proxy"

// serviceFrom gives the service that a valid registration describes, with defaults set.
func serviceFrom(reg *catalog.ServiceRegistration) *catalog.Service {
	svc := &catalog.Service{
		Kind:              reg.Kind,
		ID:                serviceID(reg),
		Service:           reg.Name,
		Tags:              orEmpty(slices.Clone(reg.Tags)),
		Address:           reg.Address,
		TaggedAddresses:   taggedAddresses(reg),
		Meta:              orEmptyMap(maps.Clone(reg.Meta)),
		Port:              reg.Port,
		Ports:             slices.Clone(reg.Ports),
		SocketPath:        reg.SocketPath,
		Weights:           &catalog.Weights{Passing: 1, Warning: 1},
		EnableTagOverride: reg.EnableTagOverride,
		Locality:          reg.Locality,
	}
	if reg.Weights != nil {
		*svc.Weights = *reg.Weights
	}
	if reg.Proxy != nil {
		svc.Proxy = *reg.Proxy
		svc.Proxy.Upstreams = slices.Clone(reg.Proxy.Upstreams)
		for i := range svc.Proxy.Upstreams {
			u := &svc.Proxy.Upstreams[i]
			if u.DestinationType == "" {
				u.DestinationType = upstreamService
			}
			if u.MeshGateway.Mode == "" {
				u.MeshGateway.Mode = svc.Proxy.MeshGateway.Mode
			}
		}
	}
	if reg.Connect != nil {
		svc.Connect.Native = reg.Connect.Native
	}
	return svc
}

func serviceID(reg *catalog.ServiceRegistration) string {
	if reg.ID != "" {
		return reg.ID
	}
	return reg.Name
}

// taggedAddresses adds the families of a literal address to those given.
func taggedAddresses(reg *catalog.ServiceRegistration) map[string]catalog.ServiceAddress {
	out := maps.Clone(reg.TaggedAddresses)
	ip, err := netip.ParseAddr(reg.Address)
	if err != nil {
		return out
	}
	family := "_ipv6"
	if ip.Is4() || ip.Is4In6() {
		family = "_ipv4"
	}
	if out == nil {
		out = map[string]catalog.ServiceAddress{}
	}
	for _, side := range []string{"lan", "wan"} {
		if _, given := out[side+family]; !given {
			out[side+family] = catalog.ServiceAddress{Address: reg.Address, Port: reg.Port}
		}
	}
	return out
}

// sidecarFrom gives the registration of the sidecar that reg asks for. Its port is
// still 0 where reg does not set one.
func sidecarFrom(reg *catalog.ServiceRegistration) *catalog.ServiceRegistration {
	side := *reg.Connect.SidecarService
	side.Kind = catalog.KindConnectProxy
	side.ID = serviceID(reg) + sidecarSuffix
	if side.Name == "" {
		side.Name = reg.Name + sidecarSuffix
	}
	if side.Tags == nil {
		side.Tags = reg.Tags
	}
	if side.Meta == nil {
		side.Meta = reg.Meta
	}
	if side.Token == "" {
		side.Token = reg.Token
	}
	if side.Weights == nil {
		side.Weights = reg.Weights // an instance takes its share of traffic through its sidecar
	}
	if side.Locality == nil {
		side.Locality = reg.Locality
	}
	proxy := catalog.ConnectProxy{}
	if side.Proxy != nil {
		proxy = *side.Proxy
	}
	if proxy.DestinationServiceName == "" {
		proxy.DestinationServiceName = reg.Name
	}
	if proxy.DestinationServiceID == "" {
		proxy.DestinationServiceID = serviceID(reg)
	}
	if proxy.LocalServiceSocketPath == "" && proxy.LocalServicePort == 0 {
		proxy.LocalServiceSocketPath = reg.SocketPath
	}
	if proxy.LocalServiceSocketPath == "" {
		if proxy.LocalServiceAddress == "" {
			proxy.LocalServiceAddress = "127.0.0.1"
		}
		if proxy.LocalServicePort == 0 {
			proxy.LocalServicePort = mainPort(reg)
		}
	}
	side.Proxy = &proxy
	return &side
}

// mainPort is the port of a service, the default one where it has several.
func mainPort(reg *catalog.ServiceRegistration) int {
	for _, p := range reg.Ports {
		if p.Default {
			return p.Port
		}
	}
	if len(reg.Ports) > 0 {
		return reg.Ports[0].Port
	}
	return reg.Port
}

// sidecarChecks are the checks of a sidecar that sets none of its own. One that is
// critical for longer than dead, when that is set, deregisters it.
func sidecarChecks(side *catalog.ServiceRegistration, dead time.Duration) []*catalog.CheckDefinition {
	host := side.Address
	if host == "" {
		host = "127.0.0.1"
	}
	return []*catalog.CheckDefinition{
		{
			Name:     listenerCheck,
			TCP:      net.JoinHostPort(host, strconv.Itoa(side.Port)),
			Interval: 10 * time.Second,

			DeregisterCriticalServiceAfter: dead,
		},
		{
			Name:         "Connect Sidecar Aliasing " + side.Proxy.DestinationServiceID,
			AliasService: side.Proxy.DestinationServiceID,

			DeregisterCriticalServiceAfter: dead,
		},
	}
}

// listenerCheck says whether a sidecar listens.
const listenerCheck = "Connect Sidecar Listening"

// definitions lists the checks of a registration, with IDs and names.
func definitions(reg *catalog.ServiceRegistration) []*catalog.CheckDefinition {
	given := make([]*catalog.CheckDefinition, 0, len(reg.Checks)+1)
	if reg.Check != nil && !isEmpty(reg.Check) {
		given = append(given, reg.Check)
	}
	given = append(given, reg.Checks...)
	id := serviceID(reg)
	out := make([]*catalog.CheckDefinition, 0, len(given))
	for i, d := range given {
		if d == nil {
			continue
		}
		def := *d
		def.ServiceID = id
		def.CheckID = checkID(d)
		if def.CheckID == "" {
			def.CheckID = "service:" + id
			if len(given) > 1 {
				def.CheckID += ":" + strconv.Itoa(i+1)
			}
		}
		def.ID = ""
		if def.Name == "" {
			def.Name = fmt.Sprintf("Service '%s' check", reg.Name)
		}
		if def.Token == "" {
			def.Token = reg.Token
		}
		out = append(out, &def)
	}
	return out
}

func checkID(d *catalog.CheckDefinition) string {
	if d.CheckID != "" {
		return d.CheckID
	}
	return d.ID
}

func orEmpty(l []string) []string {
	if l == nil {
		return []string{}
	}
	return l
}

func orEmptyMap(m map[string]string) map[string]string {
	if m == nil {
		return map[string]string{}
	}
	return m
}
