package dns

import (
	"context"
	"net/netip"
	"testing"

	"github.com/miekg/dns"

	"github.com/weftmesh/weft/catalog"
)

// FuzzQuery answers messages from anybody: the answer can be encoded, is one to
// the question, and is no larger than its client may be sent.
func FuzzQuery(f *testing.F) {
	for _, name := range []string{
		"consul.", ".", "web.service.consul.", "_web._tcp.service.dc1.consul.", "v1.web.service.consul.", "n1.node.dc1.dc.consul.",
		"0a000001.addr.consul.", "1.0.0.10.in-addr.arpa.", "x.query.consul.", "web.connect.consul.", "web.virtual.consul.", "WEB.Service.Consul.",
		`\000\255.node.consul.`, "example.com.", "ip6.arpa.", "ext.node.consul.", "a.b.c.d.e.f.service.consul.", "big.service.consul.",
	} {
		for _, qtype := range []uint16{dns.TypeA, dns.TypeSRV, dns.TypeANY, dns.TypeTXT, dns.TypePTR} {
			m := message(name, qtype)
			if qtype == dns.TypeSRV {
				m.SetEdns0(1232, true)
				m.IsEdns0().Option = append(m.IsEdns0().Option, &dns.EDNS0_SUBNET{Code: dns.EDNS0SUBNET, Family: 2, SourceNetmask: 48, Address: make([]byte, 16)})
			}
			b, err := m.Pack()
			if err != nil {
				f.Fatal(err)
			}
			f.Add(b)
		}
	}
	views := big(300)
	views.node("n1", "10.0.0.1", map[string]string{"a": "b"})
	views.node("ext", "other.example", nil)
	views.add("n1", &catalog.Service{ID: "w", Service: "web", Tags: []string{"v1"}, Port: 80})
	views.add("ext", &catalog.Service{ID: "w", Service: "web", Port: 80})
	cfg := config(views)
	cfg.Query = func(context.Context, QueryRequest) (*QueryAnswer, error) {
		return &QueryAnswer{Service: "web", Instances: views.insts}, nil
	}
	s := unserved(f, cfg)
	far := client{addr: netip.MustParseAddr("203.0.113.1"), udp: true}
	f.Fuzz(func(t *testing.T, b []byte) {
		req := new(dns.Msg)
		if req.Unpack(b) != nil {
			return
		}
		for _, from := range []client{far, {addr: far.addr}} {
			resp, wire := s.reply(context.Background(), req, from)
			if wire == nil {
				t.Fatal("no answer")
			}
			largest := tcpSize
			if from.udp {
				if largest = minUDPSize; req.IsEdns0() != nil {
					largest = farUDPSize
				}
			}
			if len(wire) > largest {
				t.Errorf("%d bytes", len(wire))
			}
			if resp.Id != req.Id || !resp.Response {
				t.Error("this is no answer to the question")
			}
			if err := new(dns.Msg).Unpack(wire); err != nil {
				t.Errorf("the answer is no message: %v", err)
			}
		}
	})
}

// FuzzNames reads names and texts in the forms of DNS.
func FuzzNames(f *testing.F) {
	for _, s := range []string{"", `\`, `\0`, `\300`, `a\.b`, "1.0.0.10.in-addr.arpa.", "0.ip6.arpa.", " k = v ", "```"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		_ = unescape(s)
		if ip, ok := reverseAddr(s); ip.IsValid() && !ok {
			t.Errorf("%q is an address and no reverse name", s)
		}
		rr := &dns.TXT{Hdr: dns.RR_Header{Name: ".", Rrtype: dns.TypeTXT, Class: dns.ClassINET}, Txt: txtStrings(rfc1464(s, s))}
		m := &dns.Msg{Answer: []dns.RR{rr}}
		if _, err := m.Pack(); err != nil {
			t.Errorf("the text of %q cannot be encoded: %v", s, err)
		}
	})
}
