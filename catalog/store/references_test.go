package store

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/weftmesh/weft/catalog"
)

// set writes an entry given as JSON.
func setEntry(t *testing.T, s *Store, doc string) error {
	t.Helper()
	raw, err := catalog.ParseJSON([]byte(doc))
	if err != nil {
		t.Fatal(err)
	}
	e, err := catalog.DecodeConfigEntry(raw)
	if err != nil {
		t.Fatal(err)
	}
	e.Normalize()
	_, err = s.Apply(s.Index()+2, &catalog.SetConfigEntry{Entry: catalog.Entry{ConfigEntry: e}})
	return err
}

func dropEntry(t *testing.T, s *Store, kind, name string) error {
	t.Helper()
	_, err := s.Apply(s.Index()+2, &catalog.DeleteConfigEntry{Kind: kind, Name: name})
	return err
}

func TestEntriesMustFitTogether(t *testing.T) {
	s := newStore(t, Config{})
	must := func(doc string) {
		t.Helper()
		if err := setEntry(t, s, doc); err != nil {
			t.Fatalf("%s: %v", doc, err)
		}
	}
	refused := func(err error, want string) {
		t.Helper()
		if !errors.Is(err, catalog.ErrInvalid) || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %s", err, want)
		}
	}
	refused(setEntry(t, s, `{"Kind":"service-router","Name":"web"}`), "does not permit advanced routing")
	must(`{"Kind":"proxy-defaults","Config":{"protocol":"http"}}`)
	must(`{"Kind":"service-router","Name":"web","Routes":[{"Destination":{"Service":"api"}}]}`)
	refused(dropEntry(t, s, catalog.KindProxyDefaults, "global"), "does not permit advanced routing")
	refused(setEntry(t, s, `{"Kind":"proxy-defaults","Config":{"protocol":"tcp"}}`), "does not permit advanced routing")
	// What a chain of another leads through counts as well.
	refused(setEntry(t, s, `{"Kind":"service-defaults","Name":"api","Protocol":"grpc"}`), `discovery chain "web" uses inconsistent protocols`)
	must(`{"Kind":"service-resolver","Name":"api","Redirect":{"Service":"v2"}}`)
	refused(setEntry(t, s, `{"Kind":"service-defaults","Name":"v2","Protocol":"grpc"}`), "inconsistent protocols")
	refused(setEntry(t, s, `{"Kind":"service-resolver","Name":"v2","Redirect":{"Service":"api"}}`), "circular")
	must(`{"Kind":"service-resolver","Name":"v2","Subsets":{"x":{}}}`)
	must(`{"Kind":"service-resolver","Name":"api","Redirect":{"Service":"v2","ServiceSubset":"x"}}`)
	refused(dropEntry(t, s, catalog.KindServiceResolver, "v2"), `service "v2" does not have a subset named "x"`)
	refused(setEntry(t, s, `{"Kind":"service-resolver","Name":"v2"}`), `service "v2" does not have a subset named "x"`)

	must(`{"Kind":"service-intentions","Name":"api","Sources":[{"Name":"web","Permissions":[{"Action":"allow","HTTP":{"PathPrefix":"/"}}]}]}`)
	must(`{"Kind":"service-defaults","Name":"db","Protocol":"tcp"}`)
	refused(setEntry(t, s, `{"Kind":"service-intentions","Name":"db","Sources":[{"Name":"web","Permissions":[{"Action":"allow","HTTP":{"PathPrefix":"/"}}]}]}`), "incompatible with L7 intentions")
	_, err := s.Apply(s.Index()+2, &catalog.SetIntention{Destination: "db", Source: catalog.SourceIntention{
		Name: "web", Permissions: []*catalog.IntentionPermission{{Action: "allow", HTTP: &catalog.IntentionHTTP{PathPrefix: "/"}}},
	}})
	refused(err, "incompatible with L7 intentions")

	jwt := `{"Kind":"service-intentions","Name":"v3","JWT":{"Providers":[{"Name":"p"}]},"Sources":[{"Name":"web","Action":"allow"}]}`
	refused(setEntry(t, s, jwt), "Referenced JWT provider does not exist. Provider Name: p")
	must(`{"Kind":"jwt-provider","Name":"p","JSONWebKeySet":{"Local":{"Filename":"f"}}}`)
	must(jwt)
	refused(dropEntry(t, s, catalog.KindJWTProvider, "p"), "cannot delete jwt provider config entry referenced by an intention")
	if err := errors.Join(dropEntry(t, s, catalog.KindServiceIntentions, "v3"), dropEntry(t, s, catalog.KindJWTProvider, "p")); err != nil {
		t.Error(err)
	}

	must(`{"Kind":"ingress-gateway","Name":"in","Listeners":[{"Port":1,"Protocol":"tcp","Services":[{"Name":"db"}]}]}`)
	refused(setEntry(t, s, `{"Kind":"service-defaults","Name":"db","Protocol":"http"}`), `of ingress-gateway "in"`)
	refused(setEntry(t, s, `{"Kind":"ingress-gateway","Name":"in","Listeners":[{"Port":1,"Protocol":"http","Services":[{"Name":"db"}]}]}`), "incompatible with protocol \"http\"")

	refused(setEntry(t, s, `{"Kind":"service-defaults","Name":"db","Protocol":"tcp","MutualTLSMode":"permissive"}`), "AllowEnablingPermissiveMutualTLS=false")
	must(`{"Kind":"mesh","AllowEnablingPermissiveMutualTLS":true}`)
	must(`{"Kind":"service-defaults","Name":"db","Protocol":"tcp","MutualTLSMode":"permissive"}`)
}

func TestChainsAreAnsweredAtTheIndexOfTheirEntries(t *testing.T) {
	s := newStore(t, Config{})
	defer s.Close()
	q := catalog.ChainOptions{Datacenter: "dc1"}.Query("web")
	if v := read(t, s, q); v.Index != 1 || v.Chain == nil || !v.Chain.Default || v.Chain.AutoVirtualIPs != nil {
		t.Fatalf("%+v", v)
	}
	at := func(doc string) uint64 {
		t.Helper()
		if err := setEntry(t, s, doc); err != nil {
			t.Fatal(err)
		}
		return s.Index()
	}
	at(`{"Kind":"service-resolver","Name":"other"}`)
	if v := read(t, s, q); v.Index != 1 {
		t.Errorf("the chain of web is said to change with that of another: %d", v.Index)
	}
	mine := at(`{"Kind":"service-resolver","Name":"web","Redirect":{"Service":"api"}}`)
	if v := read(t, s, q); v.Index != mine || v.Chain.StartNode != "resolver:api.default.default.dc1" || fmt.Sprint(v.Chain.AutoVirtualIPs) != "[240.0.0.2]" {
		t.Errorf("%d: %+v", v.Index, v.Chain)
	}
	theirs := at(`{"Kind":"service-resolver","Name":"api","ConnectTimeout":"1s"}`)
	if v := read(t, s, q); v.Index != theirs || v.Chain.Targets["api.default.default.dc1"].ConnectTimeout.String() != "1s" {
		t.Errorf("%d: %+v", v.Index, v.Chain)
	}
	if err := dropEntry(t, s, catalog.KindServiceResolver, "web"); err != nil {
		t.Fatal(err)
	}
	gone := s.Index()
	at(`{"Kind":"service-resolver","Name":"api","ConnectTimeout":"2s"}`)
	if v := read(t, s, q); v.Index != gone || !v.Chain.Default || v.Chain.AutoVirtualIPs != nil {
		t.Errorf("%d: %+v", v.Index, v.Chain)
	}

	ctx := t.Context()
	w := s.Watch(q)
	_, seen, err := w.Next(ctx, 0)
	if err != nil {
		t.Fatal(err)
	}
	last := at(`{"Kind":"proxy-defaults","Config":{"protocol":"grpc"}}`)
	if v, i, err := w.Next(ctx, seen); err != nil || i != last || v.Chain.Protocol != "grpc" {
		t.Errorf("%d %v", i, err)
	}
}

// Whatever entries are written, in whatever order: a chain that changed has the
// index of now, none falls, and every server has the same.
func TestChainIndexesFollowChains(t *testing.T) {
	names := []string{"a", "b", "c"}
	rapid.Check(t, func(t *rapid.T) {
		pick := func(of ...string) string { return rapid.SampledFrom(of).Draw(t, "of") }
		one, two := newStore(t, Config{}), newStore(t, Config{})
		type answer struct {
			index uint64
			chain string
		}
		was := map[string]answer{}
		for range rapid.IntRange(1, 30).Draw(t, "commands") {
			head := catalog.EntryHead{Name: pick(names...)}
			var e catalog.ConfigEntry
			switch pick("resolver", "splitter", "router", "defaults", "global") {
			case "resolver":
				r := &catalog.ServiceResolver{EntryHead: head, ConnectTimeout: catalog.Duration(rapid.IntRange(0, 2).Draw(t, "timeout"))}
				if pick("redirect", "failover", "") == "redirect" {
					r.Redirect = &catalog.ServiceResolverRedirect{Service: pick(names...)}
				} else {
					r.Failover = map[string]*catalog.ServiceResolverFailover{"*": {Service: pick(names...)}}
				}
				e = r
			case "splitter":
				e = &catalog.ServiceSplitter{EntryHead: head, Splits: []*catalog.ServiceSplit{{Weight: 100, Service: pick(names...)}}}
			case "router":
				e = &catalog.ServiceRouter{EntryHead: head, Routes: []*catalog.ServiceRoute{{Destination: &catalog.ServiceRouteDestination{Service: pick(names...)}}}}
			case "defaults":
				e = &catalog.ServiceDefaults{EntryHead: head, Protocol: pick("", "http", "tcp")}
			default:
				e = &catalog.ProxyDefaults{EntryHead: catalog.EntryHead{Name: "global"}, Config: map[string]any{"protocol": pick("http", "tcp")}}
			}
			var cmd catalog.Command = &catalog.SetConfigEntry{Entry: catalog.Entry{ConfigEntry: e}}
			if rapid.IntRange(0, 3).Draw(t, "delete") == 0 {
				cmd = &catalog.DeleteConfigEntry{Kind: e.EntryKind(), Name: e.EntryName()}
			}
			at := one.Index() + 2
			_, err1 := one.Apply(at, cmd)
			_, err2 := two.Apply(at, cmd)
			if (err1 == nil) != (err2 == nil) || one.Fingerprint() != two.Fingerprint() {
				t.Fatalf("two servers differ: %v, %v", err1, err2)
			}
			for _, n := range names {
				v := read(t, one, catalog.ChainOptions{Datacenter: "dc1"}.Query(n))
				if v.Chain == nil {
					t.Fatalf("%s does not compile after all: %s", n, v.Problem)
				}
				b, err := json.Marshal(v.Chain)
				if err != nil {
					t.Fatal(err)
				}
				old, now := was[n], answer{v.Index, string(b)}
				if now.index < old.index || (old.chain != "" && old.chain != now.chain && now.index != at) {
					t.Fatalf("chain of %s: index %d at %d, was %d\nwas %s\nnow %s", n, now.index, at, old.index, old.chain, now.chain)
				}
				was[n] = now
			}
		}
	})
}

func TestMergedInstances(t *testing.T) {
	s := newStore(t, Config{})
	defer s.Close()
	apply(t, s, &catalog.Register{Node: &catalog.Node{Node: "n"}, Service: &catalog.Service{
		Kind: catalog.KindConnectProxy, ID: "p", Service: "web-proxy",
		Proxy: catalog.ConnectProxy{DestinationServiceName: "web", Upstreams: []catalog.Upstream{{DestinationName: "db"}}},
	}})
	q := catalog.Query{Kind: catalog.QueryConnect, Name: "web", Sub: catalog.SubMerged}
	v := read(t, s, q)
	if v.Instances[0].Service.Proxy.Config != nil {
		t.Errorf("%+v", v.Instances[0].Service.Proxy)
	}
	w := s.Watch(q)
	_, seen, err := w.Next(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := setEntry(t, s, `{"Kind":"service-defaults","Name":"db","Protocol":"http"}`); err != nil {
		t.Fatal(err)
	}
	at := s.Index()
	v, i, err := w.Next(t.Context(), seen)
	if err != nil || i != at || v.Instances[0].Service.Proxy.Upstreams[0].Config["protocol"] != "http" {
		t.Errorf("%d %v %+v", i, err, v.Instances[0].Service.Proxy)
	}
	q.Sub = ""
	if v := read(t, s, q); v.Index == at || v.Instances[0].Service.Proxy.Upstreams[0].Config != nil {
		t.Errorf("what was registered changed: %d", v.Index)
	}
	q.Sub = "x"
	if q.Validate() == nil {
		t.Error("an unknown way to ask was accepted")
	}
}

func TestStatusOfEntries(t *testing.T) {
	s := newStore(t, Config{})
	const doc = `{"Kind":"tcp-route","Name":"r","Services":[{"Name":"db"}],"Status":{"Conditions":[{"Type":"mine"}]}}`
	if err := setEntry(t, s, doc); err != nil {
		t.Fatal(err)
	}
	status := func() (*catalog.TCPRoute, int) {
		t.Helper()
		v := read(t, s, catalog.Query{Kind: catalog.QueryConfigEntry, Name: catalog.KindTCPRoute, Sub: "r"})
		r := v.Entries[0].ConfigEntry.(*catalog.TCPRoute)
		return r, len(r.Status.Conditions)
	}
	r, n := status()
	if n != 0 {
		t.Error("a client wrote a status")
	}
	set := &catalog.SetEntryStatus{
		Kind: catalog.KindTCPRoute, Name: "r", Index: r.ModifyIndex,
		Status: catalog.EntryStatus{Conditions: []catalog.Condition{{Type: "Accepted"}}},
	}
	if ok := apply(t, s, set); ok != true {
		t.Fatal(ok)
	}
	if ok := apply(t, s, set); ok != false {
		t.Error("a status of an older entry was written")
	}
	before, n := status()
	if n != 1 || before.ModifyIndex == r.ModifyIndex {
		t.Errorf("%+v", before)
	}
	if err := setEntry(t, s, doc); err != nil {
		t.Fatal(err)
	}
	if after, n := status(); n != 1 || after.ModifyIndex != before.ModifyIndex {
		t.Errorf("the same entry written again: %+v", after)
	}
	if ok := apply(t, s, &catalog.SetEntryStatus{Kind: catalog.KindTCPRoute, Name: "none"}); ok != false {
		t.Error(ok)
	}
	if (&catalog.SetEntryStatus{Kind: catalog.KindMesh, Name: "mesh"}).Validate() == nil {
		t.Error("a mesh has no status")
	}
}

func TestVirtualIPs(t *testing.T) {
	s := newStore(t, Config{})
	register := func(node, service string) string {
		t.Helper()
		apply(t, s, &catalog.Register{Node: &catalog.Node{Node: node}, Service: &catalog.Service{
			ID: service, Service: service, Port: 80, Connect: catalog.ServiceConnect{Native: true},
		}})
		v := read(t, s, catalog.Query{Kind: catalog.QueryConnect, Name: service})
		a := v.Instances[0].Service.TaggedAddresses[virtualTag]
		if a.Port != 80 {
			t.Errorf("%+v", a)
		}
		return a.Address
	}
	a, b := register("n1", "a"), register("n1", "b")
	if a != "240.0.0.1" || b != "240.0.0.2" || register("n2", "a") != a {
		t.Errorf("%s %s", a, b)
	}
	before := s.Fingerprint()
	if register("n2", "a") != a || s.Fingerprint() == "" || before == "" {
		t.Error("the address moved")
	}
	all := catalog.Query{Kind: catalog.QueryVirtualIPs}
	both := read(t, s, all)
	if len(both.VirtualIPs) != 2 || both.VirtualIPs[0].Service != "a" || both.VirtualIPs[1].Addrs()[0].String() != b {
		t.Errorf("%+v", both.VirtualIPs)
	}
	apply(t, s, &catalog.SetVirtualIPs{Service: "b", IPs: []string{"10.0.0.9"}})
	given := read(t, s, all)
	if given.Index <= both.Index || fmt.Sprint(given.VirtualIPs[1].Addrs()) != "["+b+" 10.0.0.9]" {
		t.Errorf("index %d, before %d: %+v", given.Index, both.Index, given.VirtualIPs[1])
	}
	apply(t, s, &catalog.Deregister{Node: "n1"})
	if v := read(t, s, all); v.Index <= given.Index || len(v.VirtualIPs) != 1 {
		t.Errorf("index %d, before %d: %+v", v.Index, given.Index, v.VirtualIPs)
	}
	if got := register("n1", "a"); got != a {
		t.Errorf("a was on n2 all the time, now it is %s", got)
	}
	if got := register("n1", "b"); got != "240.0.0.3" {
		t.Errorf("the address of a service that went was given again: %s", got)
	}
	if err := setEntry(t, s, `{"Kind":"service-defaults","Name":"b"}`); err != nil {
		t.Fatal(err)
	}
	apply(t, s, &catalog.Deregister{Node: "n1"})
	if got := register("n1", "b"); got != "240.0.0.3" {
		t.Errorf("an entry spoke of b all the time, now it is %s", got)
	}
	w := newWriter(s.state.Load().now.Load(), s.Index()+2)
	w.insert(tableVirtualIPs, &virtualIPRow{Service: virtualIPMark, Offset: virtualIPLast})
	if row, ok := w.wantVirtualIP("late"); !ok || row.Offset != 2 {
		t.Errorf("with all given once, the lowest that is free was wanted: %+v", row)
	}
	last := &virtualIPRow{Offset: virtualIPLast}
	if got := last.addr().String(); got != "255.255.255.254" {
		t.Error(got)
	}
}

// TestAPIGatewayWakes: who asks what an API gateway leads to hears of its routes.
func TestAPIGatewayWakes(t *testing.T) {
	st := newStore(t, Config{})
	q := catalog.Query{Kind: catalog.QueryGateway, Name: "gw"}
	index := uint64(1)
	set := func(e catalog.ConfigEntry) {
		t.Helper()
		index++
		if _, err := st.Apply(index, &catalog.SetConfigEntry{Entry: catalog.Entry{ConfigEntry: e}}); err != nil {
			t.Fatal(err)
		}
	}
	read := func() *catalog.View {
		t.Helper()
		v, err := st.Read(q)
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	set(&catalog.APIGateway{EntryHead: catalog.EntryHead{Name: "gw"}, Listeners: []catalog.APIGatewayListener{{Name: "l", Port: 80, Protocol: "tcp"}}})
	before := read()
	set(&catalog.TCPRoute{
		EntryHead: catalog.EntryHead{Name: "r"}, Parents: []catalog.ResourceReference{{Kind: catalog.KindAPIGatewayEntry, Name: "gw"}},
		Services: []catalog.TCPRouteService{{Name: "db"}},
	})
	if after := read(); after.Index <= before.Index || len(after.Entries) != 2 {
		t.Errorf("%d entries at %d, before %d at %d", len(after.Entries), after.Index, len(before.Entries), before.Index)
	}
}

// TestTerminatingGatewaysAreConnectCapable: who asks for the mesh's side of a service
// is given the gateways that speak for it, and hears of each change that concerns them.
func TestTerminatingGatewaysAreConnectCapable(t *testing.T) {
	s := newStore(t, Config{})
	last := uint64(0)
	expect := func(when, want string, changed bool) {
		t.Helper()
		v, err := s.Read(catalog.Query{Kind: catalog.QueryConnect, Name: "billing"})
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, i := range v.Instances {
			got = append(got, i.Node.Node+"/"+i.Service.ID)
		}
		if g := strings.Join(got, " "); g != want {
			t.Errorf("%s: %q, want %q", when, g, want)
		}
		if v.Index < last || changed && v.Index == last {
			t.Errorf("%s: index %d after %d", when, v.Index, last)
		}
		last = v.Index
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	register := func(node string, svc *catalog.Service) {
		t.Helper()
		apply(t, s, &catalog.Register{Node: &catalog.Node{Node: node, Address: "10.0.0.1"}, Service: svc})
	}
	expect("nothing", "", false)
	register("n2", &catalog.Service{ID: "exit", Service: "exit", Kind: catalog.KindTerminatingGateway, Port: 8443})
	expect("a gateway that leads nowhere", "", false)
	must(setEntry(t, s, `{"Kind":"terminating-gateway","Name":"exit","Services":[{"Name":"billing"}]}`))
	expect("a gateway that names it", "n2/exit", true)
	register("n1", &catalog.Service{
		ID: "proxy", Service: "billing-sidecar-proxy", Kind: catalog.KindConnectProxy, Port: 9,
		Proxy: catalog.ConnectProxy{DestinationServiceName: "billing"},
	})
	expect("a sidecar beside it", "n1/proxy n2/exit", true)
	register("n3", &catalog.Service{ID: "exit", Service: "exit", Kind: catalog.KindTerminatingGateway, Port: 8443})
	expect("a second instance of the gateway", "n1/proxy n2/exit n3/exit", true)
	must(setEntry(t, s, `{"Kind":"terminating-gateway","Name":"exit","Services":[{"Name":"other"}]}`))
	expect("a gateway that names it no more", "n1/proxy", true)
	must(setEntry(t, s, `{"Kind":"terminating-gateway","Name":"exit","Services":[{"Name":"*"}]}`))
	expect("a wildcard, and it speaks in the mesh only", "n1/proxy", false)
	register("n4", &catalog.Service{ID: "billing", Service: "billing", Port: 80})
	expect("a wildcard, and it speaks in plain too", "n1/proxy n2/exit n3/exit", true)
	must(setEntry(t, s, `{"Kind":"terminating-gateway","Name":"exit","Services":[{"Name":"*"},{"Name":"billing"}]}`))
	expect("a wildcard beside its name", "n1/proxy n2/exit n3/exit", false)
	apply(t, s, &catalog.Deregister{Node: "n3"})
	expect("an instance of the gateway less", "n1/proxy n2/exit", true)
	must(dropEntry(t, s, catalog.KindTerminatingGatewayEntry, "exit"))
	expect("no entry", "n1/proxy", true)
}

// TestServicesBehindGatewaysHaveAddresses: a service that a terminating gateway names
// has a virtual address for as long.
func TestServicesBehindGatewaysHaveAddresses(t *testing.T) {
	s := newStore(t, Config{})
	has := func(service string) bool {
		_, ok := s.state.Load().read().virtualIP(service)
		return ok
	}
	if err := setEntry(t, s, `{"Kind":"terminating-gateway","Name":"exit","Services":[{"Name":"billing"},{"Name":"*"}]}`); err != nil {
		t.Fatal(err)
	}
	if !has("billing") || has("*") {
		t.Errorf("billing: %t, *: %t", has("billing"), has("*"))
	}
	if err := dropEntry(t, s, catalog.KindTerminatingGatewayEntry, "exit"); err != nil {
		t.Fatal(err)
	}
	if has("billing") {
		t.Error("billing keeps an address although nothing speaks of it")
	}
}

// TestPatternsMoveTheirNamesOnly: a change of intentions for "db-*" or from "job-*" is
// heard of by who asks for a name that it covers, and by nobody else.
func TestPatternsMoveTheirNamesOnly(t *testing.T) {
	s := newStore(t, Config{})
	index := func(kind catalog.QueryKind, name string) uint64 {
		t.Helper()
		v, err := s.Read(catalog.Query{Kind: kind, Name: name})
		if err != nil {
			t.Fatal(err)
		}
		return v.Index
	}
	dest, src := catalog.QueryIntentionsDest, catalog.QueryIntentionsSrc
	if err := setEntry(t, s, `{"Kind":"service-intentions","Name":"web","Sources":[{"Name":"api","Action":"allow"}]}`); err != nil {
		t.Fatal(err)
	}
	asked := []catalog.Query{{Kind: dest, Name: "db-1"}, {Kind: dest, Name: "db"}, {Kind: dest, Name: "web"}, {Kind: src, Name: "job-1"}, {Kind: src, Name: "api"}}
	for _, change := range []func() error{
		func() error {
			return setEntry(t, s, `{"Kind":"service-intentions","Name":"db-*","Sources":[{"Name":"job-*","Action":"allow"}]}`)
		},
		func() error {
			return setEntry(t, s, `{"Kind":"service-intentions","Name":"db-*","Sources":[{"Name":"job-*","Action":"deny"}]}`)
		},
		func() error { return dropEntry(t, s, catalog.KindServiceIntentions, "db-*") },
	} {
		before := map[catalog.Query]uint64{}
		for _, q := range asked {
			before[q] = index(q.Kind, q.Name)
		}
		if err := change(); err != nil {
			t.Fatal(err)
		}
		for i, q := range asked {
			if moved := index(q.Kind, q.Name) != before[q]; moved != (i == 0 || i == 3) {
				t.Errorf("%s moved: %t", q, moved)
			}
		}
	}
}
