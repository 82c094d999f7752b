package catalog

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Types of conditions.
const (
	conditionAccepted     = "Accepted"
	conditionBound        = "Bound"
	conditionConflicted   = "Conflicted"
	conditionResolvedRefs = "ResolvedRefs"
)

// GatewayEntries are the entries that have a status.
type GatewayEntries struct {
	Gateways   []*APIGateway
	HTTPRoutes []*HTTPRoute
	TCPRoutes  []*TCPRoute
}

// FoundStatus is what there is to say of one entry.
type FoundStatus struct {
	Entry  StatusEntry
	Status EntryStatus
}

// Statuses judges gateways and the routes that want to bind to them: which are
// valid, and which route is bound to which listener. Conditions that are as before
// keep their time; the others get now. It gives those entries whose status changed.
func (g GatewayEntries) Statuses(src EntrySource, now time.Time) []FoundStatus {
	j := &gatewayJudge{src: src, entries: g, bound: map[string]map[string]int{}}
	found := make([]FoundStatus, 0, len(g.Gateways)+len(g.HTTPRoutes)+len(g.TCPRoutes))
	for _, r := range g.HTTPRoutes {
		found = append(found, FoundStatus{r, EntryStatus{j.httpRoute(r)}})
	}
	for _, r := range g.TCPRoutes {
		found = append(found, FoundStatus{r, EntryStatus{j.tcpRoute(r)}})
	}
	// Last: only now it is known how many routes each listener has.
	for _, gw := range g.Gateways {
		found = append(found, FoundStatus{gw, EntryStatus{j.gateway(gw)}})
	}
	return slices.DeleteFunc(found, func(f FoundStatus) bool { return !f.Status.since(*f.Entry.EntryStatus(), now) })
}

// since gives conditions their times, and tells whether any of them is new or gone.
func (s EntryStatus) since(old EntryStatus, now time.Time) (changed bool) {
	for i := range s.Conditions {
		c := &s.Conditions[i]
		at := slices.IndexFunc(old.Conditions, func(o Condition) bool {
			o.LastTransitionTime = nil
			return o == *c
		})
		if at < 0 || old.Conditions[at].LastTransitionTime == nil {
			t := now
			c.LastTransitionTime, changed = &t, true
			continue
		}
		c.LastTransitionTime = old.Conditions[at].LastTransitionTime
	}
	return changed || len(s.Conditions) != len(old.Conditions)
}

// gatewayJudge is one look at all gateways and routes.
type gatewayJudge struct {
	src     EntrySource
	entries GatewayEntries
	// bound counts the routes of each listener of each gateway.
	bound map[string]map[string]int
}

func condition(kind string, ok bool, reason, message string, of ResourceReference) Condition {
	status := "False"
	if ok {
		status = "True"
	}
	return Condition{Type: kind, Status: status, Reason: reason, Message: message, Resource: of}
}

// boundTo tells whether a route with this status is on a listener of the gateway.
func (s EntryStatus) boundTo(gateway Name) bool {
	return slices.ContainsFunc(s.Conditions, func(c Condition) bool {
		return c.Type == conditionBound && c.Status == "True" && c.Resource.Name == gateway
	})
}

func (e *HTTPRoute) services() []Name {
	var out []Name
	for _, rule := range e.Rules {
		for _, s := range rule.Services {
			out = append(out, s.Name)
		}
	}
	return out
}

func (e *TCPRoute) services() []Name {
	var out []Name
	for _, s := range e.Services {
		out = append(out, s.Name)
	}
	return out
}

func (j *gatewayJudge) httpRoute(r *HTTPRoute) []Condition {
	return j.route(r.Name, r.services(), IsHTTP, r.Hostnames, r.Parents)
}

func (j *gatewayJudge) tcpRoute(r *TCPRoute) []Condition {
	return j.route(r.Name, r.services(), func(p string) bool { return p == ProtocolTCP }, nil, r.Parents)
}

// route judges a route whose protocol is one that speaks accepts.
func (j *gatewayJudge) route(name string, services []Name, speaks func(string) bool, hosts []string, parents []ResourceReference) []Condition {
	refused := func(reason, message string) []Condition {
		return []Condition{condition(conditionAccepted, false, reason, message, ResourceReference{})}
	}
	if len(services) == 0 {
		return refused("NoUpstreamServicesTargeted", "route must target at least one upstream service")
	}
	for _, s := range services {
		if s == "" {
			return refused("InvalidDiscoveryChain", "serviceName is required")
		}
		chain, err := CompileChain(j.src, s, ChainOptions{Datacenter: "-"})
		if err != nil {
			return refused("InvalidDiscoveryChain", err.Error())
		}
		if !speaks(chain.Protocol) {
			return refused("InvalidDiscoveryChain", "route protocol does not match targeted service protocol")
		}
	}
	out := []Condition{condition(conditionAccepted, true, "Accepted", "route is valid", ResourceReference{})}
	for _, p := range parents {
		out = append(out, j.bind(name, p, speaks, hosts))
	}
	return out
}

// bind looks for the listeners of a gateway that a route can be on.
func (j *gatewayJudge) bind(route string, p ResourceReference, speaks func(string) bool, hosts []string) Condition {
	at := slices.IndexFunc(j.entries.Gateways, func(g *APIGateway) bool { return g.Name == p.Name })
	if at < 0 {
		return condition(conditionBound, false, "GatewayNotFound", "gateway was not found", p)
	}
	g := j.entries.Gateways[at]
	fits := false
	for i := range g.Listeners {
		l := &g.Listeners[i]
		if (p.SectionName != "" && p.SectionName != l.Name) || !speaks(l.Protocol) || !hostsFit(l.Hostname, hosts) {
			continue
		}
		fits = true
		if j.bound[g.Name] == nil {
			j.bound[g.Name] = map[string]int{}
		}
		j.bound[g.Name][l.Name]++
	}
	if !fits {
		what := "any of its listeners"
		if p.SectionName != "" {
			what = fmt.Sprintf("listener '%s'", p.SectionName)
		}
		return condition(conditionBound, false, "FailedToBind",
			fmt.Sprintf("failed to bind route %s to gateway %s with %s: no such listener has its protocol and hostname", route, g.Name, what), p)
	}
	return condition(conditionBound, true, "Bound", "successfully bound route", p)
}

// hostsFit tells whether a request for one of hosts can come to a listener. A name
// after "*." stands for what is below it.
func hostsFit(listener string, hosts []string) bool {
	if listener == "" || listener == "*" || len(hosts) == 0 {
		return true
	}
	return slices.ContainsFunc(hosts, func(h string) bool {
		return h == "*" || strings.EqualFold(h, listener) || isBelow(h, listener) || isBelow(listener, h)
	})
}

func isBelow(name, wild string) bool {
	suffix, ok := strings.CutPrefix(strings.ToLower(wild), "*")
	return ok && strings.HasPrefix(suffix, ".") && strings.HasSuffix(strings.ToLower(name), suffix)
}

func (j *gatewayJudge) gateway(g *APIGateway) []Condition {
	var out []Condition
	valid := true
	for i := range g.Listeners {
		l := &g.Listeners[i]
		of := ResourceReference{Kind: KindAPIGatewayEntry, Name: g.Name, SectionName: l.Name}
		conflict := condition(conditionConflicted, false, "NoConflict", "listener has no route conflicts", of)
		if l.Protocol == ProtocolTCP && j.bound[g.Name][l.Name] > 1 {
			conflict = condition(conditionConflicted, true, "RouteConflict", "TCP-based listeners currently only support binding a single route", of)
		}
		refs := condition(conditionResolvedRefs, true, "ResolvedRefs", "resolved refs", of)
		for _, c := range l.TLS.Certificates {
			if j.src.Entry(c.Kind, c.Name) == nil {
				valid = false
				refs = condition(conditionResolvedRefs, false, "InvalidCertificateRef", fmt.Sprintf("certificate %q not found", c.Name), of)
			}
		}
		out = append(out, conflict, refs)
	}
	accepted := condition(conditionAccepted, true, "Accepted", "gateway is valid", ResourceReference{})
	if !valid {
		accepted = condition(conditionAccepted, false, "InvalidCertificates", "gateway references invalid certificates", ResourceReference{})
	}
	out = append(out, accepted)
	slices.SortStableFunc(out, func(a, b Condition) int { return cmp.Compare(a.Type, b.Type) })
	return out
}
