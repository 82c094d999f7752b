package dns

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/miekg/dns"

	"github.com/weftmesh/weft/catalog"
)

// Reasons not to forward.
var (
	errNoRecursor = errors.New("no recursors are configured")
	errStranger   = errors.New("the client is in none of the networks whose queries are forwarded")
	errTooMany    = errors.New("too many queries of the client are being forwarded")
)

// outside answers a name of another zone, by asking the recursors.
func (x *exchange) outside() {
	reply, err := x.forward.ask(x.ctx, x.q, x.req, x.from)
	switch {
	case err == nil:
		reply.Id, reply.Question = x.req.Id, x.req.Question
		reply.Compress = !x.cfg.DisableCompression
		x.resp, x.forwarded = reply, true
	case errors.Is(err, errNoRecursor), errors.Is(err, errStranger), errors.Is(err, errTooMany):
		x.resp.Rcode = dns.RcodeRefused
	default:
		x.resp.Rcode = dns.RcodeServerFailure
		x.cfg.Logger.Debug("no recursor answered", "name", x.q.Name, "err", err)
	}
}

// forwarder asks recursors, for clients it trusts, a bounded number at a time.
type forwarder struct {
	cfg   Config
	warn  sync.Once
	total atomic.Int64

	mu   sync.Mutex
	each map[netip.Prefix]int
}

func newForwarder(cfg Config) *forwarder {
	return &forwarder{cfg: cfg, each: map[netip.Prefix]int{}}
}

// refuse fails when a recursor is this very server.
func (f *forwarder) refuse(own []net.Addr) error {
	for _, a := range own {
		at, _ := netip.ParseAddrPort(a.String())
		for _, r := range f.cfg.Recursors {
			to, err := netip.ParseAddrPort(r)
			everywhere := at.Addr().IsUnspecified() && to.Addr().IsLoopback()
			if err == nil && to.Port() == at.Port() && (to.Addr() == at.Addr() || everywhere) {
				return fmt.Errorf("recursors: %s is this agent itself: %w: name another server", r, catalog.ErrInvalid)
			}
		}
	}
	return nil
}

// ask puts a question of a client to the recursors, one after another, until one
// knows: the name's records, or that it does not exist.
func (f *forwarder) ask(ctx context.Context, q dns.Question, req *dns.Msg, from client) (*dns.Msg, error) {
	if len(f.cfg.Recursors) == 0 {
		return nil, errNoRecursor
	}
	if !within(f.cfg.RecurseFrom, from.addr) {
		f.warn.Do(func() {
			f.cfg.Logger.Warn("a query of a client outside the trusted networks was not forwarded; more of these are not logged",
				"addr", from.addr.String(), "hint", "name its network in dns_config.recurse_from, unless it is a stranger's")
		})
		return nil, errStranger
	}
	release, ok := f.take(from.addr)
	if !ok {
		return nil, errTooMany
	}
	defer release()
	order := slices.Values(f.cfg.Recursors)
	if f.cfg.RecursorStrategy == Random {
		order = shuffled(slices.Clone(f.cfg.Recursors))
	}
	var err error
	for addr := range order {
		var reply *dns.Msg
		if reply, err = f.askOne(ctx, addr, q, req, from.udp); err == nil {
			return reply, nil
		}
		if ctx.Err() != nil {
			break
		}
	}
	return nil, err
}

// take finds room for a query of addr. The hosts of an IPv6 network are one client.
func (f *forwarder) take(addr netip.Addr) (release func(), ok bool) {
	bits := addr.BitLen()
	if addr.Is6() {
		bits = 64
	}
	who, err := addr.WithZone("").Prefix(bits)
	if err != nil {
		return nil, false
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.total.Load() >= maxForwards || f.each[who] >= maxForwardsPer {
		return nil, false
	}
	f.total.Add(1)
	f.each[who]++
	return func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.total.Add(-1)
		if f.each[who]--; f.each[who] == 0 {
			delete(f.each, who)
		}
	}, true
}

func (f *forwarder) askOne(ctx context.Context, addr string, q dns.Question, req *dns.Msg, udp bool) (*dns.Msg, error) {
	out, asked := question(q, req, udp)
	network := "tcp"
	if udp {
		network = "udp"
	}
	reply, err := f.exchange(ctx, network, addr, out)
	if err != nil {
		return nil, fmt.Errorf("recursor %s: %w", addr, err)
	}
	if udp && (len(reply.Question) != 1 || reply.Question[0].Name != asked) {
		// Forged, or a recursor that does not keep the case: TCP tells.
		if reply, err = f.exchange(ctx, "tcp", addr, out); err != nil {
			return nil, fmt.Errorf("recursor %s: %w", addr, err)
		}
	}
	if len(reply.Question) != 1 || !strings.EqualFold(reply.Question[0].Name, asked) || reply.Question[0].Qtype != q.Qtype {
		return nil, fmt.Errorf("recursor %s: it answered another question", addr)
	}
	if reply.Rcode != dns.RcodeSuccess && reply.Rcode != dns.RcodeNameError {
		return nil, fmt.Errorf("recursor %s: %s", addr, dns.RcodeToString[reply.Rcode])
	}
	return clean(reply, q.Name), nil
}

// question makes the message to a recursor: a new ID, and over UDP letters in
// random case, which who forges an answer has to guess too.
func question(q dns.Question, req *dns.Msg, udp bool) (out *dns.Msg, asked string) {
	asked = q.Name
	if udp {
		asked = randomCase(asked)
	}
	out = &dns.Msg{MsgHdr: dns.MsgHdr{
		Id: dns.Id(), RecursionDesired: req.RecursionDesired, CheckingDisabled: req.CheckingDisabled, AuthenticatedData: req.AuthenticatedData,
	}}
	out.Question = []dns.Question{{Name: asked, Qtype: q.Qtype, Qclass: q.Qclass}}
	if opt := req.IsEdns0(); opt != nil {
		own := replyOPT(opt)
		out.Extra = append(out.Extra, own)
	}
	return out, asked
}

func randomCase(name string) string {
	b := []byte(name)
	for i, c := range b {
		if (c|0x20) >= 'a' && (c|0x20) <= 'z' && rand.IntN(2) == 0 {
			b[i] = c ^ 0x20
		}
	}
	return string(b)
}

// exchange asks one recursor. The end of ctx ends it.
func (f *forwarder) exchange(ctx context.Context, network, addr string, out *dns.Msg) (*dns.Msg, error) {
	c := &dns.Client{Net: network, Timeout: f.cfg.RecursorTimeout, UDPSize: nearUDPSize}
	ctx, cancel := context.WithTimeout(ctx, f.cfg.RecursorTimeout)
	defer cancel()
	conn, err := c.DialContext(ctx, addr)
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	reply, _, err := c.ExchangeWithConnContext(ctx, out, conn)
	return reply, err
}

// clean makes a recursor's reply one of this server: its own EDNS, and the name
// in the case in which the client asked.
func clean(reply *dns.Msg, name string) *dns.Msg {
	reply.Authoritative, reply.RecursionAvailable, reply.Zero = false, true, false
	reply.Extra = slices.DeleteFunc(reply.Extra, func(rr dns.RR) bool { return rr.Header().Rrtype == dns.TypeOPT })
	for _, section := range [][]dns.RR{reply.Answer, reply.Ns, reply.Extra} {
		for _, rr := range section {
			if h := rr.Header(); strings.EqualFold(h.Name, name) {
				h.Name = name
			}
		}
	}
	return reply
}
