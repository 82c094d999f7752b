package dns

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/catalog/wire"
)

func TestZone(t *testing.T) {
	f := newFake()
	f.node("s2", "10.0.0.2", nil)
	f.add("s2", &catalog.Service{ID: "consul", Service: "consul"}, catalog.StatusCritical)
	cfg := config(f)
	cfg.AltDomain, cfg.NodeTTL, cfg.SOA.MinTTL = "mesh.example", 3*time.Second, 7
	addr := serve(t, cfg)

	m := ask(t, addr, "Consul", dns.TypeSOA)
	if soa, ok := m.Answer[0].(*dns.SOA); !ok || soa.Hdr.Name != "consul." || soa.Hdr.Ttl != 7 || soa.Minttl != 7 || soa.Refresh != 3600 {
		t.Errorf("SOA: %v", m.Answer)
	}
	wantLines(t, "SOA authority", m.Ns, "consul. 3 IN NS conf-node.node.dc1.Consul.")
	wantLines(t, "SOA glue", m.Extra, "conf-node.node.dc1.Consul. 3 IN A 127.0.0.1")
	m = ask(t, addr, "mesh.example", dns.TypeNS)
	wantLines(t, "NS", m.Answer, "mesh.example. 3 IN NS conf-node.node.dc1.mesh.example.")
	wantLines(t, "NS glue", m.Extra, "conf-node.node.dc1.mesh.example. 3 IN A 127.0.0.1")

	m = ask(t, addr, "conf-node.node.mesh.example", dns.TypeA)
	wantLines(t, "alt domain", m.Answer, "conf-node.node.mesh.example. 3 IN A 127.0.0.1")
	m = ask(t, addr, "none.node.mesh.example", dns.TypeA)
	wantRcode(t, m, dns.RcodeNameError)
	if len(m.Ns) != 1 || m.Ns[0].Header().Name != "mesh.example." {
		t.Errorf("SOA of the alternate domain: %v", m.Ns)
	}
	for qtype, want := range map[uint16]int{dns.TypeAXFR: dns.RcodeNotImplemented, dns.TypeOPT: dns.RcodeFormatError} {
		wantRcode(t, exchange1(t, "udp", addr, message("consul", qtype)), want)
	}
}

func TestNames(t *testing.T) {
	f := newFake()
	f.node("host.example.com", "10.0.0.1", nil)
	f.node("Big", "10.0.0.2", nil)
	f.node("v6", "2001:db8::1", nil)
	dual := f.node("dual", "10.0.0.4", nil)
	dual.TaggedAddresses = map[string]string{"lan_ipv4": "10.0.0.4", "lan_ipv6": "2001:db8::4"}
	f.node("a_very..odd name", "10.0.0.5", nil)
	f.add("host.example.com", &catalog.Service{ID: "1", Service: "dotted", Port: 1, Tags: []string{"a.b"}})
	f.add("Big", &catalog.Service{ID: "2", Service: "Upper", Port: 2})
	f.add("v6", &catalog.Service{ID: "3", Service: "six", Port: 3})
	f.add("v6", &catalog.Service{ID: "4", Service: "own6", Port: 4, Address: "2001:db8::4"})
	f.add("a_very..odd name", &catalog.Service{ID: "5", Service: "odd", Port: 5})
	f.add("dual", &catalog.Service{ID: "6", Service: "many", Ports: []catalog.ServicePort{{Name: "a", Port: 70}, {Name: "b", Port: 80, Default: true}}})
	f.add("dual", &catalog.Service{
		ID: "7", Service: "virt", Kind: catalog.KindConnectProxy,
		Proxy:           catalog.ConnectProxy{DestinationServiceName: "web"},
		TaggedAddresses: map[string]catalog.ServiceAddress{"consul-virtual": {Address: "240.0.0.7"}},
	})
	f.add("dual", &catalog.Service{ID: "8", Service: "gate", Kind: catalog.KindIngressGateway, Port: 8443})
	addr := serve(t, config(f))

	for _, c := range []struct {
		name   string
		qtype  uint16
		answer []string
		extra  []string
	}{
		{"host.example.com.node.consul", dns.TypeA, []string{"host.example.com.node.consul. 0 IN A 10.0.0.1"}, nil},
		{"dotted.service.consul", dns.TypeSRV, []string{"dotted.service.consul. 0 IN SRV 1 1 1 host.example.com.node.dc1.consul."}, []string{"host.example.com.node.dc1.consul. 0 IN A 10.0.0.1"}},
		{"a.b.dotted.service.consul", dns.TypeA, []string{"a.b.dotted.service.consul. 0 IN A 10.0.0.1"}, nil},
		{"upper.service.dc1.dc.consul", dns.TypeA, []string{"upper.service.dc1.dc.consul. 0 IN A 10.0.0.2"}, nil},
		{"_upper._tcp.service.consul", dns.TypeSRV, []string{"_upper._tcp.service.consul. 0 IN SRV 1 1 2 Big.node.dc1.consul."}, []string{"Big.node.dc1.consul. 0 IN A 10.0.0.2"}},
		{"_upper._tcp.consul", dns.TypeSRV, []string{"_upper._tcp.consul. 0 IN SRV 1 1 2 Big.node.dc1.consul."}, []string{"Big.node.dc1.consul. 0 IN A 10.0.0.2"}},
		{"_upper._tcp.dc1.consul", dns.TypeSRV, []string{"_upper._tcp.dc1.consul. 0 IN SRV 1 1 2 Big.node.dc1.consul."}, []string{"Big.node.dc1.consul. 0 IN A 10.0.0.2"}},
		{"_upper._tcp.dc1.dc.consul", dns.TypeSRV, []string{"_upper._tcp.dc1.dc.consul. 0 IN SRV 1 1 2 Big.node.dc1.consul."}, []string{"Big.node.dc1.consul. 0 IN A 10.0.0.2"}},
		{"big.node.consul", dns.TypeA, []string{"big.node.consul. 0 IN A 10.0.0.2"}, nil},
		{"v6.node.consul", dns.TypeAAAA, []string{"v6.node.consul. 0 IN AAAA 2001:db8::1"}, nil},
		{"six.service.consul", dns.TypeSRV, []string{"six.service.consul. 0 IN SRV 1 1 3 v6.node.dc1.consul."}, []string{"v6.node.dc1.consul. 0 IN AAAA 2001:db8::1"}},
		{"own6.service.consul", dns.TypeSRV, []string{"own6.service.consul. 0 IN SRV 1 1 4 20010db8000000000000000000000004.addr.dc1.consul."}, []string{"20010db8000000000000000000000004.addr.dc1.consul. 0 IN AAAA 2001:db8::4"}},
		{"dual.node.consul", dns.TypeA, []string{"dual.node.consul. 0 IN A 10.0.0.4"}, nil},
		{"dual.node.consul", dns.TypeAAAA, []string{"dual.node.consul. 0 IN AAAA 2001:db8::4"}, nil},
		{"odd.service.consul", dns.TypeSRV, []string{"odd.service.consul. 0 IN SRV 1 1 5 0a000005.addr.dc1.consul."}, []string{"0a000005.addr.dc1.consul. 0 IN A 10.0.0.5"}},
		{"many.service.consul", dns.TypeSRV, []string{"many.service.consul. 0 IN SRV 1 1 80 dual.node.dc1.consul."}, []string{"dual.node.dc1.consul. 0 IN A 10.0.0.4"}},
		{"web.virtual.consul", dns.TypeA, []string{"web.virtual.consul. 0 IN A 240.0.0.7"}, nil},
		{"web.virtual.consul", dns.TypeAAAA, nil, nil},
		{"web.ingress.consul", dns.TypeA, []string{"web.ingress.consul. 0 IN A 10.0.0.4"}, nil},
		{"web.ingress.dc1.consul", dns.TypeSRV, []string{"web.ingress.dc1.consul. 0 IN SRV 1 1 8443 dual.node.dc1.consul."}, []string{"dual.node.dc1.consul. 0 IN A 10.0.0.4"}},
		{"entries.virtual.consul", dns.TypeA, []string{"entries.virtual.consul. 0 IN A 240.0.0.9"}, nil},
		{`o\117n6.service.consul`, dns.TypeAAAA, nil, nil}, // \117 is a "u"
		{`\111wn6.service.consul`, dns.TypeAAAA, []string{`own6.service.consul. 0 IN AAAA 2001:db8::4`}, nil},
		{"1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa", dns.TypePTR, []string{"1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa. 0 IN PTR v6.node.dc1.consul."}, nil},
		{"4.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa", dns.TypePTR, []string{"4.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa. 0 IN PTR own6.service.dc1.consul."}, nil},
	} {
		m := ask(t, addr, c.name, c.qtype)
		what := dns.TypeToString[c.qtype] + " " + c.name
		wantLines(t, what, m.Answer, c.answer...)
		wantLines(t, what+" additional", m.Extra, c.extra...)
	}
	for _, name := range []string{
		"web.virtual.dc2.consul", "none.virtual.consul", "x.service.dc1.peer.consul", "x.service.a.b.c.consul", "other.ingress.consul",
		"_upper._tcp.dc2.consul", "_upper.tcp.consul", "x._upper._tcp.consul", "_upper._none.consul",
		"service.service.service.consul", `\000.service.consul`, `a\.b.service.consul`, "01.0.0.10.in-addr.arpa", "0a0000.addr.consul",
		"x.0a000001.addr.consul", "consul.consul", "q.query.consul", strings.Repeat("a", 63) + ".node.consul", "in-addr.arpa", "1.ip6.arpa",
	} {
		m := ask(t, addr, name, dns.TypeA)
		wantRcode(t, m, dns.RcodeNameError)
		if len(m.Ns) != 1 {
			t.Errorf("%s: no SOA beside NXDOMAIN", name)
		}
	}
}

func TestNodeMetadata(t *testing.T) {
	f := newFake()
	const spaced = " s "
	f.node("n1", "10.0.0.1", map[string]string{"a=b": "c`d", "rfc1035-x": "plain", spaced: `back\slash`, "long": strings.Repeat("l", 300)})
	f.add("n1", &catalog.Service{ID: "w", Service: "web", Port: 1})
	want := []string{"a`=b=c``d", "plain", "` s` =" + `back\slash`, "long=" + strings.Repeat("l", 300)}
	texts := func(rrs []dns.RR) map[string]bool {
		out := map[string]bool{}
		for _, rr := range rrs {
			if txt, ok := rr.(*dns.TXT); ok {
				out[strings.ReplaceAll(strings.Join(txt.Txt, ""), `\\`, `\`)] = true
			}
		}
		return out
	}
	for _, off := range []bool{false, true} {
		cfg := config(f)
		cfg.DisableNodeMetaTXT = off
		addr := serve(t, cfg)
		for what, got := range map[string]map[string]bool{
			"TXT of the node":      texts(exchange1(t, "tcp", addr, message("n1.node.consul", dns.TypeTXT)).Answer),
			"ANY of the node":      texts(exchange1(t, "tcp", addr, message("n1.node.consul", dns.TypeANY)).Answer),
			"A of the node":        texts(exchange1(t, "tcp", addr, message("n1.node.consul", dns.TypeA)).Extra),
			"SRV of the service":   texts(exchange1(t, "tcp", addr, message("web.service.consul", dns.TypeSRV)).Extra),
			"A of the service":     nil,
			"TXT over UDP and 512": texts(ask(t, addr, "n1.node.consul", dns.TypeTXT).Answer),
		} {
			additional := strings.HasPrefix(what, "A of the node") || strings.HasPrefix(what, "SRV")
			wanted := len(want)
			if what == "A of the service" || additional && off {
				wanted = 0
			}
			if what == "TXT over UDP and 512" {
				wanted = defaultUDPAnswers
			}
			if len(got) != wanted {
				t.Errorf("%s, disabled %v: %v, want %d texts", what, off, got, wanted)
			}
			for _, w := range want {
				if wanted == len(want) && !got[w] {
					t.Errorf("%s: no %q in %v", what, w, got)
				}
			}
		}
	}
}

func TestHealthWeightsAndTTLs(t *testing.T) {
	f := newFake()
	for i, st := range []string{catalog.StatusPassing, catalog.StatusWarning, catalog.StatusCritical, "unheard of"} {
		n := fmt.Sprintf("n%d", i+1)
		f.node(n, "10.0.0."+fmt.Sprint(i+1), nil)
		f.add(n, &catalog.Service{ID: "w", Service: "web", Port: 1, Weights: &catalog.Weights{Passing: 70000, Warning: 3}}, catalog.StatusPassing, st)
	}
	cfg := config(f)
	cfg.ServiceTTL = map[string]time.Duration{"*": time.Second, "we*": 2 * time.Second, "Web": 3 * time.Second}
	addr := serve(t, cfg)
	wantLines(t, "SRV", ask(t, addr, "web.service.consul", dns.TypeSRV).Answer,
		"web.service.consul. 3 IN SRV 1 65535 1 n1.node.dc1.consul.", "web.service.consul. 3 IN SRV 1 3 1 n2.node.dc1.consul.")
	cfg.OnlyPassing = true
	addr = serve(t, cfg)
	wantLines(t, "only passing", ask(t, addr, "web.service.consul", dns.TypeA).Answer, "web.service.consul. 3 IN A 10.0.0.1")

	ttls := newTTLs(map[string]time.Duration{"*": time.Second, "we*": 2 * time.Second, "web": 3 * time.Second, "x*": 1e6 * time.Hour})
	for name, want := range map[string]uint32{"a": 1, "WEst": 2, "Web": 3, "webb": 2, "x": 1<<31 - 1} {
		if got := ttls.of(name); got != want {
			t.Errorf("TTL of %s: %d, want %d", name, got, want)
		}
	}
}

func TestAliases(t *testing.T) {
	f := newFake()
	f.node("n1", "10.0.0.1", nil)
	f.node("ext", "db.example.test", nil)
	f.node("loop", "loop.node.consul", nil)
	f.node("to", "web.service.consul", nil)
	f.node("bad", "a..b", nil)
	f.add("n1", &catalog.Service{ID: "w", Service: "web", Port: 1})
	f.add("ext", &catalog.Service{ID: "m", Service: "mixed", Port: 1})
	f.add("n1", &catalog.Service{ID: "m", Service: "mixed", Port: 1})
	f.add("bad", &catalog.Service{ID: "b", Service: "bad", Port: 1})
	addr := serve(t, config(f))
	wantLines(t, "a name in the zone is followed", ask(t, addr, "to.node.consul", dns.TypeA).Answer,
		"to.node.consul. 0 IN CNAME web.service.consul.", "web.service.consul. 0 IN A 10.0.0.1")
	wantLines(t, "an alias stands back for addresses", ask(t, addr, "mixed.service.consul", dns.TypeA).Answer, "mixed.service.consul. 0 IN A 10.0.0.1")
	if m := ask(t, addr, "loop.node.consul", dns.TypeA); len(m.Answer) != maxCNAMEs+1 {
		t.Errorf("a loop gave %q", lines(m.Answer))
	}
	for _, qtype := range []uint16{dns.TypeA, dns.TypeSRV} {
		if m := ask(t, addr, "bad.service.consul", qtype); m.Rcode != dns.RcodeSuccess || len(m.Answer) != 0 {
			t.Errorf("an impossible address gave %v", m)
		}
	}
}

func big(n int) *fakeViews {
	f := newFake()
	for i := range n {
		name := fmt.Sprintf("m%d", i)
		f.node(name, fmt.Sprintf("10.2.%d.%d", i/250, i%250+1), map[string]string{"rack": "r1"})
		f.add(name, &catalog.Service{ID: "big", Service: "big", Port: 1000 + i})
	}
	return f
}

func TestSizes(t *testing.T) {
	edns := func(m *dns.Msg, size uint16) *dns.Msg { return m.SetEdns0(size, false) }
	cfg := config(big(5000))
	for _, c := range []struct {
		name     string
		truncate bool
		limit    int
		qtype    uint16
		edns     uint16
		size     int
		most     int
		tc       bool
	}{
		{"three by default", false, 0, dns.TypeA, 0, 512, 3, false},
		{"marked when asked to", true, 0, dns.TypeA, 0, 512, 3, true},
		{"as many as fit", false, 1000, dns.TypeA, 0, 512, 30, false},
		{"EDNS lifts the limit", false, 0, dns.TypeA, 1232, 1232, 80, false},
		{"EDNS, marked", true, 0, dns.TypeSRV, 1232, 1232, 20, true},
		{"EDNS below 512", false, 0, dns.TypeA, 100, 512, 3, false},
		{"EDNS has an end", false, 0, dns.TypeA, 65535, nearUDPSize, 256, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg := cfg
			cfg.EnableTruncate, cfg.UDPAnswerLimit = c.truncate, c.limit
			s := unserved(t, cfg)
			m := message("big.service.consul", c.qtype)
			if c.edns > 0 {
				edns(m, c.edns)
			}
			resp, wire := s.reply(context.Background(), m, udpClient())
			if len(wire) > c.size || len(resp.Answer) > c.most || len(resp.Answer) < c.most/2 || resp.Truncated != c.tc {
				t.Errorf("%d bytes, %d records, TC %v", len(wire), len(resp.Answer), resp.Truncated)
			}
			if (resp.IsEdns0() != nil) != (c.edns > 0) {
				t.Error("EDNS is answered if and only if it was asked")
			}
			if c.qtype == dns.TypeSRV {
				sameTargets(t, resp)
			}
		})
	}
	s := unserved(t, cfg)
	far := client{addr: netip.MustParseAddr("192.0.2.1"), udp: true}
	if _, wire := s.reply(context.Background(), edns(message("big.service.consul", dns.TypeANY), 4096), far); len(wire) > farUDPSize {
		t.Errorf("%d bytes to an address on the internet", len(wire))
	}
	cfg.ARecordLimit = 7
	s = unserved(t, cfg)
	if resp, _ := s.reply(context.Background(), message("big.service.consul", dns.TypeA), client{}); len(resp.Answer) != 7 {
		t.Errorf("a_record_limit: %d records", len(resp.Answer))
	}
	if resp, wire := s.reply(context.Background(), message("big.service.consul", dns.TypeSRV), client{}); len(wire) > tcpSize || len(resp.Answer) < 500 {
		t.Errorf("SRV over TCP: %d records in %d bytes", len(resp.Answer), len(wire))
	}
}

// sameTargets checks that the additional section speaks of the targets in the answer.
func sameTargets(t *testing.T, m *dns.Msg) {
	t.Helper()
	targets := map[string]bool{}
	for _, rr := range m.Answer {
		targets[rr.(*dns.SRV).Target] = true
	}
	for _, rr := range m.Extra {
		if rr.Header().Rrtype == dns.TypeA && !targets[rr.Header().Name] {
			t.Errorf("%s is no target", rr.Header().Name)
		}
		delete(targets, rr.Header().Name)
	}
	if len(targets) > 0 {
		t.Errorf("without address: %v", targets)
	}
}

func TestAnswersAreShuffled(t *testing.T) {
	s := unserved(t, config(big(10)))
	seen := map[string]bool{}
	for range 200 {
		resp, _ := s.reply(context.Background(), message("big.service.consul", dns.TypeA), udpClient())
		seen[resp.Answer[0].String()] = true
	}
	if len(seen) != 10 {
		t.Errorf("%d of 10 instances came first", len(seen))
	}
}

func TestEDNS(t *testing.T) {
	cfg := config(newFake())
	sources := make(chan netip.Prefix, 2)
	cfg.Query = func(_ context.Context, req QueryRequest) (*QueryAnswer, error) {
		sources <- req.Source
		return nil, catalog.ErrNotFound
	}
	addr := serve(t, cfg)
	m := message("near.query.consul", dns.TypeA).SetEdns0(1232, true)
	m.IsEdns0().Option = append(m.IsEdns0().Option, &dns.EDNS0_SUBNET{Code: dns.EDNS0SUBNET, Family: 1, SourceNetmask: 24, Address: net.IPv4(198, 51, 100, 7).To4()},
		&dns.EDNS0_COOKIE{Code: dns.EDNS0COOKIE, Cookie: "0011223344556677"})
	opt := exchange1(t, "udp", addr, m).IsEdns0()
	if opt == nil || opt.UDPSize() != farUDPSize || !opt.Do() || len(opt.Option) != 1 || opt.Option[0].String() != "198.51.100.0/24/0" {
		t.Errorf("OPT: %v", opt)
	}
	if source := <-sources; source.String() != "198.51.100.0/24" {
		t.Errorf("source %s", source)
	}
	ask(t, addr, "near.query.consul", dns.TypeA)
	if source := <-sources; source.String() != "127.0.0.1/32" {
		t.Errorf("source %s", source)
	}
	m = message("consul", dns.TypeSOA).SetEdns0(1232, false)
	m.IsEdns0().SetVersion(3)
	wantRcode(t, exchange1(t, "udp", addr, m), dns.RcodeBadVers)
}

func TestErrorsOfViews(t *testing.T) {
	f := newFake()
	addr := serve(t, config(f))
	for err, want := range map[error]int{
		catalog.ErrUnavailable: dns.RcodeServerFailure, catalog.ErrNoLeader: dns.RcodeServerFailure,
		catalog.ErrDenied: dns.RcodeRefused, catalog.ErrInvalid: dns.RcodeNameError,
	} {
		f.fail(fmt.Errorf("read: %w", err))
		m := ask(t, addr, "web.service.consul", dns.TypeA)
		wantRcode(t, m, want)
		wantRcode(t, ask(t, addr, "n1.node.consul", dns.TypeA), want)
	}
}

// TestKnownInAnotherCaseOnly: while no server answers nothing is known of the name in
// lower case, and all of the one that there is.
func TestKnownInAnotherCaseOnly(t *testing.T) {
	f := newFake()
	f.node("Big", "10.0.0.2", nil)
	f.add("Big", &catalog.Service{ID: "2", Service: "Upper", Port: 2})
	f.lost = map[catalog.Query]bool{
		{Kind: catalog.QueryService, Name: "upper"}: true, {Kind: catalog.QueryService, Name: "other"}: true,
		{Kind: catalog.QueryNode, Name: "big"}: true, {Kind: catalog.QueryConnect, Name: "entries"}: true,
	}
	addr := serve(t, config(f))
	for name, want := range map[string]string{
		"upper.service.consul": "10.0.0.2", "big.node.consul": "10.0.0.2", "entries.virtual.consul": "240.0.0.9",
	} {
		wantLines(t, name, ask(t, addr, name, dns.TypeA).Answer, name+". 0 IN A "+want)
	}
	wantRcode(t, ask(t, addr, "other.service.consul", dns.TypeA), dns.RcodeServerFailure)
}

// TestMissesAreCheap asks what does not exist, many times: the lists for
// names in another case are read seldom.
func TestMissesAreCheap(t *testing.T) {
	f := newFake()
	s := unserved(t, config(f))
	for i := range 50 {
		s.reply(context.Background(), message(fmt.Sprintf("x%d.service.consul", i), dns.TypeA), udpClient())
		s.reply(context.Background(), message(fmt.Sprintf("x%d.node.consul", i), dns.TypeA), udpClient())
		s.reply(context.Background(), message(fmt.Sprintf("%d.1.2.3.in-addr.arpa", i), dns.TypePTR), udpClient())
	}
	for _, kind := range []catalog.QueryKind{catalog.QueryServices, catalog.QueryNodes} {
		if n := f.reads[catalog.Query{Kind: kind}]; n > 10 {
			t.Errorf("%s were listed %d times", kind, n)
		}
	}
}

// TestGarbage sends what is no query; the server answers the next one.
func TestGarbage(t *testing.T) {
	addr := serve(t, config(newFake()))
	c, err := net.Dial("udp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	packed, _ := message("web.service.consul", dns.TypeA).Pack()
	answer := append([]byte{}, packed...)
	answer[2] |= 0x80
	for _, b := range [][]byte{{}, {1}, make([]byte, 11), answer, packed[:20], make([]byte, 4000)} {
		if _, err := c.Write(b); err != nil {
			t.Fatal(err)
		}
	}
	for want, change := range map[int]func(*dns.Msg){
		dns.RcodeNotImplemented: func(m *dns.Msg) { m.Opcode = dns.OpcodeUpdate },
		dns.RcodeRefused:        func(m *dns.Msg) { m.Question[0].Qclass = dns.ClassCHAOS },
		dns.RcodeFormatError:    func(m *dns.Msg) { m.Question = append(m.Question, m.Question[0]) },
	} {
		m := message("consul", dns.TypeTXT)
		change(m)
		wantRcode(t, exchange1(t, "udp", addr, m), want)
	}
	tc, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tc.Close() }()
	_, _ = tc.Write(binary.BigEndian.AppendUint16(nil, 5))
	_, _ = tc.Write([]byte("hello"))
	wantRcode(t, exchange1(t, "tcp", addr, message("conf-node.node.consul", dns.TypeA)), dns.RcodeSuccess)
}

func TestPanicsAreContained(t *testing.T) {
	cfg := config(newFake())
	cfg.Query = func(context.Context, QueryRequest) (*QueryAnswer, error) { panic("a bug") }
	wantRcode(t, ask(t, serve(t, cfg), "x.query.consul", dns.TypeA), dns.RcodeServerFailure)
}

func TestMetrics(t *testing.T) {
	cfg := config(newFake())
	reg := prometheus.NewRegistry()
	cfg.Registerer = reg
	addr := serve(t, cfg)
	// Over one connection: the next answer comes when the one before was counted.
	c, err := dns.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	for _, m := range []*dns.Msg{message("conf-node.node.consul", dns.TypeA), message("x.node.consul", dns.TypeMX), message("1.0.0.127.in-addr.arpa", dns.TypePTR), message("consul", dns.TypeSOA)} {
		if err := c.WriteMsg(m); err != nil {
			t.Fatal(err)
		}
		if _, err := c.ReadMsg(); err != nil {
			t.Fatal(err)
		}
	}
	want := "NOERROR/A=1 NOERROR/PTR=1 NOERROR/SOA=1 NXDOMAIN/other=1"
	got := ""
	for deadline := time.Now().Add(5 * time.Second); got != want && time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		got = counted(t, reg)
	}
	if got != want {
		t.Errorf("counted %q, want %q", got, want)
	}
}

func counted(t *testing.T, reg *prometheus.Registry) string {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, f := range families {
		if f.GetName() != "weft_dns_queries_total" {
			continue
		}
		for _, m := range f.GetMetric() {
			out = append(out, fmt.Sprintf("%s/%s=%v", m.GetLabel()[0].GetValue(), m.GetLabel()[1].GetValue(), m.GetCounter().GetValue()))
		}
	}
	return strings.Join(out, " ")
}

func TestBadConfig(t *testing.T) {
	good := config(newFake())
	for want, change := range map[string]func(*Config){
		"no views":          func(c *Config) { c.Views = nil },
		"no address":        func(c *Config) { c.Addrs = nil },
		"datacenter":        func(c *Config) { c.Datacenter = "" },
		"DNS domain":        func(c *Config) { c.Domain = "." },
		"alt_domain":        func(c *Config) { c.AltDomain = "a..b" },
		"recursor_strategy": func(c *Config) { c.RecursorStrategy = "best" },
		"recursors":         func(c *Config) { c.Recursors = []string{"dns.example"} },
		"its port":          func(c *Config) { c.Recursors = []string{"8.8.8.8:x"} },
		"service_ttl":       func(c *Config) { c.ServiceTTL = map[string]time.Duration{"a": -1} },
		"negative":          func(c *Config) { c.UDPAnswerLimit = -1 },
		"host:port":         func(c *Config) { c.Addrs = []string{"8600"} },
	} {
		c := good
		change(&c)
		s, err := New(c)
		if err == nil {
			s.Close()
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want an error of %s, got %v", want, err)
		}
	}
	first := unserved(t, good)
	again := good
	again.Addrs = []string{first.Addrs()[0].String()}
	if _, err := New(again); err == nil || !strings.Contains(err.Error(), "another process") {
		t.Errorf("an address in use: %v", err)
	}
	got, err := recursorAddrs([]string{"8.8.8.8", "8.8.8.8:53", "[::1]", "::1", "[::1]:5353"})
	if err != nil || strings.Join(got, " ") != "8.8.8.8:53 [::1]:53 [::1]:5353" {
		t.Errorf("recursors %q, %v", got, err)
	}
}

type reader struct {
	asked []wire.Consistency
	old   time.Duration
	err   error
}

func (r *reader) Read(_ context.Context, req *wire.ReadRequest) (*wire.ReadReply, error) {
	r.asked = append(r.asked, req.Consistency)
	rep := &wire.ReadReply{View: &catalog.View{Query: req.Query}}
	if req.Consistency == wire.Stale {
		rep.Meta.LastContact = r.old
	}
	return rep, r.err
}

func TestViewsFollowTheSettings(t *testing.T) {
	q := catalog.Query{Kind: catalog.QueryNodes}
	for _, c := range []struct {
		name string
		cfg  ViewsConfig
		old  time.Duration
		want string
	}{
		{"not stale", ViewsConfig{}, 0, "[]"},
		{"stale", ViewsConfig{AllowStale: true}, time.Hour, "[stale]"},
		{"too stale", ViewsConfig{AllowStale: true, MaxStale: time.Minute}, time.Hour, "[stale ]"},
		{"stale enough", ViewsConfig{AllowStale: true, MaxStale: 2 * time.Hour}, time.Hour, "[stale]"},
	} {
		r := &reader{old: c.old}
		c.cfg.Reader = r
		v, err := NewViews(c.cfg)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := v.Read(context.Background(), q); err != nil || fmt.Sprint(r.asked) != c.want {
			t.Errorf("%s: asked %q, %v", c.name, r.asked, err)
		}
	}
	var held catalog.Latest[*catalog.View]
	held.Publish(&catalog.View{Index: 42})
	r := &reader{}
	v, err := NewViews(ViewsConfig{Reader: r, AllowStale: true, UseCache: true, Watch: func(catalog.Query) catalog.Watch[*catalog.View] { return &held }})
	if err != nil {
		t.Fatal(err)
	}
	if view, err := v.Read(context.Background(), q); err != nil || view.Index != 42 || len(r.asked) > 0 {
		t.Errorf("use_cache: %v, %v, asked %q", view, err, r.asked)
	}
	r.err = errors.New("gone")
	var full catalog.Latest[*catalog.View]
	full.Close(catalog.ErrTooLarge)
	v, _ = NewViews(ViewsConfig{Reader: r, AllowStale: true, UseCache: true, Watch: func(catalog.Query) catalog.Watch[*catalog.View] { return &full }})
	if _, err := v.Read(context.Background(), q); !errors.Is(err, r.err) {
		t.Errorf("with too many views a server is asked: %v", err)
	}
}

// TestListeners serves two addresses, IPv6 too where the host has it, and ends
// although a client keeps its connection.
func TestListeners(t *testing.T) {
	cfg := config(newFake())
	if l, err := net.Listen("tcp", "[::1]:0"); err == nil {
		_ = l.Close()
		cfg.Addrs = append(cfg.Addrs, "[::1]:0")
	}
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	s.grace = time.Hour // nothing is to be waited for
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	if len(s.Addrs()) != len(cfg.Addrs) {
		t.Fatalf("listening on %v", s.Addrs())
	}
	for _, a := range s.Addrs() {
		for _, network := range []string{"udp", "tcp"} {
			wantLines(t, network+" "+a.String(), exchange1(t, network, a.String(), message("conf-node.node.consul", dns.TypeA)).Answer, "conf-node.node.consul. 0 IN A 127.0.0.1")
		}
	}
	c, err := net.Dial("tcp", s.Addrs()[0].String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	cancel()
	wantEnd(t, done)
}

// wantEnd wants Run to end in order, and not only as clients that say nothing are cut.
func wantEnd(t *testing.T, done <-chan error) {
	t.Helper()
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(tcpIdle / 2):
		t.Error("Run does not end")
	}
}

// TestListenerThatFails closes a socket under a running server.
func TestListenerThatFails(t *testing.T) {
	s, err := New(config(newFake()))
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- s.Run(context.Background()) }()
	ask(t, s.Addrs()[0].String(), "conf-node.node.consul", dns.TypeA)
	_ = s.udp[0].Close()
	if err := <-done; err == nil {
		t.Error("Run did not say that a listener failed")
	}
}
