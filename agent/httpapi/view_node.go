package httpapi

import "github.com/weftmesh/weft/catalog"

// nodeView is a node in every answer that has one.
type nodeView struct {
	ID              string
	Node            string
	Address         string
	Datacenter      string
	TaggedAddresses map[string]string
	Meta            map[string]string
	Locality        *catalog.Locality `json:",omitempty" bexpr:"-"`
	CreateIndex     uint64            `bexpr:"-"`
	ModifyIndex     uint64            `bexpr:"-"`
}

func viewNode(n *catalog.Node, dc string) nodeView {
	if n == nil {
		return nodeView{Datacenter: dc}
	}
	return nodeView{
		ID: n.ID, Node: n.Node, Address: n.Address, Datacenter: orString(n.Datacenter, dc),
		TaggedAddresses: nilIfEmpty(n.TaggedAddresses), Meta: nilIfEmpty(n.Meta), Locality: n.Locality,
		CreateIndex: n.CreateIndex, ModifyIndex: n.ModifyIndex,
	}
}

func viewNodes(in []*catalog.Node, dc string) []nodeView {
	out := make([]nodeView, 0, len(in))
	for _, n := range in {
		out = append(out, viewNode(n, dc))
	}
	return out
}

// memberView is a member of gossip.
type memberView struct {
	Name        string
	Addr        string
	Port        uint16
	Tags        map[string]string
	Status      int
	ProtocolMin uint8
	ProtocolMax uint8
	ProtocolCur uint8
	DelegateMin uint8
	DelegateMax uint8
	DelegateCur uint8
}

func viewMember(m catalog.Member) memberView {
	return memberView{
		Name: m.Name, Addr: m.Addr, Port: m.Port, Tags: notNilMap(m.Tags), Status: int(m.Status),
		// The versions of Serf that its clients expect to see.
		ProtocolMin: 1, ProtocolMax: 5, ProtocolCur: 2, DelegateMin: 2, DelegateMax: 5, DelegateCur: 4,
	}
}

// Consul's answers tell a list or map that is empty from one that is not there, and
// which of the two it shows depends on the field.

func notNil[T any](s []T) []T {
	if s == nil {
		return []T{}
	}
	return s
}

func notNilMap[K comparable, V any](m map[K]V) map[K]V {
	if m == nil {
		return map[K]V{}
	}
	return m
}

func nilIfEmpty[K comparable, V any](m map[K]V) map[K]V {
	if len(m) == 0 {
		return nil
	}
	return m
}

func orString(s, def string) string {
	if s == "" {
		return def
	}
	return s
}
