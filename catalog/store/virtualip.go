package store

import (
	"encoding/binary"
	"net/netip"
	"slices"

	"github.com/weftmesh/weft/catalog"
)

// virtualIPRow gives a service of the mesh an address of its own, in 240.0.0.0/4,
// which no host has: a name for it where only addresses do.
type virtualIPRow struct {
	Service catalog.Name
	Offset  uint32
	// Manual are further addresses, which somebody gave to the service by hand.
	Manual []string
}

// virtualIPMark is, in place of a service, that of the row with the highest offset
// that was ever given.
const virtualIPMark = ""

const (
	virtualIPBase = 240 << 24
	virtualIPLast = 1<<28 - 2 // the last but the broadcast address
)

func (r *virtualIPRow) addr() netip.Addr {
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], virtualIPBase+r.Offset)
	return netip.AddrFrom4(b)
}

func (r reader) virtualIP(service catalog.Name) (*virtualIPRow, bool) {
	return first[*virtualIPRow](r, tableVirtualIPs, byID, service)
}

// virtualIPs lists those of all services.
func (r reader) virtualIPs() []*catalog.VirtualIP {
	var out []*catalog.VirtualIP
	for _, row := range all[*virtualIPRow](r, tableVirtualIPs, byID) {
		if row.Service != virtualIPMark {
			out = append(out, &catalog.VirtualIP{Service: row.Service, Auto: row.addr().String(), Manual: row.Manual})
		}
	}
	return out
}

// wantVirtualIP gives a service an address unless it has one. Addresses of services
// that are gone are given again only when all others were: who still has an old one
// in hand must not reach somebody else.
func (w *writer) wantVirtualIP(service catalog.Name) (*virtualIPRow, bool) {
	if row, ok := w.virtualIP(service); ok {
		return row, true
	}
	n := uint32(1)
	if mark, ok := w.virtualIP(virtualIPMark); ok {
		n = mark.Offset + 1
	}
	if n <= virtualIPLast {
		w.insert(tableVirtualIPs, &virtualIPRow{Service: virtualIPMark, Offset: n})
	} else if n = w.freeOffset(); n == 0 {
		return nil, false
	}
	row := &virtualIPRow{Service: service, Offset: n}
	w.insert(tableVirtualIPs, row)
	w.touchVirtualIP(service)
	return row, true
}

// freeOffset is the lowest that nobody has, 0 for none. It looks at all of them: it is
// asked once all were given.
func (w *writer) freeOffset() uint32 {
	var taken []uint32
	for row := range w.rows(tableVirtualIPs, byID) {
		if r := row.(*virtualIPRow); r.Service != virtualIPMark {
			taken = append(taken, r.Offset)
		}
	}
	slices.Sort(taken)
	free := uint32(1)
	for _, n := range taken {
		if n != free {
			break
		}
		free++
	}
	if free > virtualIPLast {
		return 0
	}
	return free
}

// kindsWithVirtualIP are those of entries that give their service an address.
var kindsWithVirtualIP = []string{
	catalog.KindServiceDefaults, catalog.KindServiceRouter, catalog.KindServiceSplitter, catalog.KindServiceResolver,
}

// touchTerminating is called for a version of a gateway's entry that came or went:
// services that it speaks for have addresses, as those of the mesh do.
func (w *writer) touchTerminating(gw *catalog.TerminatingGateway) {
	for _, s := range gw.Services {
		ref := refTerminating + s.Name
		w.settle(classTerminating, s.Name, tableEntries, byReference, ref)
		if s.Name == catalog.Wildcard {
			continue
		}
		if _, named := first[*entryRow](w.reader, tableEntries, byReference, ref); named {
			w.wantVirtualIP(s.Name)
		} else {
			w.settleVirtualIP(s.Name)
		}
	}
}

// settleVirtualIP takes the address of a service that nothing speaks of any more.
func (w *writer) settleVirtualIP(service catalog.Name) {
	row, ok := w.virtualIP(service)
	if !ok {
		return
	}
	if _, ok := first[*serviceRow](w.reader, tableServices, byConnect, service); ok {
		return
	}
	if _, ok := first[*entryRow](w.reader, tableEntries, byReference, refTerminating+service); ok {
		return
	}
	for _, kind := range kindsWithVirtualIP {
		if _, ok := w.entry(kind, service); ok {
			return
		}
	}
	w.remove(tableVirtualIPs, row)
	w.retire(classVirtualIP, service)
	w.touch(keyVirtualIPs)
}

// setVirtualIPs gives a service manual addresses; an address is that of one service.
func (w *writer) setVirtualIPs(c *catalog.SetVirtualIPs) catalog.VirtualIPsSet {
	row, ok := w.virtualIP(c.Service)
	if !ok || c.Service == virtualIPMark {
		return catalog.VirtualIPsSet{}
	}
	out := catalog.VirtualIPsSet{Found: true}
	for _, other := range all[*virtualIPRow](w.reader, tableVirtualIPs, byID) {
		if other.Service == c.Service || !slices.ContainsFunc(other.Manual, func(ip string) bool { return slices.Contains(c.IPs, ip) }) {
			continue
		}
		w.giveManual(other, slices.DeleteFunc(slices.Clone(other.Manual), func(ip string) bool { return slices.Contains(c.IPs, ip) }))
		out.TakenFrom = append(out.TakenFrom, other.Service)
	}
	if !slices.Equal(row.Manual, c.IPs) {
		w.giveManual(row, slices.Clone(c.IPs))
	}
	return out
}

func (w *writer) giveManual(row *virtualIPRow, ips []string) {
	next := *row
	next.Manual = ips
	w.insert(tableVirtualIPs, &next)
	w.touchVirtualIP(row.Service)
}

func (w *writer) touchVirtualIP(service catalog.Name) {
	w.touchName(classVirtualIP, service)
	w.touch(keyVirtualIPs)
}

// virtualTag is under which tagged address an instance shows that of its service.
const virtualTag = "consul-virtual"

// tagVirtualIP adds to s, which the writer owns, the address of the service that
// it speaks for.
func (w *writer) tagVirtualIP(s *catalog.Service, service catalog.Name) {
	row, ok := w.wantVirtualIP(service)
	if !ok {
		return
	}
	tagged := make(map[string]catalog.ServiceAddress, len(s.TaggedAddresses)+1)
	for k, v := range s.TaggedAddresses {
		tagged[k] = v
	}
	tagged[virtualTag] = catalog.ServiceAddress{Address: row.addr().String(), Port: s.Port}
	s.TaggedAddresses = tagged
}
