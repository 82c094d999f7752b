package agent

import (
	"context"

	"github.com/weftmesh/weft/agent/checks"
	"github.com/weftmesh/weft/catalog"
)

// aliasTargets watches what alias checks follow on other nodes.
func aliasTargets(views func(catalog.Query) catalog.Watch[*catalog.View]) func(node, service string) catalog.Watch[checks.Target] {
	return func(node, service string) catalog.Watch[checks.Target] {
		n := views(catalog.Query{Kind: catalog.QueryNode, Name: node})
		if service != "" {
			return serviceTarget{node: n, service: service}
		}
		return nodeTarget{node: n, checks: views(catalog.Query{Kind: catalog.QueryNodeChecks, Name: node})}
	}
}

// serviceTarget is a service, by its ID, on a node.
type serviceTarget struct {
	node    catalog.Watch[*catalog.View]
	service string
}

// Next implements catalog.Watch.
func (w serviceTarget) Next(ctx context.Context, after uint64) (checks.Target, uint64, error) {
	v, index, err := w.node.Next(ctx, after)
	if err != nil {
		return checks.Target{}, 0, err
	}
	for _, inst := range v.Instances {
		if inst.Service.ID == w.service {
			return checks.Target{Exists: true, Checks: inst.Checks}, index, nil
		}
	}
	return checks.Target{}, index, nil
}

// nodeTarget is a node itself. Whether it is there and what its checks say are two
// views, for a node may have no service that would carry its checks.
type nodeTarget struct{ node, checks catalog.Watch[*catalog.View] }

// Next implements catalog.Watch. Its index is the sum of those of the two views:
// neither ever falls, so it rises whenever one of them does.
func (w nodeTarget) Next(ctx context.Context, after uint64) (checks.Target, uint64, error) {
	for {
		node, n, err := w.node.Next(ctx, 0)
		if err != nil {
			return checks.Target{}, 0, err
		}
		list, c, err := w.checks.Next(ctx, 0)
		if err != nil {
			return checks.Target{}, 0, err
		}
		if n+c <= after {
			if w.wait(ctx, n, c); ctx.Err() != nil {
				return checks.Target{}, 0, context.Cause(ctx)
			}
			continue
		}
		t := checks.Target{Exists: len(node.Nodes) > 0}
		for _, check := range list.Checks {
			if check.ServiceID == "" {
				t.Checks = append(t.Checks, check)
			}
		}
		return t, n + c, nil
	}
}

// wait ends when either view is newer, or with ctx.
func (w nodeTarget) wait(ctx context.Context, node, list uint64) {
	waiting, cancel := context.WithCancel(ctx)
	defer cancel()
	ended := make(chan struct{}, 2)
	for _, v := range []struct {
		catalog.Watch[*catalog.View]
		after uint64
	}{{w.node, node}, {w.checks, list}} {
		go func() {
			_, _, _ = v.Next(waiting, v.after) // whoever asks next meets the error
			ended <- struct{}{}
		}()
	}
	<-ended
	cancel()
	<-ended
}
