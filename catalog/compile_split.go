package catalog

import (
	"maps"
	"reflect"
	"slices"
)

// flattenSplitters replaces splits that lead to splitters by those of the latter.
func (c *compiler) flattenSplitters() error {
	done := map[string]bool{}
	for _, id := range slices.Sorted(maps.Keys(c.nodes)) {
		if err := c.flatten(id, done, nil); err != nil {
			return err
		}
	}
	return nil
}

func (c *compiler) flatten(id string, done map[string]bool, path []string) error {
	node := c.nodes[id]
	if node.Type != NodeSplitter || done[id] {
		return nil
	}
	if slices.Contains(path, id) {
		return Invalidf("discovery chain %q: splitters lead back to each other: %s", c.service, describeTargets(append(path, id)))
	}
	path = append(path, id)
	var flat []*ChainSplit
	for _, s := range node.Splits {
		next := c.nodes[s.NextNode]
		if next.Type != NodeSplitter {
			flat = append(flat, s)
			continue
		}
		if err := c.flatten(s.NextNode, done, path); err != nil {
			return err
		}
		for _, inner := range next.Splits {
			flat = append(flat, &ChainSplit{
				Definition: inner.Definition.below(s.Definition),
				Weight:     roundWeight(float64(s.Weight) * float64(inner.Weight) / 100),
				NextNode:   inner.NextNode,
			})
		}
		if len(flat) > maxChainNodes {
			return Invalidf("discovery chain %q has more than %d splits", c.service, maxChainNodes)
		}
	}
	node.Splits = flat
	done[id] = true
	return nil
}

// below is a split reached through another: the outer one changes headers too.
func (s *ServiceSplit) below(outer *ServiceSplit) *ServiceSplit {
	out := *s
	out.RequestHeaders = outer.RequestHeaders.then(s.RequestHeaders)
	out.ResponseHeaders = outer.ResponseHeaders.then(s.ResponseHeaders)
	return &out
}

// then is h followed by inner, which wins.
func (h *HTTPHeaderModifiers) then(inner *HTTPHeaderModifiers) *HTTPHeaderModifiers {
	switch {
	case h == nil:
		return inner
	case inner == nil:
		return h
	}
	out := &HTTPHeaderModifiers{Add: maps.Clone(h.Add), Set: maps.Clone(h.Set)}
	for _, m := range []struct {
		to   *map[string]string
		from map[string]string
	}{{&out.Add, inner.Add}, {&out.Set, inner.Set}} {
		if *m.to == nil {
			*m.to = m.from
			continue
		}
		maps.Copy(*m.to, m.from)
	}
	out.Remove = append(slices.Clone(h.Remove), inner.Remove...)
	slices.Sort(out.Remove)
	out.Remove = slices.Compact(out.Remove)
	return out
}

// balanceSplitters gives a splitter the load balancer that all its resolvers have.
func (c *compiler) balanceSplitters() {
	for _, n := range c.nodes {
		if n.Type != NodeSplitter {
			continue
		}
		for i, s := range n.Splits {
			b := c.nodes[s.NextNode].LoadBalancer
			if i > 0 && !sameBalancer(b, n.LoadBalancer) {
				n.LoadBalancer = nil
				break
			}
			n.LoadBalancer = b
		}
	}
}

func sameBalancer(a, b *LoadBalancer) bool {
	if a == nil || b == nil {
		return a == b
	}
	return reflect.DeepEqual(a, b)
}
