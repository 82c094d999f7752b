package discover

import (
	"context"
	"math/rand/v2"

	"github.com/weftmesh/weft/catalog"
)

// Resolve finds a prepared query by its ID, its name or the template for it, and
// renders it. Errors wrap catalog.ErrNotFound when there is none.
func Resolve(ctx context.Context, read Reader, name string) (*catalog.PreparedQuery, error) {
	v, err := read(ctx, catalog.Query{Kind: catalog.QueryPreparedQuery, Name: name})
	if err != nil {
		return nil, err
	}
	if len(v.Queries) == 0 {
		return nil, catalog.NotFoundf("Query not found")
	}
	return v.Queries[0].Render(name, "")
}

// Search says how a rendered query is executed.
type Search struct {
	By Asker
	// Near stands instead of the query's own.
	Near string
	// Connect searches for what speaks the mesh's mTLS for the service, as the query
	// may say itself.
	Connect bool
	// Datacenter is this one.
	Datacenter string
}

// Found is what a query found, and where.
type Found struct {
	Instances  []*catalog.Instance
	Datacenter string
	Peer       string
	// Failovers counts the other places that were tried.
	Failovers int
}

// Execute finds the instances that a rendered query chooses, nearest first where
// that is known, else in no order, so that callers who take the first spread over
// them. When there is none it fails over.
func Execute(ctx context.Context, read Reader, q *catalog.PreparedQuery, s Search) (*Found, error) {
	out := &Found{Datacenter: s.Datacenter, Peer: q.Service.Peer}
	var err error
	if out.Instances, err = find(ctx, read, q, s); err != nil {
		return nil, err
	}
	if len(out.Instances) == 0 {
		failOver(q, out)
	}
	return out, nil
}

func find(ctx context.Context, read Reader, q *catalog.PreparedQuery, s Search) ([]*catalog.Instance, error) {
	if q.Service.Service == "" || q.Service.Peer != "" {
		return nil, nil // peers cannot be asked yet
	}
	kind := catalog.QueryService
	if s.Connect || q.Service.Connect {
		kind = catalog.QueryConnect
	}
	v, err := read(ctx, catalog.Query{Kind: kind, Name: q.Service.Service})
	if err != nil {
		return nil, err
	}
	from := s.Near
	if from == "" {
		from = q.Service.Near
	}
	near, err := Measure(ctx, read, from, s.By)
	if err != nil {
		return nil, err
	}
	found := q.Service.Select(v.Instances)
	rand.Shuffle(len(found), func(i, j int) { found[i], found[j] = found[j], found[i] })
	return Sort(near, found, NodeOf), nil
}

// failOver tries the other places of a query in turn. There is one datacenter, and
// others are left out as if they could not be reached; a peer counts as tried.
func failOver(q *catalog.PreparedQuery, out *Found) {
	for _, t := range q.Service.Failover.Targets {
		if t.Peer == "" {
			continue
		}
		out.Failovers++
		out.Datacenter, out.Peer = "", t.Peer
	}
}
