package store

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/weftmesh/weft/catalog"
)

// model is the store as plain maps, with every answer computed from scratch.
type model struct {
	index    uint64
	nodes    map[string]catalog.Node
	services map[[2]string]catalog.Service
	checks   map[[2]string]catalog.Check
	stated   map[[2]string][]string
	dests    map[string]catalog.ServiceIntentions
	roots    map[string]catalog.Root
	rootsAt  uint64
	// clusterAt is when the cluster ID was set.
	clusterAt uint64
	ca        *catalog.CAConfig
	// vips are the offsets of virtual addresses, vipHigh the highest ever given.
	vips     map[string]uint32
	vipHigh  uint32
	operator operatorModel

	certRevocations certRevocationModel

	pairs    map[string]catalog.KVPair
	delays   map[string]catalog.KeyDelay
	sessions map[string]catalog.Session
}

// connectName is the service for which s speaks mesh mTLS.
func connectName(s catalog.Service) string {
	return (&serviceRow{Service: &s}).connectName()
}

func (m *model) settleVIPs() {
	used := map[string]bool{}
	for _, s := range m.services {
		used[connectName(s)] = true
	}
	maps.DeleteFunc(m.vips, func(n string, _ uint32) bool { return !used[n] })
}

func newModel() *model {
	return &model{
		nodes: map[string]catalog.Node{}, services: map[[2]string]catalog.Service{},
		checks: map[[2]string]catalog.Check{}, stated: map[[2]string][]string{},
		dests: map[string]catalog.ServiceIntentions{}, roots: map[string]catalog.Root{},
		vips:     map[string]uint32{},
		operator: newOperatorModel(), certRevocations: newCertRevocationModel(),
		pairs: map[string]catalog.KVPair{}, delays: map[string]catalog.KeyDelay{}, sessions: map[string]catalog.Session{},
	}
}

func (m *model) clone() *model {
	c := *m
	c.nodes, c.services, c.checks = maps.Clone(m.nodes), maps.Clone(m.services), maps.Clone(m.checks)
	c.operator, c.certRevocations = m.operator.clone(), m.certRevocations.clone()
	c.stated, c.dests, c.roots = maps.Clone(m.stated), maps.Clone(m.dests), maps.Clone(m.roots)
	c.vips = maps.Clone(m.vips)
	c.pairs, c.delays, c.sessions = maps.Clone(m.pairs), maps.Clone(m.delays), maps.Clone(m.sessions)
	return &c
}

// show prints a value without its Raft indexes; equal values print alike.
func show(v any) string {
	switch x := v.(type) {
	case catalog.CertRevocation:
		x.RaftIndex = catalog.RaftIndex{}
		return fmt.Sprintf("%+v", x)
	case catalog.Node:
		x.RaftIndex = catalog.RaftIndex{}
		return fmt.Sprintf("%+v", x)
	case catalog.Service:
		x.RaftIndex = catalog.RaftIndex{}
		return fmt.Sprintf("%+v", x)
	case catalog.Check:
		x.RaftIndex = catalog.RaftIndex{}
		return fmt.Sprintf("%+v", x)
	case catalog.Root:
		x.RaftIndex = catalog.RaftIndex{}
		return fmt.Sprintf("%+v", x)
	case catalog.PreparedQuery:
		x.RaftIndex = catalog.RaftIndex{}
		return fmt.Sprintf("%+v", x)
	case catalog.NodeCoordinate:
		x.RaftIndex = catalog.RaftIndex{}
		return fmt.Sprintf("%+v", x)
	case catalog.KVPair:
		x.RaftIndex = catalog.RaftIndex{}
		return fmt.Sprintf("%+v", x)
	default:
		panic(fmt.Sprintf("%T", v))
	}
}

func put[K comparable, V any](m *model, rows map[K]V, k K, v V, raft func(*V) *catalog.RaftIndex) {
	*raft(&v) = catalog.RaftIndex{CreateIndex: m.index, ModifyIndex: m.index}
	if old, ok := rows[k]; ok {
		if show(any(old)) == show(any(v)) {
			return
		}
		raft(&v).CreateIndex = raft(&old).CreateIndex
	}
	rows[k] = v
}

func (m *model) putNode(n catalog.Node) error {
	held, ok := m.nodes[n.Node]
	alive := m.checks[[2]string{n.Node, catalog.NodeCheckID}].Status == catalog.StatusPassing
	if ok && n.ID != "" && held.ID != "" && held.ID != n.ID && alive {
		return catalog.ErrConflict
	}
	var created uint64
	if n.ID != "" {
		for name, other := range m.nodes {
			if other.ID == n.ID && name != n.Node {
				created = other.CreateIndex
				m.dropNode(name)
			}
		}
	} else if ok {
		n.ID = held.ID
	}
	put(m, m.nodes, n.Node, n, func(n *catalog.Node) *catalog.RaftIndex { return &n.RaftIndex })
	if !ok && created != 0 {
		row := m.nodes[n.Node]
		row.CreateIndex = created
		m.nodes[n.Node] = row
	}
	return nil
}

func (m *model) dropNode(name string) {
	delete(m.nodes, name)
	delete(m.operator.coordinates, name)
	onNode := func(k [2]string) bool { return k[0] == name }
	maps.DeleteFunc(m.services, func(k [2]string, _ catalog.Service) bool { return onNode(k) })
	maps.DeleteFunc(m.checks, func(k [2]string, _ catalog.Check) bool { return onNode(k) })
	maps.DeleteFunc(m.stated, func(k [2]string, _ []string) bool { return onNode(k) })
	m.settleVIPs()
}

func (m *model) putService(node string, s catalog.Service) {
	if n := connectName(s); n != "" {
		if m.vips[n] == 0 {
			m.vipHigh++
			m.vips[n] = m.vipHigh
		}
		tagged := map[string]catalog.ServiceAddress{}
		maps.Copy(tagged, s.TaggedAddresses)
		tagged[virtualTag] = catalog.ServiceAddress{Address: (&virtualIPRow{Offset: m.vips[n]}).addr().String(), Port: s.Port}
		s.TaggedAddresses = tagged
	}
	put(m, m.services, [2]string{node, s.ID}, s, func(s *catalog.Service) *catalog.RaftIndex { return &s.RaftIndex })
	m.settleVIPs()
	for k, c := range m.checks {
		if k[0] == node && c.ServiceID == s.ID {
			m.putCheck(node, c)
		}
	}
}

func (m *model) dropService(k [2]string) {
	delete(m.services, k)
	delete(m.stated, k)
	m.settleVIPs()
	maps.DeleteFunc(m.checks, func(ck [2]string, c catalog.Check) bool { return ck[0] == k[0] && c.ServiceID == k[1] })
}

func (m *model) putCheck(node string, c catalog.Check) bool {
	c.Node, c.ServiceName, c.ServiceTags = node, "", nil
	if c.ServiceID != "" {
		s, ok := m.services[[2]string{node, c.ServiceID}]
		if !ok {
			return false
		}
		c.ServiceName, c.ServiceTags = s.Service, s.Tags
	}
	put(m, m.checks, [2]string{node, c.CheckID}, c, func(c *catalog.Check) *catalog.RaftIndex { return &c.RaftIndex })
	return true
}

func (m *model) sync(ns catalog.NodeState) error {
	node := ns.Node.Node
	if err := m.putNode(*ns.Node); err != nil {
		return err
	}
	want := map[string]bool{}
	for _, s := range ns.Services {
		k := [2]string{node, s.ID}
		want[s.ID] = true
		row := *s
		if said, ok := m.stated[k]; s.EnableTagOverride && ok && slices.Equal(said, s.Tags) {
			row.Tags = m.services[k].Tags
		}
		delete(m.stated, k)
		if s.EnableTagOverride {
			m.stated[k] = s.Tags
		}
		m.putService(node, row)
	}
	said := map[string]bool{}
	for _, c := range ns.Checks {
		said[c.CheckID] = true
		if !m.putCheck(node, *c) {
			return catalog.ErrNotFound
		}
	}
	maps.DeleteFunc(m.checks, func(k [2]string, c catalog.Check) bool {
		return k[0] == node && !said[k[1]] && k[1] != catalog.NodeCheckID && c.ServiceID != catalog.ServerService
	})
	for k := range m.services {
		if k[0] == node && !want[k[1]] && k[1] != catalog.ServerService {
			m.dropService(k)
		}
	}
	return nil
}

func (m *model) setSources(dest string, sources []*catalog.SourceIntention) {
	old, had := m.dests[dest]
	if len(sources) == 0 {
		delete(m.dests, dest)
		return
	}
	e := catalog.ServiceIntentions{Name: dest, Sources: sources}
	e.Normalize()
	if had && showSources(old.Sources) == showSources(e.Sources) {
		return
	}
	e.RaftIndex = catalog.RaftIndex{CreateIndex: m.index, ModifyIndex: m.index}
	if had {
		e.CreateIndex = old.CreateIndex
	}
	m.dests[dest] = e
}

func showSources(in []*catalog.SourceIntention) string {
	var b strings.Builder
	for _, s := range in {
		fmt.Fprintf(&b, "%+v;", *s)
	}
	return b.String()
}

// apply is Store.Apply; a refused command leaves the model as it was.
func (m *model) apply(index uint64, cmd catalog.Command) (*model, any, error) {
	n := m.clone()
	n.index = index
	res, err := n.do(cmd)
	n.endSessions()
	if undone(res) || err != nil {
		n = m.clone()
		n.index = index
	}
	return n, res, err
}

func (m *model) do(cmd catalog.Command) (any, error) {
	switch c := cmd.(type) {
	case *catalog.SyncNode:
		return nil, m.sync(c.State)
	case *catalog.Register:
		if _, ok := m.nodes[c.Node.Node]; !ok || !c.SkipNodeUpdate {
			if err := m.putNode(*c.Node); err != nil {
				return nil, err
			}
		}
		if c.Service != nil {
			m.putService(c.Node.Node, *c.Service)
		}
		for _, ch := range c.Checks {
			if !m.putCheck(c.Node.Node, *ch) {
				return nil, catalog.ErrNotFound
			}
		}
	case *catalog.Deregister:
		switch {
		case c.ServiceID != "":
			m.dropService([2]string{c.Node, c.ServiceID})
		case c.CheckID != "":
			delete(m.checks, [2]string{c.Node, c.CheckID})
		default:
			m.dropNode(c.Node)
		}
	case *catalog.SetConfigEntry:
		e := c.Entry.ConfigEntry.(*catalog.ServiceIntentions).Clone()
		if c.CAS && m.dests[e.Name].ModifyIndex != c.Index {
			return false, nil
		}
		m.setSources(e.Name, e.Sources)
		return true, nil
	case *catalog.DeleteConfigEntry:
		if c.CAS && m.dests[c.Name].ModifyIndex != c.Index {
			return false, nil
		}
		delete(m.dests, c.Name)
		return true, nil
	case *catalog.SetIntention:
		e := m.dests[c.Destination]
		sources := e.Clone().Sources
		src := c.Source
		at := slices.IndexFunc(sources, func(s *catalog.SourceIntention) bool { return s.Name == src.Name })
		switch {
		case at < 0:
			sources = append(sources, &src)
		case c.CreateOnly:
			return nil, catalog.ErrConflict
		default:
			sources[at] = &src
		}
		m.setSources(c.Destination, sources)
	case *catalog.DeleteIntention:
		for dest, e := range m.dests {
			left := slices.DeleteFunc(e.Clone().Sources, func(s *catalog.SourceIntention) bool {
				return (c.ID != "" && s.LegacyID == c.ID) || (c.ID == "" && dest == c.Destination && s.Name == c.Source)
			})
			if len(left) < len(e.Sources) {
				m.setSources(dest, left)
				break
			}
		}
	case *catalog.SetCAConfig:
		return m.setCA(c), nil
	case *catalog.SetRoots:
		return m.setRoots(c), nil
	default:
		switch cmd.(type) {
		case *catalog.SetCertRevocation, *catalog.DeleteCertRevocation, *catalog.PruneCertRevocations:
			return m.doCertRevocation(cmd)
		case *catalog.SetPreparedQuery, *catalog.DeletePreparedQuery, *catalog.SetCoordinates, *catalog.SetAutopilot,
			*catalog.Revoke, *catalog.Allow:
			return m.doOperator(cmd)
		}
		return m.doKV(cmd)
	}
	return nil, nil
}

func (m *model) setCA(c *catalog.SetCAConfig) bool {
	var old catalog.CAConfig
	if m.ca != nil {
		old = *m.ca
	}
	if c.CAS && old.ModifyIndex != c.Index {
		return false
	}
	now := c.Config
	now.RaftIndex = catalog.RaftIndex{}
	now.ClusterID = cmp.Or(old.ClusterID, now.ClusterID)
	was := old
	was.RaftIndex = catalog.RaftIndex{}
	if m.ca != nil && fmt.Sprintf("%+v", was) == fmt.Sprintf("%+v", now) {
		return true
	}
	now.RaftIndex = catalog.RaftIndex{CreateIndex: cmp.Or(old.CreateIndex, m.index), ModifyIndex: m.index}
	if now.ClusterID != old.ClusterID {
		m.clusterAt = m.index
	}
	m.ca = &now
	return true
}

func (m *model) setRoots(c *catalog.SetRoots) bool {
	if c.Index != m.rootsAt && c.Index != max(1, m.rootsAt, m.clusterAt, m.certRevocations.at) {
		return false
	}
	before := fmt.Sprint(m.roots)
	want := map[string]bool{}
	for _, r := range c.Roots {
		want[r.ID] = true
		put(m, m.roots, r.ID, *r, func(r *catalog.Root) *catalog.RaftIndex { return &r.RaftIndex })
	}
	maps.DeleteFunc(m.roots, func(id string, _ catalog.Root) bool { return !want[id] })
	if fmt.Sprint(m.roots) != before {
		m.rootsAt = m.index
	}
	return true
}

func rowsOf[K comparable, V any](rows map[K]V, order func(a, b *V) int, keep func(*V) bool) []*V {
	var out []*V
	for _, v := range rows {
		if keep(&v) {
			out = append(out, &v)
		}
	}
	slices.SortFunc(out, order)
	return out
}

func (m *model) checkRows(keep func(*catalog.Check) bool) []*catalog.Check {
	return rowsOf(m.checks, func(a, b *catalog.Check) int {
		return cmp.Or(cmp.Compare(a.Node, b.Node), cmp.Compare(a.CheckID, b.CheckID))
	}, keep)
}

func (m *model) instances(keep func(node string, s *catalog.Service) bool) []*catalog.Instance {
	var out []*catalog.Instance
	for k, s := range m.services {
		if !keep(k[0], &s) {
			continue
		}
		n := m.nodes[k[0]]
		checks := m.checkRows(func(c *catalog.Check) bool { return c.Node == k[0] && c.ServiceID == "" })
		checks = append(checks, m.checkRows(func(c *catalog.Check) bool { return c.Node == k[0] && c.ServiceID == k[1] })...)
		out = append(out, &catalog.Instance{Node: &n, Service: &s, Checks: checks})
	}
	slices.SortFunc(out, func(a, b *catalog.Instance) int {
		return cmp.Or(cmp.Compare(a.Node.Node, b.Node.Node), cmp.Compare(a.Service.ID, b.Service.ID))
	})
	return out
}

func (m *model) intentions(keep func(*catalog.Intention) bool) catalog.Intentions {
	var out catalog.Intentions
	for _, e := range m.dests {
		for _, i := range e.Intentions() {
			if keep(i) {
				out = append(out, i)
			}
		}
	}
	out.Sort()
	return out
}

// view answers q, without Index.
func (m *model) view(q catalog.Query) *catalog.View {
	v := &catalog.View{Query: q}
	everyNode := func(*catalog.Node) bool { return true }
	byNode := func(a, b *catalog.Node) int { return cmp.Compare(a.Node, b.Node) }
	either := func(a string) bool { return catalog.Covers(a, q.Name) }
	switch q.Kind {
	case catalog.QueryNodes:
		v.Nodes = rowsOf(m.nodes, byNode, everyNode)
	case catalog.QueryServices:
		for _, i := range m.instances(func(string, *catalog.Service) bool { return true }) {
			at := slices.IndexFunc(v.Services, func(s *catalog.ServiceSummary) bool { return s.Name == i.Service.Service })
			if at < 0 {
				at = len(v.Services)
				v.Services = append(v.Services, &catalog.ServiceSummary{Name: i.Service.Service})
			}
			s := v.Services[at]
			s.Instances++
			s.Tags = slices.Compact(slices.Sorted(slices.Values(append(s.Tags, i.Service.Tags...))))
			s.Nodes = slices.Compact(slices.Sorted(slices.Values(append(s.Nodes, i.Node.Node))))
			if a := i.Service.Address; a != "" {
				s.Addresses = slices.Compact(slices.Sorted(slices.Values(append(s.Addresses, a))))
			}
		}
		slices.SortFunc(v.Services, func(a, b *catalog.ServiceSummary) int { return cmp.Compare(a.Name, b.Name) })
	case catalog.QueryInstances:
		v.Instances = m.instances(func(string, *catalog.Service) bool { return true })
		for _, i := range v.Instances {
			i.Checks = nil
		}
	case catalog.QueryService:
		v.Instances = m.instances(func(_ string, s *catalog.Service) bool { return s.Service == q.Name })
	case catalog.QueryConnect:
		v.Instances = m.instances(func(_ string, s *catalog.Service) bool {
			return s.Kind == catalog.KindConnectProxy && s.Proxy.DestinationServiceName == q.Name ||
				s.Connect.Native && s.Service == q.Name
		})
	case catalog.QueryNode:
		v.Nodes = rowsOf(m.nodes, byNode, func(n *catalog.Node) bool { return n.Node == q.Name })
		v.Instances = m.instances(func(node string, _ *catalog.Service) bool { return node == q.Name })
	case catalog.QueryNodeChecks:
		v.Checks = m.checkRows(func(c *catalog.Check) bool { return c.Node == q.Name })
	case catalog.QueryServiceChecks:
		v.Checks = m.checkRows(func(c *catalog.Check) bool { return c.ServiceName == q.Name })
	case catalog.QueryChecks:
		v.Checks = m.checkRows(func(c *catalog.Check) bool { return q.Name == catalog.StatusAny || c.Status == q.Name })
	case catalog.QueryIntentions:
		v.Intentions = m.intentions(func(*catalog.Intention) bool { return true })
	case catalog.QueryIntentionsDest:
		v.Intentions = m.intentions(func(i *catalog.Intention) bool { return either(i.DestinationName) })
	case catalog.QueryIntentionsSrc:
		v.Intentions = m.intentions(func(i *catalog.Intention) bool { return either(i.SourceName) })
	case catalog.QueryConfigEntries, catalog.QueryConfigEntry:
		for _, name := range slices.Sorted(maps.Keys(m.dests)) {
			if e := m.dests[name]; q.Kind == catalog.QueryConfigEntries || name == q.Sub {
				v.Entries = append(v.Entries, catalog.Entry{ConfigEntry: &e})
			}
		}
	case catalog.QueryRoots:
		v.Roots = rowsOf(m.roots, func(a, b *catalog.Root) int { return cmp.Compare(a.ID, b.ID) }, func(*catalog.Root) bool { return true })
		for _, r := range v.Roots {
			r.SealedKey = nil
		}
		if m.ca != nil && m.ca.ClusterID != "" {
			v.CAConfig = &catalog.CAConfig{ClusterID: m.ca.ClusterID}
		}
		v.RevokedCerts = m.certRevocations.list(false)
	case catalog.QueryCertRevocations:
		v.RevokedCerts = m.certRevocations.list(true)
	case catalog.QueryCAConfig:
		v.CAConfig = m.ca
	case catalog.QueryVirtualIPs:
		for _, name := range slices.Sorted(maps.Keys(m.vips)) {
			row := &virtualIPRow{Service: name, Offset: m.vips[name]}
			v.VirtualIPs = append(v.VirtualIPs, &catalog.VirtualIP{Service: name, Auto: row.addr().String()})
		}
	default:
		m.viewOperator(v, q)
	}
	m.viewKV(v, q)
	return v
}
