package dns

import (
	"encoding/hex"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/miekg/dns"

	"github.com/weftmesh/weft/catalog"
)

// node answers the name of a node, which may have dots.
func (x *exchange) node(labels []string) {
	n, err := x.findNode(strings.Join(labels, "."))
	if err != nil {
		x.failed(err)
		return
	}
	ttl := seconds(x.cfg.NodeTTL)
	if x.wantsAddress() {
		ip, host := x.pick(n.Address, func(tag string) string { return n.TaggedAddresses[tag] })
		if ip.IsValid() {
			x.resp.Answer = append(x.resp.Answer, x.ipRecord(x.q.Name, ip, ttl))
		} else if host != "" {
			x.alias(host, ttl)
		}
	}
	meta := x.metaTXT(x.q.Name, n, ttl)
	switch {
	case x.q.Qtype == dns.TypeTXT || x.q.Qtype == dns.TypeANY:
		x.resp.Answer = append(x.resp.Answer, meta...)
	case !x.cfg.DisableNodeMetaTXT:
		x.resp.Extra = append(x.resp.Extra, meta...)
	}
}

func (x *exchange) findNode(name string) (*catalog.Node, error) {
	v, err := x.cfg.Views.Read(x.ctx, catalog.Query{Kind: catalog.QueryNode, Name: name})
	if err != nil || len(v.Nodes) == 0 {
		if written, ok := x.fold(catalog.QueryNodes, name, err); ok {
			v, err = x.cfg.Views.Read(x.ctx, catalog.Query{Kind: catalog.QueryNode, Name: written})
		}
	}
	if err != nil {
		return nil, err
	}
	if len(v.Nodes) == 0 {
		return nil, catalog.NotFoundf("there is no node %q", name)
	}
	return v.Nodes[0], nil
}

// nodeName is the name of a node of this datacenter in the zone asked about;
// false where DNS cannot spell it.
func (x *exchange) nodeName(node string) (string, bool) { return x.nodeNameIn(node, x.cfg.Datacenter) }

func (x *exchange) nodeNameIn(node, dc string) (string, bool) {
	name := escape(node) + ".node." + escape(dc) + "." + x.asked
	_, ok := dns.IsDomainName(name)
	return name, ok && node != ""
}

// escape makes a name, dots and all, one in the presentation format of DNS.
func escape(name string) string {
	return strings.ReplaceAll(name, `\`, `\\`)
}

// Bounds of a TXT record.
const (
	maxTXTString  = 255
	maxTXTStrings = 16
)

// metaTXT spells the metadata of a node, in the order of its keys: "key=value" as
// RFC 1464 says, or the value alone where the key begins with "rfc1035-".
func (x *exchange) metaTXT(owner string, n *catalog.Node, ttl uint32) []dns.RR {
	var out []dns.RR
	for _, k := range slices.Sorted(maps.Keys(n.Meta)) {
		txt := n.Meta[k]
		if !strings.HasPrefix(strings.ToLower(k), "rfc1035-") {
			txt = rfc1464(k, txt)
		}
		out = append(out, &dns.TXT{Hdr: x.header(owner, dns.TypeTXT, ttl), Txt: txtStrings(txt)})
	}
	return out
}

// rfc1464 quotes what has a meaning in "key=value": a backquote in both, and in
// the key the equals sign and blanks at its ends.
func rfc1464(key, value string) string {
	if strings.ContainsAny(key, "`=") {
		key = strings.NewReplacer("`", "``", "=", "`=").Replace(key)
	}
	body := strings.Trim(key, " \t")
	at := strings.Index(key, body)
	var b strings.Builder
	for _, c := range []byte(key[:at]) {
		b.WriteByte('`')
		b.WriteByte(c)
	}
	b.WriteString(body)
	for _, c := range []byte(key[at+len(body):]) {
		b.WriteByte('`')
		b.WriteByte(c)
	}
	b.WriteByte('=')
	b.WriteString(strings.ReplaceAll(value, "`", "``"))
	return b.String()
}

// txtStrings cuts a text into the strings of a record.
func txtStrings(s string) []string {
	out := []string{}
	for len(out) < maxTXTStrings {
		cut := min(len(s), maxTXTString)
		out = append(out, strings.ReplaceAll(s[:cut], `\`, `\\`))
		if s = s[cut:]; s == "" {
			break
		}
	}
	return out
}

// address answers a name that spells an IP address in hex.
func (x *exchange) address(labels []string) {
	raw, err := hex.DecodeString(labels[0])
	ip, ok := netip.AddrFromSlice(raw)
	if err != nil || !ok || len(labels) != 1 {
		x.nameError()
		return
	}
	rr := []dns.RR{x.ipRecord(x.q.Name, ip, seconds(x.cfg.NodeTTL))}
	if x.q.Qtype == dns.TypeANY || x.q.Qtype == rr[0].Header().Rrtype {
		x.resp.Answer = rr
	} else {
		x.resp.Extra = rr // the other family than asked for: of use to some
	}
}

// alias answers that the name is another's, and with what is known of that one.
func (x *exchange) alias(host string, ttl uint32) {
	target := dns.Fqdn(escape(host))
	if _, ok := dns.IsDomainName(target); !ok {
		return
	}
	x.resp.Answer = append(x.resp.Answer, &dns.CNAME{Hdr: x.header(x.q.Name, dns.TypeCNAME, ttl), Target: target})
	if x.depth >= maxCNAMEs || x.q.Qtype == dns.TypeANY {
		return
	}
	q := x.q
	q.Name = target
	inner := *x
	inner.q, inner.depth, inner.resp = q, x.depth+1, new(dns.Msg)
	for _, z := range x.zones {
		if dns.IsSubDomain(z.name, target) {
			inner.route()
			x.resp.Answer = append(x.resp.Answer, inner.resp.Answer...)
			return
		}
	}
	if reply, err := x.forward.ask(x.ctx, q, x.req, x.from); err == nil {
		x.resp.Answer = append(x.resp.Answer, reply.Answer...)
	}
}
