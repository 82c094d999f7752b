package dns

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
	"go.uber.org/goleak"

	"github.com/weftmesh/weft/catalog"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fakeViews is a catalog that, as the real one, knows names by their case.
type fakeViews struct {
	mu    sync.Mutex
	nodes map[string]*catalog.Node
	insts []*catalog.Instance
	err   error
	lost  map[catalog.Query]bool // of which nothing is known while no server answers
	reads map[catalog.Query]int
}

func newFake() *fakeViews {
	f := &fakeViews{nodes: map[string]*catalog.Node{}, reads: map[catalog.Query]int{}}
	f.node("conf-node", "127.0.0.1", map[string]string{"consul-network-segment": "", "consul-version": "1.21.4"})
	f.add("conf-node", &catalog.Service{ID: "consul", Service: "consul", Port: 8300})
	return f
}

func (f *fakeViews) node(name, addr string, meta map[string]string) *catalog.Node {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := &catalog.Node{Node: name, Address: addr, Datacenter: "dc1", Meta: meta, TaggedAddresses: map[string]string{"wan": "1.1.1.1"}}
	f.nodes[name] = n
	return n
}

func (f *fakeViews) add(node string, s *catalog.Service, statuses ...string) *catalog.Instance {
	f.mu.Lock()
	defer f.mu.Unlock()
	i := &catalog.Instance{Node: f.nodes[node], Service: s}
	for n, st := range statuses {
		i.Checks = append(i.Checks, &catalog.Check{Node: node, CheckID: fmt.Sprint(n), Status: st})
	}
	f.insts = append(f.insts, i)
	return i
}

func (f *fakeViews) fail(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.err = err
}

// Read implements Views.
func (f *fakeViews) Read(ctx context.Context, q catalog.Query) (*catalog.View, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.reads[q]++
	if f.err != nil {
		return nil, f.err
	}
	if f.lost[q] {
		return nil, catalog.ErrUnavailable
	}
	if err := q.Validate(); err != nil {
		return nil, err
	}
	v := &catalog.View{Query: q, Index: 1}
	switch q.Kind {
	case catalog.QueryNodes:
		for _, n := range f.nodes {
			v.Nodes = append(v.Nodes, n)
		}
	case catalog.QueryNode:
		if n := f.nodes[q.Name]; n != nil {
			v.Nodes = []*catalog.Node{n}
		}
	case catalog.QueryServices:
		seen := map[string]*catalog.ServiceSummary{}
		for _, i := range f.insts {
			s := seen[i.Service.Service]
			if s == nil {
				s = &catalog.ServiceSummary{Name: i.Service.Service}
				seen[s.Name] = s
				v.Services = append(v.Services, s)
			}
			s.Addresses = append(s.Addresses, i.Service.Address)
		}
	case catalog.QueryService:
		v.Instances = f.where(func(s *catalog.Service) bool { return s.Service == q.Name })
	case catalog.QueryConnect:
		v.Instances = f.where(func(s *catalog.Service) bool {
			return s.Kind == catalog.KindConnectProxy && s.Proxy.DestinationServiceName == q.Name || s.Connect.Native && s.Service == q.Name
		})
	case catalog.QueryIngress:
		v.Instances = f.where(func(s *catalog.Service) bool { return s.Kind == catalog.KindIngressGateway && q.Name == "web" })
	case catalog.QueryChain:
		if v.Chain = (&catalog.Chain{}); q.Name == "entries" {
			v.Chain.AutoVirtualIPs = []string{"240.0.0.9"}
		}
	default:
		return nil, fmt.Errorf("the fake knows no %s", q)
	}
	return v, nil
}

func (f *fakeViews) where(want func(*catalog.Service) bool) []*catalog.Instance {
	var out []*catalog.Instance
	for _, i := range f.insts {
		if want(i.Service) {
			node := *i.Node // each instance brings its own, as over the wire
			out = append(out, &catalog.Instance{Node: &node, Service: i.Service, Checks: i.Checks})
		}
	}
	return out
}

func (f *fakeViews) register(t *testing.T, body json.RawMessage) {
	t.Helper()
	var r struct {
		Node, Address   string
		TaggedAddresses map[string]string
		Service         *catalog.Service
		Check           *catalog.Check
	}
	if err := json.Unmarshal(body, &r); err != nil {
		t.Fatal(err)
	}
	f.node(r.Node, r.Address, nil).TaggedAddresses = r.TaggedAddresses
	if r.Service != nil {
		var statuses []string
		if r.Check != nil {
			statuses = append(statuses, r.Check.Status)
		}
		f.add(r.Node, r.Service, statuses...)
	}
}

func config(v Views) Config {
	return Config{Views: v, Addrs: []string{"127.0.0.1:0"}, Datacenter: "dc1"}
}

// serve runs a server until the test ends and gives its address.
func serve(t testing.TB, cfg Config) string {
	t.Helper()
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	return s.Addrs()[0].String()
}

// unserved is a server that is asked directly.
func unserved(t testing.TB, cfg Config) *Server {
	t.Helper()
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

func message(name string, qtype uint16) *dns.Msg {
	return new(dns.Msg).SetQuestion(dns.Fqdn(name), qtype)
}

func exchange1(t testing.TB, network, addr string, m *dns.Msg) *dns.Msg {
	t.Helper()
	c := &dns.Client{Net: network, Timeout: 5 * time.Second, UDPSize: dns.MaxMsgSize}
	r, _, err := c.Exchange(m, addr)
	if err != nil {
		t.Fatalf("%s %s: %v", network, m.Question[0].String(), err)
	}
	return r
}

func ask(t testing.TB, addr, name string, qtype uint16) *dns.Msg {
	t.Helper()
	return exchange1(t, "udp", addr, message(name, qtype))
}

// lines writes a section as sorted "name ttl type data".
func lines(rrs []dns.RR) []string {
	out := []string{}
	for _, rr := range rrs {
		if rr.Header().Rrtype == dns.TypeOPT {
			continue
		}
		out = append(out, strings.Join(strings.Fields(rr.String()), " "))
	}
	slices.Sort(out)
	return out
}

func wantLines(t testing.TB, what string, rrs []dns.RR, want ...string) {
	t.Helper()
	slices.Sort(want)
	if got := lines(rrs); !slices.Equal(got, append([]string{}, want...)) {
		t.Errorf("%s:\n got %q\nwant %q", what, got, want)
	}
}

func wantRcode(t testing.TB, m *dns.Msg, rcode int) {
	t.Helper()
	if m.Rcode != rcode {
		t.Errorf("%s: rcode %s, want %s", m.Question[0].Name, dns.RcodeToString[m.Rcode], dns.RcodeToString[rcode])
	}
}

func udpClient() client {
	return client{addr: addrOf(&net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)}), udp: true}
}
