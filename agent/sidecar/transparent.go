package sidecar

import (
	"cmp"
	"fmt"
	"math"
	"net/netip"
	"slices"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/connect"
)

// DefaultOutboundPort is where a proxy in transparent mode listens for what the host
// redirects to it, unless its registration or central configuration says another.
const DefaultOutboundPort = 15001

// modeTransparent is the mode of a proxy that needs no listener for each upstream.
const modeTransparent = "transparent"

// maxImplicit bounds the upstreams that nobody named.
const maxImplicit = 1024

func transparent(reg *catalog.Service) bool { return reg.Proxy.Mode == modeTransparent }

// reach is what the servers say of where a proxy in transparent mode may go. Nothing is
// captured before all of it is known, from a server or from before a restart.
type reach struct {
	rules     *catalog.View // intentions that can decide for the service as source
	addresses *catalog.View // virtual ones, of all services
	mesh      *catalog.View // the entry, or none

	// before is the last snapshot of an earlier run of the agent; nil once there is better.
	before *connect.Snapshot
	// decided is what they come to, while none of them changes.
	decided *destinations
}

// queries are those that answer it.
func reachQueries(service catalog.Name) []catalog.Query {
	return []catalog.Query{
		{Kind: catalog.QueryIntentionsSrc, Name: service},
		{Kind: catalog.QueryVirtualIPs},
		{Kind: catalog.QueryConfigEntry, Name: catalog.KindMesh, Sub: catalog.MeshName},
	}
}

// part is where the answer to q is kept, nil where it is no part of this.
func (r *reach) part(q catalog.Query) **catalog.View {
	switch q.Kind {
	case catalog.QueryIntentionsSrc:
		return &r.rules
	case catalog.QueryVirtualIPs:
		return &r.addresses
	case catalog.QueryConfigEntry:
		return &r.mesh
	default:
		return nil
	}
}

// learn takes an answer of the servers.
func (in *inputs) learn(q catalog.Query, v *catalog.View) {
	part := in.reach.part(q)
	if part == nil {
		in.world.learn(q, v)
		return
	}
	*part, in.decided = v, nil
	if in.reach.told() {
		in.before = nil
	}
}

// forget drops what was an answer to q.
func (in *inputs) forget(q catalog.Query) {
	if part := in.reach.part(q); part != nil {
		*part, in.before, in.decided = nil, nil, nil
		return
	}
	in.world.forget(q)
}

// told tells whether the servers have said all of it.
func (r *reach) told() bool { return r.rules != nil && r.addresses != nil && r.mesh != nil }

// destinations is what a reach comes to.
type destinations struct {
	virtual  map[catalog.Name][]netip.Addr
	implicit []catalog.Name // sorted
	capture  connect.Capture
	more     int // that are too many
}

// destinations must not be changed by who asks. It gives nil as long as they are not known.
func (in *inputs) destinations() *destinations {
	r := &in.reach
	switch {
	case !transparent(in.proxy):
		return nil
	case r.told():
		if r.decided == nil {
			r.decided = r.decide(in.proxy.Proxy.DestinationServiceName)
		}
		return r.decided
	case r.before == nil || r.before.Capture == nil:
		return nil
	}
	d := &destinations{virtual: map[catalog.Name][]netip.Addr{}, capture: *r.before.Capture}
	for i := range r.before.Upstreams {
		up := &r.before.Upstreams[i]
		d.virtual[up.Name] = up.Virtual
		if up.Implicit {
			d.implicit = append(d.implicit, up.Name)
		}
	}
	return d
}

// decide asks the one judge of each service that has a virtual address.
func (r *reach) decide(source catalog.Name) *destinations {
	d := &destinations{virtual: map[catalog.Name][]netip.Addr{}}
	for _, v := range r.addresses.VirtualIPs {
		addrs := v.Addrs()
		d.virtual[v.Service] = addrs
		verdict := r.rules.Intentions.Decide(catalog.Request{Source: source, Destination: v.Service}, r.rules.Default)
		switch {
		case !verdict.Action.Allowed():
			d.capture.Denied = append(d.capture.Denied, connect.DeniedUpstream{Name: v.Service, Virtual: addrs, Rule: verdict.Rule})
		case len(d.implicit) == maxImplicit:
			d.more++
		default:
			d.implicit = append(d.implicit, v.Service)
		}
	}
	for _, e := range r.mesh.Entries {
		if m, ok := e.ConfigEntry.(*catalog.Mesh); ok {
			d.capture.MeshOnly = m.TransparentProxy.MeshDestinationsOnly
		}
	}
	return d
}

// capture makes a snapshot take what the host redirects. Upstreams that the registration
// names are in it already, and are reached whatever intentions are known here: the far
// end judges.
func capture(in *inputs, snap *connect.Snapshot, p *problems) {
	d := in.destinations()
	if d == nil {
		return
	}
	port := DefaultOutboundPort
	if t := in.proxy.Proxy.TransparentProxy; t != nil {
		port = cmp.Or(t.OutboundListenerPort, port)
	}
	if port < 1 || port > math.MaxUint16 {
		p.add(fmt.Sprintf("TransparentProxy.OutboundListenerPort %d is no port; nothing is taken that the host redirects", port))
		return
	}
	if d.more > 0 {
		p.add(fmt.Sprintf("intentions let %s reach %d services more than the %d that a proxy in transparent mode has as upstreams; "+
			"name those that it needs in its upstreams, or allow less", snap.Service, d.more, maxImplicit))
	}
	named := map[catalog.Name]bool{}
	for i := range snap.Upstreams {
		up := &snap.Upstreams[i]
		if !named[up.Name] {
			up.Virtual, named[up.Name] = d.virtual[up.Name], true
		}
	}
	for _, name := range d.implicit {
		if named[name] {
			continue
		}
		// What is wrong with a service that nobody asked for is not for this proxy to say.
		instances, timeout := in.resolve(name, in.datacenter, &problems{})
		snap.Upstreams = append(snap.Upstreams, connect.Upstream{
			Name: name, Datacenter: in.datacenter, Instances: instances, ConnectTimeout: timeout,
			Virtual: d.virtual[name], Implicit: true,
		})
	}
	out := d.capture
	out.Port = port
	out.Denied = slices.DeleteFunc(slices.Clone(out.Denied), func(u connect.DeniedUpstream) bool { return named[u.Name] })
	snap.Capture = &out
}

// direct are the addresses by which an instance is asked for itself, where its proxy
// lets it: those of the application and of the proxy.
func direct(inst *catalog.Instance) []netip.AddrPort {
	t := inst.Service.Proxy.TransparentProxy
	if t == nil || !t.DialedDirectly {
		return nil
	}
	ip, err := netip.ParseAddr(cmp.Or(inst.Service.Address, inst.Node.Address))
	if err != nil {
		return nil // a name is not what a connection goes to
	}
	var out []netip.AddrPort
	for _, port := range []int{inst.Service.Proxy.LocalServicePort, inst.Service.Port} {
		if port > 0 && port <= math.MaxUint16 {
			out = append(out, netip.AddrPortFrom(ip.Unmap(), uint16(port)))
		}
	}
	return out
}
