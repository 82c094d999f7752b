package dns

import (
	"bytes"
	"context"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// recursor is another DNS server, on loopback.
func recursor(t *testing.T, answer func(w dns.ResponseWriter, r *dns.Msg)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p, err := net.ListenPacket("udp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	t.Cleanup(wg.Wait) // after the shutdowns below
	for _, srv := range []*dns.Server{{PacketConn: p}, {Listener: l}} {
		up := make(chan struct{})
		srv.Handler, srv.NotifyStartedFunc = dns.HandlerFunc(answer), func() { close(up) }
		wg.Go(func() {
			if err := srv.ActivateAndServe(); err != nil {
				t.Errorf("recursor: %v", err)
			}
		})
		<-up
		t.Cleanup(func() { _ = srv.Shutdown() })
	}
	return p.LocalAddr().String()
}

func answerA(r *dns.Msg, ip string) *dns.Msg {
	m := new(dns.Msg).SetReply(r)
	m.Answer = []dns.RR{&dns.A{Hdr: dns.RR_Header{Name: r.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 60}, A: net.ParseIP(ip)}}
	return m
}

func TestForwarding(t *testing.T) {
	var mu sync.Mutex
	var names []string
	good := recursor(t, func(w dns.ResponseWriter, r *dns.Msg) {
		mu.Lock()
		names = append(names, r.Question[0].Name)
		mu.Unlock()
		switch strings.ToLower(r.Question[0].Name) {
		case "nothing.test.":
			_ = w.WriteMsg(new(dns.Msg).SetRcode(r, dns.RcodeNameError))
		case "large.test.":
			m := answerA(r, "192.0.2.1")
			for i := range 100 {
				rr := dns.Copy(m.Answer[0]).(*dns.A)
				rr.A = net.IPv4(192, 0, 3, byte(i))
				m.Answer = append(m.Answer, rr)
			}
			m.Compress = true
			if _, udp := w.RemoteAddr().(*net.UDPAddr); udp {
				m.Truncate(512)
			}
			_ = w.WriteMsg(m)
		default:
			m := answerA(r, "192.0.2.1")
			if opt := r.IsEdns0(); opt != nil {
				m.SetEdns0(4096, opt.Do())
				if len(opt.Option) > 0 {
					m.Extra = append(m.Extra, &dns.TXT{Hdr: dns.RR_Header{Name: "subnet.", Rrtype: dns.TypeTXT, Class: dns.ClassINET}, Txt: []string{opt.Option[0].String()}})
				}
			}
			_ = w.WriteMsg(m)
		}
	})
	broken := recursor(t, func(w dns.ResponseWriter, r *dns.Msg) {
		_ = w.WriteMsg(new(dns.Msg).SetRcode(r, dns.RcodeServerFailure))
	})
	f := newFake()
	f.node("ext", "db.test", nil)
	cfg := config(f)
	cfg.Recursors = []string{broken, good}
	for _, strategy := range []string{Sequential, Random} {
		cfg.RecursorStrategy = strategy
		addr := serve(t, cfg)
		m := ask(t, addr, "Host.Test", dns.TypeA)
		wantLines(t, strategy, m.Answer, "Host.Test. 60 IN A 192.0.2.1")
		if !m.RecursionAvailable || m.Authoritative || m.IsEdns0() != nil {
			t.Errorf("header of a forwarded answer: %v", m.MsgHdr)
		}
		wantLines(t, "over TCP", exchange1(t, "tcp", addr, message("host.test", dns.TypeA)).Answer, "host.test. 60 IN A 192.0.2.1")
		wantRcode(t, ask(t, addr, "nothing.test", dns.TypeA), dns.RcodeNameError)
		wantLines(t, "of an alias", ask(t, addr, "ext.node.consul", dns.TypeA).Answer, "ext.node.consul. 0 IN CNAME db.test.", "db.test. 60 IN A 192.0.2.1")
		if m := ask(t, addr, "1.2.0.192.in-addr.arpa", dns.TypePTR); m.Authoritative || len(m.Answer) != 1 {
			t.Errorf("a reverse name of elsewhere: %v", m)
		}
		if m := ask(t, addr, "none.service.consul", dns.TypeA); !m.Authoritative || !m.RecursionAvailable {
			t.Errorf("a name of the zone: %v", m.MsgHdr)
		}
		m = ask(t, addr, "large.test", dns.TypeA)
		if m.Compress = true; !m.Truncated || m.Len() > 512 {
			t.Errorf("a large answer: TC %v, %d bytes", m.Truncated, m.Len())
		}
		if m := exchange1(t, "tcp", addr, message("large.test", dns.TypeA)); m.Truncated || len(m.Answer) != 101 {
			t.Errorf("a large answer over TCP: TC %v, %d records", m.Truncated, len(m.Answer))
		}
		q := message("subnet.test", dns.TypeA).SetEdns0(1232, true)
		q.IsEdns0().Option = append(q.IsEdns0().Option, &dns.EDNS0_SUBNET{Code: dns.EDNS0SUBNET, Family: 1, SourceNetmask: 24, Address: net.IPv4(198, 51, 100, 0).To4()})
		if m := exchange1(t, "udp", addr, q); m.IsEdns0() == nil || len(m.Extra) != 2 || !strings.Contains(m.Extra[0].String(), "198.51.100.0/24") {
			t.Errorf("the client's subnet did not get through: %v", m)
		}
	}
	mu.Lock()
	defer mu.Unlock()
	plain := 0
	for _, n := range names {
		if n == strings.ToLower(n) {
			plain++
		}
		if strings.Contains(strings.ToLower(n), "consul") {
			t.Errorf("%s left the host", n)
		}
	}
	if plain == len(names) {
		t.Error("no question to a recursor had its letters' case at random")
	}
}

// TestForgedCase has a recursor that loses the case over UDP, as an answer forged
// by somebody who guesses would: TCP decides.
func TestForgedCase(t *testing.T) {
	addr := recursor(t, func(w dns.ResponseWriter, r *dns.Msg) {
		ip := "192.0.2.1"
		if _, udp := w.RemoteAddr().(*net.UDPAddr); udp {
			ip = "203.0.113.66"
			r.Question[0].Name = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa.test."
		}
		_ = w.WriteMsg(answerA(r, ip))
	})
	cfg := config(newFake())
	cfg.Recursors = []string{addr}
	name := strings.Repeat("a", 63) + ".test."
	wantLines(t, "forged", ask(t, serve(t, cfg), name, dns.TypeA).Answer, name+" 60 IN A 192.0.2.1")
}

func TestStrangersAreNotServed(t *testing.T) {
	var asked atomic.Int64
	addr := recursor(t, func(w dns.ResponseWriter, r *dns.Msg) {
		asked.Add(1)
		_ = w.WriteMsg(answerA(r, "192.0.2.1"))
	})
	cfg := config(newFake())
	cfg.Recursors = []string{addr}
	s := unserved(t, cfg)
	at := func(s *Server, ip string) int {
		resp, _ := s.reply(context.Background(), message("host.test", dns.TypeA), client{addr: netip.MustParseAddr(ip), udp: true})
		return resp.Rcode
	}
	for ip, want := range map[string]int{
		"203.0.113.1": dns.RcodeRefused, "2001:db8::1": dns.RcodeRefused,
		"10.1.2.3": dns.RcodeSuccess, "fd00::1": dns.RcodeSuccess, "fe80::1%eth0": dns.RcodeSuccess, "::ffff:10.0.0.1": dns.RcodeSuccess,
	} {
		if got := at(s, ip); got != want {
			t.Errorf("%s: %s", ip, dns.RcodeToString[got])
		}
	}
	cfg.RecurseFrom = []netip.Prefix{netip.MustParsePrefix("203.0.113.0/24")}
	s = unserved(t, cfg)
	if got := at(s, "203.0.113.1"); got != dns.RcodeSuccess {
		t.Errorf("a network that is named: %s", dns.RcodeToString[got])
	}
	if got := at(s, "10.1.2.3"); got != dns.RcodeRefused {
		t.Errorf("a network that is not: %s", dns.RcodeToString[got])
	}
	for range maxForwardsPer {
		release, ok := s.forward.take(netip.MustParseAddr("203.0.113.1"))
		if !ok {
			t.Fatal("there should be room")
		}
		defer release()
	}
	before := asked.Load()
	if got := at(s, "203.0.113.1"); got != dns.RcodeRefused || asked.Load() != before {
		t.Errorf("a client with too many queries: %s", dns.RcodeToString[got])
	}
	if got := at(s, "203.0.113.2"); got != dns.RcodeSuccess {
		t.Errorf("its neighbour: %s", dns.RcodeToString[got])
	}
}

// TestSilentRecursor has one that never answers: the next one is asked, and the
// end of the server does not wait for it.
func TestSilentRecursor(t *testing.T) {
	p, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = p.Close() }()
	good := recursor(t, func(w dns.ResponseWriter, r *dns.Msg) { _ = w.WriteMsg(answerA(r, "192.0.2.1")) })
	cfg := config(newFake())
	cfg.Recursors, cfg.RecursorTimeout = []string{p.LocalAddr().String(), good}, 50*time.Millisecond
	addr, got := serve(t, cfg), new(dns.Msg)
	for tries := 0; len(got.Answer) == 0 && tries < 20; tries++ { // on a busy machine the good one may take longer, too
		got = ask(t, addr, "host.test", dns.TypeA)
	}
	wantLines(t, "after a silent one", got.Answer, "host.test. 60 IN A 192.0.2.1")
	cfg.Recursors = cfg.Recursors[:1]
	wantRcode(t, ask(t, serve(t, cfg), "host.test", dns.TypeA), dns.RcodeServerFailure)

	cfg.RecursorTimeout = time.Hour
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	s.grace = time.Hour // nothing is to be waited for
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	c, err := dns.Dial("udp", s.Addrs()[0].String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	if err := c.WriteMsg(message("last.test", dns.TypeA)); err != nil {
		t.Fatal(err)
	}
	// The queries of before, and then this one: it is being forwarded.
	_ = p.SetReadDeadline(time.Now().Add(20 * time.Second)) // fails with the socket
	for buf := make([]byte, 512); ; {
		n, _, err := p.ReadFrom(buf)
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(bytes.ToLower(buf[:n]), []byte("\x04last\x04test")) {
			break
		}
	}
	cancel()
	wantEnd(t, done)
}

func TestRecursorThatIsThisServer(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	_ = l.Close()
	for _, listen := range []string{addr, strings.Replace(addr, "127.0.0.1", "0.0.0.0", 1)} {
		cfg := config(newFake())
		cfg.Addrs, cfg.Recursors = []string{listen}, []string{addr}
		s, err := New(cfg)
		if err == nil {
			s.Close()
		}
		if err == nil || !strings.Contains(err.Error(), "itself") {
			t.Errorf("%s: New: %v", listen, err)
		}
	}
}

// TestConnectionLimit opens more connections than one host may.
func TestConnectionLimit(t *testing.T) {
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := newLimitedListener(inner, 10, 2)
	got := make(chan net.Conn)
	go func() {
		defer close(got)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			got <- c
		}
	}()
	dial := func() net.Conn {
		c, err := net.Dial("tcp", inner.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		return c
	}
	dial()
	dial()
	first, second := <-got, <-got
	third := dial()
	if _, err := third.Read(make([]byte, 1)); err == nil {
		t.Error("a third connection is open")
	}
	_ = first.Close()
	_ = first.Close() // counts once
	dial()
	<-got
	l.closeConns()
	if _, err := second.Read(make([]byte, 1)); err == nil {
		t.Error("a connection outlived its listener")
	}
	_ = l.Close()
	for range got { //nolint:revive // until Accept ends
	}
}
