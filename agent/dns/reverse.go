package dns

import (
	"context"
	"net/netip"
	"strconv"
	"strings"

	"github.com/miekg/dns"

	"github.com/weftmesh/weft/catalog"
)

// pointer answers a reverse name: the node that has the address, or else the
// services that have it as their own. A zero address is a name that means none.
func (x *exchange) pointer(addr netip.Addr) {
	names, err := x.reverse.at(x.ctx, addr)
	if err != nil {
		x.failed(err)
		return
	}
	if len(names) == 0 {
		if len(x.cfg.Recursors) > 0 {
			x.resp.Authoritative = false
			x.outside()
			return
		}
		x.nameError()
		return
	}
	if x.q.Qtype != dns.TypePTR && x.q.Qtype != dns.TypeANY {
		x.noData()
		return
	}
	x.cut = len(names) > x.most
	for _, n := range names[:min(len(names), x.most)] {
		target := escape(n.name) + "." + n.kind + "." + escape(x.cfg.Datacenter) + "." + x.asked
		if _, ok := dns.IsDomainName(target); ok {
			x.resp.Answer = append(x.resp.Answer, &dns.PTR{Hdr: x.header(x.q.Name, dns.TypePTR, 0), Ptr: target})
		}
	}
}

// reverseAddr reads a name under in-addr.arpa or ip6.arpa. One that spells no
// whole address gives the zero Addr.
func reverseAddr(name string) (netip.Addr, bool) {
	name = strings.ToLower(name)
	if s, ok := strings.CutSuffix(name, ".in-addr.arpa."); ok {
		labels := strings.Split(s, ".")
		var b [4]byte
		if len(labels) != len(b) {
			return netip.Addr{}, true
		}
		for i, l := range labels {
			n, err := strconv.ParseUint(l, 10, 8)
			if err != nil || strconv.FormatUint(n, 10) != l {
				return netip.Addr{}, true
			}
			b[len(b)-1-i] = byte(n)
		}
		return netip.AddrFrom4(b), true
	}
	if s, ok := strings.CutSuffix(name, ".ip6.arpa."); ok {
		labels := strings.Split(s, ".")
		var b [16]byte
		if len(labels) != 2*len(b) {
			return netip.Addr{}, true
		}
		for i, l := range labels {
			n, err := strconv.ParseUint(l, 16, 4)
			if err != nil || len(l) != 1 {
				return netip.Addr{}, true
			}
			b[len(b)-1-i/2] |= byte(n) << (4 * (i % 2))
		}
		return netip.AddrFrom16(b).Unmap(), true
	}
	return netip.Addr{}, name == "in-addr.arpa." || name == "ip6.arpa."
}

// named is a node or a service at an address.
type named struct{ kind, name string }

// reverse finds names by address.
type reverse struct {
	views    Views
	nodes    *aged[map[netip.Addr][]named]
	services *aged[map[netip.Addr][]named]
}

func newReverse(v Views) *reverse {
	r := &reverse{views: v}
	r.nodes, r.services = newAged(r.readNodes), newAged(r.readServices)
	return r
}

func (r *reverse) at(ctx context.Context, addr netip.Addr) ([]named, error) {
	if !addr.IsValid() {
		return nil, nil
	}
	nodes, err := r.nodes.get(ctx)
	if err != nil || len(nodes[addr]) > 0 {
		return nodes[addr], err
	}
	services, err := r.services.get(ctx)
	return services[addr], err
}

func (r *reverse) readNodes(ctx context.Context) (map[netip.Addr][]named, error) {
	v, err := r.views.Read(ctx, catalog.Query{Kind: catalog.QueryNodes})
	if err != nil {
		return nil, err
	}
	out := map[netip.Addr][]named{}
	for _, n := range v.Nodes {
		if ip, err := netip.ParseAddr(n.Address); err == nil {
			out[ip.Unmap()] = append(out[ip.Unmap()], named{"node", n.Node})
		}
	}
	return out, nil
}

func (r *reverse) readServices(ctx context.Context) (map[netip.Addr][]named, error) {
	v, err := r.views.Read(ctx, catalog.Query{Kind: catalog.QueryServices})
	if err != nil {
		return nil, err
	}
	out := map[netip.Addr][]named{}
	for _, s := range v.Services {
		for _, a := range s.Addresses {
			ip, err := netip.ParseAddr(a)
			ip, n := ip.Unmap(), named{"service", s.Name}
			if at := out[ip]; err == nil && (len(at) == 0 || at[len(at)-1] != n) { // an address may have two spellings
				out[ip] = append(at, n)
			}
		}
	}
	return out, nil
}
