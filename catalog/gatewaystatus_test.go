package catalog

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

func TestGatewayStatuses(t *testing.T) {
	src := entries(t,
		`{"Kind":"service-defaults","Name":"web","Protocol":"http"}`,
		`{"Kind":"file-system-certificate","Name":"cert"}`,
		`{"Kind":"api-gateway","Name":"gw","Listeners":[
			{"Name":"http","Port":80,"Protocol":"http","Hostname":"*.a.test","TLS":{"Certificates":[{"Kind":"file-system-certificate","Name":"cert"}]}},
			{"Name":"tcp","Port":81,"Protocol":"tcp"}]}`,
		`{"Kind":"api-gateway","Name":"broken","Listeners":[{"Name":"l","Port":80,"Protocol":"http","TLS":{"Certificates":[{"Name":"none"}]}}]}`,
		`{"Kind":"http-route","Name":"good","Parents":[{"Name":"gw"}],"Hostnames":["x.a.test"],"Rules":[{"Services":[{"Name":"web"}]}]}`,
		`{"Kind":"http-route","Name":"elsewhere","Parents":[{"Name":"gw","SectionName":"http"}],"Hostnames":["b.test"],"Rules":[{"Services":[{"Name":"web"}]}]}`,
		`{"Kind":"tcp-route","Name":"one","Parents":[{"Name":"gw","SectionName":"tcp"}],"Services":[{"Name":"db"}]}`,
		`{"Kind":"tcp-route","Name":"two","Parents":[{"Name":"gw"},{"Name":"none"}],"Services":[{"Name":"db"}]}`,
		`{"Kind":"tcp-route","Name":"mismatch","Parents":[{"Name":"gw"}],"Services":[{"Name":"web"}]}`,
		`{"Kind":"tcp-route","Name":"empty"}`,
	)
	var in GatewayEntries
	for _, e := range src {
		switch e := e.(type) {
		case *APIGateway:
			in.Gateways = append(in.Gateways, e)
		case *HTTPRoute:
			in.HTTPRoutes = append(in.HTTPRoutes, e)
		case *TCPRoute:
			in.TCPRoutes = append(in.TCPRoutes, e)
		}
	}
	first := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	got := map[string]string{}
	for _, f := range in.Statuses(src, first) {
		var parts []string
		for _, c := range f.Status.Conditions {
			if !c.LastTransitionTime.Equal(first) {
				t.Errorf("%s: %v", f.Entry.EntryName(), c.LastTransitionTime)
			}
			parts = append(parts, fmt.Sprintf("%s/%s=%s", c.Type, c.Resource.SectionName, c.Reason))
		}
		got[f.Entry.EntryName()] = strings.Join(parts, " ")
		*f.Entry.EntryStatus() = f.Status
	}
	for name, want := range map[string]string{
		"good":      "Accepted/=Accepted Bound/=Bound",
		"elsewhere": "Accepted/=Accepted Bound/http=FailedToBind",
		"one":       "Accepted/=Accepted Bound/tcp=Bound",
		"two":       "Accepted/=Accepted Bound/=Bound Bound/=GatewayNotFound",
		"mismatch":  "Accepted/=InvalidDiscoveryChain",
		"empty":     "Accepted/=NoUpstreamServicesTargeted",
		"gw":        "Accepted/=Accepted Conflicted/http=NoConflict Conflicted/tcp=RouteConflict ResolvedRefs/http=ResolvedRefs ResolvedRefs/tcp=ResolvedRefs",
		"broken":    "Accepted/=InvalidCertificates Conflicted/l=NoConflict ResolvedRefs/l=InvalidCertificateRef",
	} {
		if got[name] != want {
			t.Errorf("%s:\ngot  %s\nwant %s", name, got[name], want)
		}
	}
	if again := in.Statuses(src, first.Add(time.Hour)); len(again) != 0 {
		t.Errorf("%d entries have news although nothing changed", len(again))
	}
	in.TCPRoutes = in.TCPRoutes[:1]
	later := first.Add(time.Hour)
	again := in.Statuses(src, later)
	if len(again) != 1 || again[0].Entry.EntryName() != "gw" {
		t.Fatalf("%+v", again)
	}
	for _, c := range again[0].Status.Conditions {
		if changed := c.Type == "Conflicted" && c.Resource.SectionName == "tcp"; changed != c.LastTransitionTime.Equal(later) {
			t.Errorf("%+v", c)
		}
	}
}
