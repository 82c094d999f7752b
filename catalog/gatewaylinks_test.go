package catalog

import (
	"testing"
)

// TestAPIGatewayLinks: an API gateway leads to the services of the routes that are
// bound to it, each once.
func TestAPIGatewayLinks(t *testing.T) {
	bound := func(gateway, status string) EntryStatus {
		return EntryStatus{Conditions: []Condition{{Type: conditionBound, Status: status, Resource: ResourceReference{Name: gateway}}}}
	}
	parents := []ResourceReference{{Kind: KindAPIGatewayEntry, Name: "gw"}}
	entries := []Entry{
		{ConfigEntry: &APIGateway{EntryHead: EntryHead{Name: "gw"}}},
		{ConfigEntry: &HTTPRoute{EntryHead: EntryHead{Name: "a"}, Parents: parents, Status: bound("gw", "True"), Rules: []HTTPRouteRule{
			{Services: []HTTPRouteService{{Name: "web"}, {Name: "api"}}}, {Services: []HTTPRouteService{{Name: "web"}}},
		}}},
		{ConfigEntry: &TCPRoute{EntryHead: EntryHead{Name: "b"}, Parents: parents, Status: bound("gw", "False"), Services: []TCPRouteService{{Name: "db"}}}},
		{ConfigEntry: &TCPRoute{EntryHead: EntryHead{Name: "c"}, Parents: parents, Status: bound("gw", "True"), Services: []TCPRouteService{{Name: "mq"}}}},
	}
	var got []string
	for _, l := range GatewayLinks(entries, []*Instance{{Service: &Service{Service: "web"}}}) {
		if l.Gateway != "gw" || l.Kind != KindAPIGateway || l.Registered != (l.Service == "web") {
			t.Errorf("link %+v", l)
		}
		got = append(got, l.Service)
	}
	if len(got) != 3 || got[0] != "api" || got[1] != "mq" || got[2] != "web" {
		t.Errorf("it leads to %v", got)
	}
	if !HasParent(entries[2].ConfigEntry, "gw") || HasParent(entries[0].ConfigEntry, "gw") || HasParent(entries[2].ConfigEntry, "other") {
		t.Error("parents")
	}
}
