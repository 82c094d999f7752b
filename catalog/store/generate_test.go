package store

import (
	"time"

	"pgregory.net/rapid"

	"github.com/weftmesh/weft/catalog"
)

// Small worlds, so that commands meet each other's rows often.
var (
	nodeNames    = []string{"n1", "n2", "n10"}
	nodeIDs      = []string{"", "id-a", "id-b", "id-c"}
	serviceNames = []string{"web", "db", "we", "web-proxy"}
	serviceIDs   = []string{"s1", "s2", "s3"}
	checkIDs     = []string{"c1", "c2", catalog.NodeCheckID}
	statuses     = []string{catalog.StatusPassing, catalog.StatusWarning, catalog.StatusCritical}
	policyNames  = []string{"web", "db", "we", "we*", "w*", catalog.Wildcard}
	queryIDs     = []string{"q1", "q2", "q3"}
	queryNames   = []string{"", "q1", "ge", "geo-"}
	tagSets      = [][]string{nil, {"a"}, {"a", "b"}, {"c"}}
)

// queries is every question that the small world has an answer to, and a few it has not.
func queries() []catalog.Query {
	out := []catalog.Query{
		{Kind: catalog.QueryNodes},
		{Kind: catalog.QueryServices},
		{Kind: catalog.QueryInstances},
		{Kind: catalog.QueryIntentions},
		{Kind: catalog.QueryRoots},
		{Kind: catalog.QueryCAConfig},
		{Kind: catalog.QueryDump},
		{Kind: catalog.QueryPreparedQueries},
		{Kind: catalog.QueryCoordinates},
		{Kind: catalog.QueryAutopilot},
		{Kind: catalog.QueryCertRevocations},
		{Kind: catalog.QueryRevocations},
		{Kind: catalog.QueryVirtualIPs},
		{Kind: catalog.QueryConfigEntries, Name: catalog.KindServiceIntentions},
	}
	for _, n := range append(nodeNames, "never") {
		out = append(out, catalog.Query{Kind: catalog.QueryNode, Name: n}, catalog.Query{Kind: catalog.QueryNodeChecks, Name: n},
			catalog.Query{Kind: catalog.QueryCoordinate, Name: n})
	}
	for _, s := range append(serviceNames, "never") {
		out = append(out, catalog.Query{Kind: catalog.QueryService, Name: s}, catalog.Query{Kind: catalog.QueryConnect, Name: s},
			catalog.Query{Kind: catalog.QueryServiceChecks, Name: s})
	}
	for _, s := range serviceNames {
		out = append(out, catalog.Query{Kind: catalog.QueryGateway, Name: s})
	}
	for _, n := range append(queryIDs, "ge", "geo-x", "never") {
		out = append(out, catalog.Query{Kind: catalog.QueryPreparedQuery, Name: n})
	}
	for _, s := range append(statuses, catalog.StatusAny) {
		out = append(out, catalog.Query{Kind: catalog.QueryChecks, Name: s})
	}
	for _, s := range append(policyNames, "never") {
		out = append(out, catalog.Query{Kind: catalog.QueryIntentionsDest, Name: s}, catalog.Query{Kind: catalog.QueryIntentionsSrc, Name: s},
			catalog.Query{Kind: catalog.QueryConfigEntry, Name: catalog.KindServiceIntentions, Sub: s})
	}
	return append(out, kvQueries()...)
}

func pick[T any](t *rapid.T, from []T, label string) T { return rapid.SampledFrom(from).Draw(t, label) }

func drawNode(t *rapid.T) *catalog.Node {
	return &catalog.Node{
		Node: pick(t, nodeNames, "node"), ID: pick(t, nodeIDs, "node ID"),
		Address: pick(t, []string{"10.0.0.1", "10.0.0.2"}, "address"), Datacenter: "dc1",
	}
}

func drawService(t *rapid.T, id string) *catalog.Service {
	s := &catalog.Service{
		ID: id, Service: pick(t, serviceNames, "service"), Tags: pick(t, tagSets, "tags"),
		Address: pick(t, []string{"", "10.0.0.1", "10.0.0.3"}, "own address"),
		Port:    rapid.IntRange(80, 81).Draw(t, "port"), EnableTagOverride: rapid.Bool().Draw(t, "override"),
	}
	switch rapid.IntRange(0, 3).Draw(t, "kind") {
	case 0:
		s.Kind = catalog.KindConnectProxy
		s.Proxy.DestinationServiceName = pick(t, serviceNames, "proxied")
	case 1:
		s.Connect.Native = true
	}
	return s
}

func drawCheck(t *rapid.T, id string) *catalog.Check {
	c := &catalog.Check{CheckID: id, Name: id, Status: pick(t, statuses, "status")}
	if id != catalog.NodeCheckID && rapid.Bool().Draw(t, "of a service") {
		c.ServiceID = pick(t, serviceIDs, "check's service")
	}
	return c
}

func drawSource(t *rapid.T) catalog.SourceIntention {
	return catalog.SourceIntention{
		Name:     pick(t, policyNames, "source"),
		Action:   pick(t, []catalog.Action{catalog.ActionAllow, catalog.ActionDeny}, "action"),
		LegacyID: pick(t, []string{"", "", "l1", "l2"}, "legacy ID"),
	}
}

func drawSync(t *rapid.T) *catalog.SyncNode {
	c := &catalog.SyncNode{State: catalog.NodeState{Node: drawNode(t)}}
	for _, id := range serviceIDs {
		if rapid.Bool().Draw(t, "has "+id) {
			c.State.Services = append(c.State.Services, drawService(t, id))
		}
	}
	for _, id := range checkIDs[:2] {
		if rapid.Bool().Draw(t, "has "+id) {
			ch := drawCheck(t, id)
			ch.ServiceID = ""
			if len(c.State.Services) > 0 && rapid.Bool().Draw(t, "of a service") {
				ch.ServiceID = pick(t, c.State.Services, "check's service").ID
			}
			c.State.Checks = append(c.State.Checks, ch)
		}
	}
	return c
}

func drawRegister(t *rapid.T) *catalog.Register {
	c := &catalog.Register{Node: drawNode(t), SkipNodeUpdate: rapid.Bool().Draw(t, "skip")}
	if rapid.Bool().Draw(t, "with service") {
		c.Service = drawService(t, pick(t, append(serviceIDs, catalog.ServerService), "service ID"))
		if c.Service.ID == catalog.ServerService {
			c.Service = &catalog.Service{ID: catalog.ServerService, Service: catalog.ServerService}
		}
	}
	for _, id := range checkIDs {
		if rapid.Bool().Draw(t, "with "+id) {
			c.Checks = append(c.Checks, drawCheck(t, id))
		}
	}
	return c
}

// drawCommand draws a valid command; at is an index for check-and-sets.
func drawCommand(t *rapid.T, at uint64) catalog.Command {
	cas := rapid.IntRange(0, 4).Draw(t, "cas") == 0
	switch rapid.IntRange(0, 35).Draw(t, "command") {
	case 34:
		return drawRevoke(t)
	case 35:
		return &catalog.Allow{Kind: pick(t, revocable, "kind"), ID: pick(t, revocableIDs, "revoked ID")}
	case 27:
		q := catalog.PreparedQuery{ID: pick(t, queryIDs, "query ID"), Name: pick(t, queryNames, "query name")}
		q.Service.Service = pick(t, serviceNames, "service")
		if q.Name == "" || rapid.Bool().Draw(t, "template") {
			q.Template.Type = catalog.TemplatePrefix
		}
		return &catalog.SetPreparedQuery{Query: q, Update: rapid.Bool().Draw(t, "update")}
	case 28:
		return &catalog.DeletePreparedQuery{ID: pick(t, queryIDs, "query ID")}
	case 29:
		c := &catalog.SetCoordinates{}
		for range rapid.IntRange(1, 2).Draw(t, "updates") {
			u := &catalog.NodeCoordinate{Node: pick(t, nodeNames, "node")}
			u.Coord.Vec = make([]float64, catalog.CoordinateDimensions)
			u.Coord.Vec[0] = float64(rapid.IntRange(0, 1).Draw(t, "place"))
			c.Updates = append(c.Updates, u)
		}
		return c
	case 31:
		r := catalog.CertRevocation{Serial: pick(t, []string{"01", "02"}, "serial"), Description: pick(t, []string{"", "lost"}, "why")}
		r.RevokedAt = time.Unix(int64(rapid.IntRange(1, 3).Draw(t, "at")), 0).UTC()
		if rapid.Bool().Draw(t, "identity") {
			r.Serial, r.URI = "", "spiffe://a/b"
		}
		return &catalog.SetCertRevocation{Revocation: r}
	case 32:
		if rapid.Bool().Draw(t, "identity") {
			return &catalog.DeleteCertRevocation{URI: "spiffe://a/b"}
		}
		return &catalog.DeleteCertRevocation{Serial: "01"}
	case 33:
		return &catalog.PruneCertRevocations{Before: time.Unix(2, 0).UTC()}
	case 30:
		a := catalog.DefaultAutopilot()
		a.MinQuorum = uint(rapid.IntRange(0, 1).Draw(t, "quorum"))
		return &catalog.SetAutopilot{Config: a, CAS: cas, Index: at}
	case 0, 1, 2:
		return drawSync(t)
	case 3, 4, 5:
		return drawRegister(t)
	case 6:
		d := &catalog.Deregister{Node: pick(t, nodeNames, "node")}
		switch rapid.IntRange(0, 2).Draw(t, "what") {
		case 0:
			d.ServiceID = pick(t, serviceIDs, "service ID")
		case 1:
			d.CheckID = pick(t, checkIDs, "check ID")
		}
		return d
	case 7:
		e := &catalog.ServiceIntentions{Name: pick(t, policyNames, "destination")}
		for _, n := range policyNames {
			if rapid.Bool().Draw(t, "from "+n) || n == catalog.Wildcard && len(e.Sources) == 0 {
				src := drawSource(t)
				src.Name = n
				e.Sources = append(e.Sources, &src)
			}
		}
		return &catalog.SetConfigEntry{Entry: catalog.Entry{ConfigEntry: e}, CAS: cas, Index: at}
	case 8:
		return &catalog.DeleteConfigEntry{Kind: catalog.KindServiceIntentions, Name: pick(t, policyNames, "destination"), CAS: cas, Index: at}
	case 9:
		return &catalog.SetIntention{Destination: pick(t, policyNames, "destination"), Source: drawSource(t), CreateOnly: cas}
	case 10:
		if rapid.Bool().Draw(t, "by pair") {
			return &catalog.DeleteIntention{Destination: pick(t, policyNames, "destination"), Source: pick(t, policyNames, "source")}
		}
		return &catalog.DeleteIntention{ID: "l-never"}
	case 11:
		return &catalog.SetCAConfig{CAS: cas, Index: at, Config: catalog.CAConfig{
			Provider: "consul", ClusterID: pick(t, []string{"", "u1", "u2"}, "cluster ID"),
			Config: map[string]any{"LeafCertTTL": pick(t, []string{"24h", "72h"}, "ttl")},
		}}
	case 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24:
		return drawKVCommand(t, at)
	default:
		roots := []*catalog.Root{{ID: "r1", SealedKey: []byte("k")}, {ID: "r2"}}[:rapid.IntRange(1, 2).Draw(t, "roots")]
		roots[rapid.IntRange(0, len(roots)-1).Draw(t, "active")].Active = true
		return &catalog.SetRoots{Roots: roots, Index: at}
	}
}
