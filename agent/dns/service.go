package dns

import (
	"cmp"
	"encoding/hex"
	"iter"
	"net/netip"
	"slices"
	"strings"

	"github.com/miekg/dns"

	"github.com/weftmesh/weft/catalog"
)

// service answers "[tag.]name" and RFC 2782's "_name._tag", where "_tcp" stands
// for no tag, of services, of their mesh instances or of the ingress gateways that lead to them.
func (x *exchange) service(kind catalog.QueryKind, labels []string) {
	name, tag := labels[len(labels)-1], strings.Join(labels[:len(labels)-1], ".")
	if isRFC2782(labels) {
		name, tag = labels[0][1:], labels[1][1:]
		if tag == "tcp" {
			tag = ""
		}
	}
	found, err := x.instances(kind, name)
	if err != nil {
		x.failed(err)
		return
	}
	x.list(x.healthy(found, tag), x.cfg.Datacenter, x.ttls.of(name))
}

// isRFC2782 tells "_name._protocol" from other names.
func isRFC2782(labels []string) bool {
	return len(labels) == 2 && strings.HasPrefix(labels[0], "_") && strings.HasPrefix(labels[1], "_")
}

// instances reads the instances of a name of which the case is not known.
func (x *exchange) instances(kind catalog.QueryKind, name string) ([]*catalog.Instance, error) {
	v, err := x.cfg.Views.Read(x.ctx, catalog.Query{Kind: kind, Name: name})
	if err == nil && len(v.Instances) > 0 {
		return v.Instances, nil
	}
	// While no server answers it is not known that there is none of the name as given.
	if written, ok := x.fold(catalog.QueryServices, name, err); ok {
		v, err = x.cfg.Views.Read(x.ctx, catalog.Query{Kind: kind, Name: written})
	}
	return instancesOf(v), err
}

func instancesOf(v *catalog.View) []*catalog.Instance {
	if v == nil {
		return nil
	}
	return v.Instances
}

// healthy gives, in random order, the instances that may be named and have the
// tag, if any.
func (x *exchange) healthy(in []*catalog.Instance, tag string) iter.Seq[*catalog.Instance] {
	return func(yield func(*catalog.Instance) bool) {
		for i := range shuffled(slices.Clone(in)) { // views are shared
			status := worst(i.Checks)
			if status == catalog.StatusCritical || x.cfg.OnlyPassing && status != catalog.StatusPassing {
				continue
			}
			if tag != "" && !slices.ContainsFunc(i.Service.Tags, func(t string) bool { return strings.EqualFold(t, tag) }) {
				continue
			}
			if !yield(i) {
				return
			}
		}
	}
}

func worst(checks []*catalog.Check) catalog.Status {
	status := catalog.StatusPassing
	for _, c := range checks {
		status = catalog.Worse(status, c.Status)
	}
	if status != catalog.StatusPassing && status != catalog.StatusWarning {
		return catalog.StatusCritical
	}
	return status
}

// list answers with instances, in their order. It reads no more of them than it
// has use for.
func (x *exchange) list(list iter.Seq[*catalog.Instance], dc string, ttl uint32) {
	found := false
	seen := func(yield func(*catalog.Instance) bool) {
		for i := range list {
			found = true
			if !yield(i) {
				return
			}
		}
	}
	switch {
	case x.q.Qtype == dns.TypeSRV:
		x.targets(seen, dc, ttl)
	case x.wantsAddress():
		x.addresses(seen, ttl)
	default:
		seen(func(*catalog.Instance) bool { return false })
	}
	switch {
	case !found:
		x.nameError()
	case len(x.resp.Answer)+len(x.resp.Extra) == 0:
		x.noData()
	}
}

func (x *exchange) wantsAddress() bool {
	return x.q.Qtype == dns.TypeA || x.q.Qtype == dns.TypeAAAA || x.q.Qtype == dns.TypeANY
}

// addresses answers with the addresses of instances, each once. A name as address
// becomes a CNAME, which stands alone; so it is given only where there is no address.
func (x *exchange) addresses(list iter.Seq[*catalog.Instance], ttl uint32) {
	seen := map[netip.Addr]bool{}
	alias := ""
	for i := range list {
		ip, host := x.pick(addressOf(i))
		if host != "" {
			alias = cmp.Or(alias, host)
		}
		if !ip.IsValid() || seen[ip] {
			continue
		}
		if x.cfg.ARecordLimit > 0 && len(x.resp.Answer) >= x.cfg.ARecordLimit {
			break
		}
		if len(x.resp.Answer) >= x.most {
			x.cut = true
			break
		}
		seen[ip] = true
		x.resp.Answer = append(x.resp.Answer, x.ipRecord(x.q.Name, ip, ttl))
	}
	if len(x.resp.Answer) == 0 && alias != "" {
		x.alias(alias, ttl)
	}
}

// addressOf is where an instance is reached, and its tagged addresses.
func addressOf(i *catalog.Instance) (string, func(tag string) string) {
	if i.Service.Address != "" {
		return i.Service.Address, func(tag string) string { return i.Service.TaggedAddresses[tag].Address }
	}
	return i.Node.Address, func(tag string) string { return i.Node.TaggedAddresses[tag] }
}

// pick chooses the address of the family asked for: the main one, or else the one
// tagged as such. A main address that is no IP is given as host.
func (x *exchange) pick(main string, tagged func(string) string) (ip netip.Addr, host string) {
	ip, err := netip.ParseAddr(main)
	if err != nil {
		host = main
	}
	ip = ip.Unmap().WithZone("")
	tag := "lan_ipv4"
	switch {
	case x.q.Qtype == dns.TypeANY, x.q.Qtype == dns.TypeA && ip.Is4(), x.q.Qtype == dns.TypeAAAA && ip.Is6():
		return ip, host
	case x.q.Qtype == dns.TypeAAAA:
		tag = "lan_ipv6"
	}
	other, err := netip.ParseAddr(tagged(tag))
	if err != nil || (tag == "lan_ipv4") != other.Unmap().Is4() {
		return netip.Addr{}, host
	}
	return other.Unmap().WithZone(""), ""
}

func (x *exchange) ipRecord(name string, ip netip.Addr, ttl uint32) dns.RR {
	ip = ip.Unmap()
	if ip.Is4() {
		return &dns.A{Hdr: x.header(name, dns.TypeA, ttl), A: ip.AsSlice()}
	}
	return &dns.AAAA{Hdr: x.header(name, dns.TypeAAAA, ttl), AAAA: ip.AsSlice()}
}

// targets answers SRV: where and at which port each instance is, with the
// addresses of the targets beside.
func (x *exchange) targets(list iter.Seq[*catalog.Instance], dc string, ttl uint32) {
	type key struct {
		target string
		port   uint16
	}
	seen, named, described := map[key]bool{}, map[string]bool{}, map[string]bool{}
	for i := range list {
		target, extra := x.target(i, dc, ttl)
		k := key{target, portOf(i.Service)}
		if target == "" || seen[k] {
			continue
		}
		if len(x.resp.Answer) >= x.most {
			x.cut = true
			return
		}
		seen[k] = true
		x.resp.Answer = append(x.resp.Answer, &dns.SRV{
			Hdr: x.header(x.q.Name, dns.TypeSRV, ttl), Priority: 1, Weight: weightOf(i), Port: k.port, Target: target,
		})
		if extra != nil && !named[target] {
			named[target] = true
			x.resp.Extra = append(x.resp.Extra, extra)
		}
		if x.cfg.DisableNodeMetaTXT || len(i.Node.Meta) == 0 || described[i.Node.Node] {
			continue
		}
		if name, ok := x.nodeNameIn(i.Node.Node, dc); ok {
			described[i.Node.Node] = true
			x.resp.Extra = append(x.resp.Extra, x.metaTXT(name, i.Node, ttl)...)
		}
	}
}

// target is the name of the host of an instance, and its address if it is ours to
// give: the node's name, or one that spells the service's own address.
func (x *exchange) target(i *catalog.Instance, dc string, ttl uint32) (string, dns.RR) {
	address, _ := addressOf(i)
	ip, err := netip.ParseAddr(address)
	if err != nil {
		name := dns.Fqdn(escape(address))
		if _, ok := dns.IsDomainName(name); !ok || address == "" {
			return "", nil
		}
		return name, nil
	}
	ip = ip.Unmap().WithZone("")
	name, ok := x.nodeNameIn(i.Node.Node, dc)
	if i.Service.Address != "" || !ok {
		name = hex.EncodeToString(ip.AsSlice()) + ".addr." + escape(dc) + "." + x.asked
	}
	return name, x.ipRecord(name, ip, ttl)
}

func portOf(s *catalog.Service) uint16 {
	port := s.Port
	if port == 0 {
		for _, p := range s.Ports {
			if p.Default || port == 0 {
				port = p.Port
			}
			if p.Default {
				break
			}
		}
	}
	return uint16(min(max(port, 0), 1<<16-1))
}

func weightOf(i *catalog.Instance) uint16 {
	w := i.Service.Weights
	if w == nil {
		return 1
	}
	weight := w.Passing
	if worst(i.Checks) != catalog.StatusPassing {
		weight = w.Warning
	}
	return uint16(min(max(weight, 0), 1<<16-1))
}

// prepared answers "name" and "_name._tcp" of prepared queries.
func (x *exchange) prepared(labels []string) {
	if x.cfg.Query == nil {
		x.nameError()
		return
	}
	written := dns.SplitDomainName(x.q.Name)[:len(labels)]
	for i, l := range written {
		written[i] = unescape(l)
	}
	name := strings.Join(written, ".")
	if len(labels) == 2 && strings.HasPrefix(labels[0], "_") && labels[1] == "_tcp" {
		name = written[0][1:]
	}
	ans, err := x.cfg.Query(x.ctx, QueryRequest{Name: name, Source: x.source()})
	if err != nil {
		x.failed(err)
		return
	}
	ttl := x.ttls.of(ans.Service)
	if ans.TTL != nil {
		ttl = seconds(*ans.TTL)
	}
	x.list(slices.Values(ans.Instances), cmp.Or(ans.Datacenter, x.cfg.Datacenter), ttl)
}

// source is where the client is, as far as is known.
func (x *exchange) source() netip.Prefix {
	if opt := x.req.IsEdns0(); opt != nil {
		for _, o := range opt.Option {
			sub, ok := o.(*dns.EDNS0_SUBNET)
			if !ok || sub.SourceNetmask == 0 {
				continue
			}
			if ip, ok := netip.AddrFromSlice(sub.Address); ok {
				if p, err := ip.Unmap().Prefix(int(sub.SourceNetmask)); err == nil {
					return p
				}
			}
		}
	}
	if !x.from.addr.IsValid() {
		return netip.Prefix{}
	}
	return netip.PrefixFrom(x.from.addr, x.from.addr.BitLen())
}

// virtual answers with the one address that stands for a service in the mesh.
func (x *exchange) virtual(labels []string) {
	if len(labels) != 1 {
		x.nameError()
		return
	}
	ip, err := x.virtualIP(labels[0])
	if err != nil {
		x.failed(err)
		return
	}
	switch {
	case x.q.Qtype == dns.TypeANY, x.q.Qtype == dns.TypeA && ip.Is4(), x.q.Qtype == dns.TypeAAAA && ip.Is6():
		x.resp.Answer = []dns.RR{x.ipRecord(x.q.Name, ip, seconds(x.cfg.NodeTTL))}
	default:
		x.noData()
	}
}

// virtualIP is that of a service: its instances carry it, and where it has none in the
// mesh, as its config entries or a terminating gateway speak of it, its chain does.
func (x *exchange) virtualIP(service string) (netip.Addr, error) {
	list, failed := x.instances(catalog.QueryConnect, service)
	for _, i := range list {
		if ip, err := netip.ParseAddr(i.Service.TaggedAddresses["consul-virtual"].Address); err == nil {
			return ip.Unmap(), nil
		}
	}
	v, err := x.cfg.Views.Read(x.ctx, catalog.ChainOptions{Datacenter: x.cfg.Datacenter}.Query(service))
	if err != nil {
		return netip.Addr{}, err
	}
	if v != nil && v.Chain != nil && len(v.Chain.AutoVirtualIPs) > 0 {
		if ip, err := netip.ParseAddr(v.Chain.AutoVirtualIPs[0]); err == nil {
			return ip.Unmap(), nil
		}
	}
	if failed != nil {
		return netip.Addr{}, failed
	}
	return netip.Addr{}, catalog.NotFoundf("service %q has no virtual address", service)
}
