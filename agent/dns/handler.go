package dns

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"math/rand/v2"
	"net"
	"net/netip"
	"runtime/debug"
	"strings"

	"github.com/miekg/dns"

	"github.com/weftmesh/weft/catalog"
)

// handler is a Server while it runs.
type handler struct {
	*Server
	ctx context.Context
}

// client is who asks.
type client struct {
	addr netip.Addr
	udp  bool
}

// ServeDNS implements dns.Handler. It is called in a goroutine of its own for
// each query over UDP, and in that of the connection over TCP.
func (h *handler) ServeDNS(w dns.ResponseWriter, req *dns.Msg) {
	_, udp := w.RemoteAddr().(*net.UDPAddr)
	from := client{addr: addrOf(w.RemoteAddr()), udp: udp}
	select {
	case h.busy <- struct{}{}:
		defer func() { <-h.busy }()
	default:
		h.metrics.dropped.Inc() // the client asks again, by when there may be room
		if !udp {
			_ = w.Close()
		}
		return
	}
	began := h.now()
	ctx, cancel := context.WithTimeout(h.ctx, lookupTimeout)
	defer cancel()
	resp, wire := h.reply(ctx, req, from)
	if wire == nil {
		return
	}
	if _, err := w.Write(wire); err != nil {
		h.cfg.Logger.Debug("an answer was not sent", "addr", from.addr.String(), "err", err)
	}
	var qtype uint16
	if len(req.Question) > 0 {
		qtype = req.Question[0].Qtype
	}
	h.metrics.answered(qtype, resp.Rcode, h.now().Sub(began))
}

// reply answers req, in wire format too. Whatever goes wrong becomes SERVFAIL.
func (s *Server) reply(ctx context.Context, req *dns.Msg, from client) (resp *dns.Msg, wire []byte) {
	defer func() {
		if p := recover(); p != nil {
			s.cfg.Logger.Error("answering a DNS query panicked; please report this", "err", fmt.Sprint(p), "name", questionName(req), "stack", string(debug.Stack()))
			resp, wire = failure(req)
		}
	}()
	resp = s.answer(ctx, req, from)
	wire, err := resp.Pack()
	if err != nil {
		s.cfg.Logger.Warn("an answer could not be encoded", "name", questionName(req), "err", err)
		return failure(req)
	}
	return resp, wire
}

func failure(req *dns.Msg) (*dns.Msg, []byte) {
	resp := new(dns.Msg).SetRcode(req, dns.RcodeServerFailure)
	wire, err := resp.Pack()
	if err != nil {
		return resp, nil
	}
	return resp, wire
}

func questionName(req *dns.Msg) string {
	if len(req.Question) == 0 {
		return ""
	}
	return req.Question[0].Name
}

// answer makes the answer to req, no larger than its client takes.
func (s *Server) answer(ctx context.Context, req *dns.Msg, from client) *dns.Msg {
	resp := new(dns.Msg).SetReply(req)
	resp.Compress = !s.cfg.DisableCompression
	resp.RecursionAvailable = len(s.cfg.Recursors) > 0
	opt := req.IsEdns0()
	switch {
	case len(req.Question) != 1 || req.Question[0].Qtype == dns.TypeOPT:
		resp.Rcode = dns.RcodeFormatError
		return resp
	case opt != nil && opt.Version() != 0:
		resp.Rcode = dns.RcodeBadVers
		resp.Extra = append(resp.Extra, replyOPT(opt))
		return resp
	}
	q := req.Question[0]
	x := &exchange{Server: s, ctx: ctx, q: q, req: req, resp: resp, from: from}
	size, limit := s.room(from, opt)
	if x.most = size / minRecord; limit > 0 {
		x.most = limit
	}
	switch {
	case q.Qclass != dns.ClassINET && q.Qclass != dns.ClassANY:
		resp.Rcode = dns.RcodeRefused
	case q.Qtype == dns.TypeAXFR || q.Qtype == dns.TypeIXFR:
		resp.Rcode = dns.RcodeNotImplemented // there is no zone to copy, only answers
	default:
		x.route()
	}
	s.fit(x, opt, size, limit)
	return x.resp
}

// room is how many bytes a client takes, and how many records if that is bounded.
func (s *Server) room(from client, opt *dns.OPT) (size, limit int) {
	if !from.udp {
		return tcpSize, 0
	}
	size = minUDPSize
	if opt != nil {
		largest := farUDPSize
		if within(nearNets, from.addr) {
			largest = nearUDPSize
		}
		size = min(max(int(opt.UDPSize()), minUDPSize), largest)
	}
	if size == minUDPSize {
		limit = s.cfg.UDPAnswerLimit
	}
	return size, limit
}

// fit cuts the answer to what the client takes and adds EDNS.
func (s *Server) fit(x *exchange, opt *dns.OPT, size, limit int) {
	var own *dns.OPT
	if opt != nil {
		own = replyOPT(opt)
		size -= dns.Len(own)
	}
	switch {
	case x.forwarded:
		x.resp.Truncate(size) // another zone's answer: only the client can tell what may go
	case trim(x.resp, size, limit) || x.cut:
		emptied := len(x.resp.Answer)+len(x.resp.Extra) == 0
		x.resp.Truncated = x.from.udp && (s.cfg.EnableTruncate || emptied)
	}
	if own != nil {
		x.resp.Extra = append(x.resp.Extra, own)
	}
}

// replyOPT answers a client's EDNS: the size that this server takes, and the
// client's subnet, for which the answer holds whatever the subnet.
func replyOPT(opt *dns.OPT) *dns.OPT {
	out := &dns.OPT{Hdr: dns.RR_Header{Name: ".", Rrtype: dns.TypeOPT}}
	out.SetUDPSize(farUDPSize)
	out.SetDo(opt.Do())
	for _, o := range opt.Option {
		if sub, ok := o.(*dns.EDNS0_SUBNET); ok {
			echo := *sub
			echo.SourceScope = 0
			out.Option = append(out.Option, &echo)
			break
		}
	}
	return out
}

// exchange is one question and its answer in the making.
type exchange struct {
	*Server
	ctx  context.Context
	q    dns.Question
	req  *dns.Msg
	resp *dns.Msg
	from client

	zone  string // that the name is in, lower case
	asked string // the same as the client wrote it
	depth int    // how many CNAMEs led here
	most  int    // records that are of use
	cut   bool   // there were more

	forwarded bool // the answer is a recursor's
}

// route finds who answers a name.
func (x *exchange) route() {
	labels := dns.SplitDomainName(x.q.Name)
	for _, z := range x.zones {
		if dns.IsSubDomain(z.name, x.q.Name) {
			inner := labels[:len(labels)-z.labels]
			x.zone, x.asked = z.name, strings.Join(labels[len(inner):], ".")+"."
			x.resp.Authoritative = true
			x.inZone(plain(inner))
			return
		}
	}
	x.zone, x.asked = x.cfg.Domain, x.cfg.Domain
	if addr, ok := reverseAddr(x.q.Name); ok {
		x.resp.Authoritative = true
		x.pointer(addr)
		return
	}
	x.outside()
}

// plain undoes the escapes of labels and makes them lower case.
func plain(labels []string) []string {
	out := make([]string, len(labels))
	for i, l := range labels {
		if strings.IndexByte(l, '\\') >= 0 {
			l = unescape(l)
		}
		out[i] = strings.ToLower(l)
	}
	return out
}

func unescape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		switch {
		case s[i] != '\\' || i+1 >= len(s):
			b.WriteByte(s[i])
		case i+3 < len(s) && digit(s[i+1]) && digit(s[i+2]) && digit(s[i+3]):
			b.WriteByte((s[i+1]-'0')*100 + (s[i+2]-'0')*10 + (s[i+3] - '0'))
			i += 3
		default:
			i++
			b.WriteByte(s[i])
		}
	}
	return b.String()
}

func digit(c byte) bool { return c >= '0' && c <= '9' }

// inZone answers a name of the zone, given by its labels before the zone's.
func (x *exchange) inZone(labels []string) {
	if len(labels) == 0 && (x.q.Qtype == dns.TypeSOA || x.q.Qtype == dns.TypeNS) {
		x.apex()
		return
	}
	for i := len(labels) - 1; i > 0; i-- {
		answer := x.kind(labels[i])
		if answer == nil {
			continue
		}
		if !x.here(labels[i+1:]) {
			break
		}
		answer(labels[:i])
		return
	}
	if len(labels) >= 2 && isRFC2782(labels[:2]) && x.here(labels[2:]) { // which may leave out "service"
		x.service(catalog.QueryService, labels[:2])
		return
	}
	x.nameError()
}

// kind is who answers names before this label, nil for one that is no kind.
func (x *exchange) kind(label string) func(labels []string) {
	switch label {
	case "service":
		return func(l []string) { x.service(catalog.QueryService, l) }
	case "connect":
		return func(l []string) { x.service(catalog.QueryConnect, l) }
	case "ingress":
		return func(l []string) { x.service(catalog.QueryIngress, l) }
	case "virtual":
		return x.virtual
	case "node":
		return x.node
	case "query":
		return x.prepared
	case "addr":
		return x.address
	default:
		return nil
	}
}

// here tells whether the labels after a kind mean this datacenter: none, "dc1",
// or "dc1.dc".
func (x *exchange) here(labels []string) bool {
	switch len(labels) {
	case 0:
		return true
	case 2:
		if labels[1] != "dc" {
			return false
		}
		fallthrough
	case 1:
		return strings.EqualFold(labels[0], x.cfg.Datacenter)
	default:
		return false
	}
}

// failed answers with what an error means to a client.
func (x *exchange) failed(err error) {
	switch {
	case errors.Is(err, catalog.ErrNotFound), errors.Is(err, catalog.ErrInvalid):
		x.nameError() // a name that no catalog can hold does not exist
	case errors.Is(err, catalog.ErrDenied):
		x.resp.Rcode, x.resp.Authoritative = dns.RcodeRefused, false
		x.cfg.Logger.Warn("the agent may not look up a name", "name", x.q.Name, "err", err, "hint", "give the agent a token for DNS that can read services and nodes")
	default:
		x.resp.Rcode, x.resp.Authoritative = dns.RcodeServerFailure, false
		x.cfg.Logger.Debug("a name could not be looked up", "name", x.q.Name, "err", err)
	}
}

// nameError says that the name does not exist.
func (x *exchange) nameError() {
	x.resp.Rcode = dns.RcodeNameError
	x.noData()
}

// noData adds what lets a resolver remember that there is nothing.
func (x *exchange) noData() { x.resp.Ns = append(x.resp.Ns, x.soa()) }

func (x *exchange) header(name string, rrtype uint16, ttl uint32) dns.RR_Header {
	return dns.RR_Header{Name: name, Rrtype: rrtype, Class: dns.ClassINET, Ttl: ttl}
}

func (x *exchange) soa() *dns.SOA {
	c := x.cfg.SOA
	return &dns.SOA{
		Hdr: x.header(x.zone, dns.TypeSOA, c.MinTTL), Ns: "ns." + x.zone, Mbox: "hostmaster." + x.zone,
		Serial: uint32(x.now().Unix()), Refresh: c.Refresh, Retry: c.Retry, Expire: c.Expire, Minttl: c.MinTTL,
	}
}

// apex answers SOA and NS of the zone itself: the servers are its name servers.
func (x *exchange) apex() {
	servers, err := x.cfg.Views.Read(x.ctx, catalog.Query{Kind: catalog.QueryService, Name: catalog.ServerService})
	if err != nil {
		x.cfg.Logger.Debug("the servers could not be looked up", "err", err) // the zone is there all the same
	}
	var ns, glue []dns.RR
	for i := range x.healthy(instancesOf(servers), "") {
		if len(ns) == nsLimit {
			break
		}
		target, ok := x.nodeName(i.Node.Node)
		if !ok {
			continue
		}
		ns = append(ns, &dns.NS{Hdr: x.header(x.zone, dns.TypeNS, seconds(x.cfg.NodeTTL)), Ns: target})
		if ip, err := netip.ParseAddr(i.Node.Address); err == nil {
			glue = append(glue, x.ipRecord(target, ip, seconds(x.cfg.NodeTTL)))
		}
	}
	x.resp.Extra = glue
	if x.q.Qtype == dns.TypeSOA {
		x.resp.Answer, x.resp.Ns = []dns.RR{x.soa()}, ns
		return
	}
	x.resp.Answer = ns
	if len(ns) == 0 {
		x.noData()
	}
}

// nsLimit is how many of the servers are named.
const nsLimit = 3

// shuffled gives the elements in random order. It reorders in, as far as it is
// read, and costs no more than what is read.
func shuffled[T any](in []T) iter.Seq[T] {
	return func(yield func(T) bool) {
		for i := range in {
			j := i + rand.IntN(len(in)-i)
			in[i], in[j] = in[j], in[i]
			if !yield(in[i]) {
				return
			}
		}
	}
}
