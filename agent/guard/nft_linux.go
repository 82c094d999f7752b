package guard

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// namespaces is where named network namespaces are.
const namespaces = "/var/run/netns"

// Apply writes the rules, in place of those that were there.
func Apply(r Rules) error {
	if err := r.validate(); err != nil {
		return err
	}
	return change(r.NetNS, func(c *nftables.Conn) {
		t := c.AddTable(table())
		add := func(ch *nftables.Chain, rules [][]expr.Any) {
			ch.Table, ch.Type, ch.Priority = t, nftables.ChainTypeNAT, nftables.ChainPriorityNATDest
			c.AddChain(ch)
			for _, exprs := range rules {
				c.AddRule(&nftables.Rule{Table: t, Chain: ch, Exprs: exprs})
			}
		}
		add(&nftables.Chain{Name: "inbound", Hooknum: nftables.ChainHookPrerouting}, inbound(&r))
		add(&nftables.Chain{Name: "outbound", Hooknum: nftables.ChainHookOutput}, outbound(&r))
	})
}

// Remove takes the rules away; where there are none nothing happens.
func Remove(netns string) error { return change(netns, func(*nftables.Conn) {}) }

func table() *nftables.Table {
	return &nftables.Table{Family: nftables.TableFamilyINet, Name: Table}
}

// change replaces the table by what write adds, in one transaction.
func change(netns string, write func(*nftables.Conn)) error {
	var options []nftables.ConnOption
	if netns != "" {
		if !strings.Contains(netns, "/") {
			netns = filepath.Join(namespaces, netns)
		}
		f, err := os.Open(netns)
		if err != nil {
			return fmt.Errorf("network namespace: %w", err)
		}
		defer f.Close()
		options = append(options, nftables.WithNetNSFd(int(f.Fd())))
	}
	c, err := nftables.New(options...)
	if err != nil {
		return explain(err)
	}
	c.AddTable(table()) // so that there is one to remove
	c.DelTable(table())
	write(c)
	return explain(c.Flush())
}

// explain says what to do about an answer of the kernel.
func explain(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES):
		return fmt.Errorf("only root (CAP_NET_ADMIN) may change the rules of this host; run it by sudo: %w", err)
	case errors.Is(err, unix.EPROTONOSUPPORT) || errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOENT):
		return fmt.Errorf("this kernel cannot redirect by nftables: it needs Linux 5.2 with nf_tables, nft_chain_nat, nft_redir and nft_fib_inet "+
			"(modprobe shows which one is missing): %w", err)
	default:
		return fmt.Errorf("rules of the host: %w", err)
	}
}

// inbound is for what arrives from other hosts.
func inbound(r *Rules) [][]expr.Any {
	rules := [][]expr.Any{
		rule(meta(expr.MetaKeyIIFTYPE, binaryutil.NativeEndian.PutUint16(unix.ARPHRD_LOOPBACK)), leave()),
		rule(notLocal(), leave()), // it is only passing through
	}
	for _, port := range append([]int{r.InboundPort}, r.ExcludeInboundPorts...) {
		rules = append(rules, rule(tcp(), toPort(port), leave()))
	}
	return append(rules, rule(tcp(), redirect(r.InboundPort)))
}

// outbound is for what this host sends.
func outbound(r *Rules) [][]expr.Any {
	var rules [][]expr.Any
	pass := func(parts ...[]expr.Any) {
		rules = append(rules, rule(append(parts, leave())...))
	}
	for _, uid := range append([]uint32{r.ProxyUID}, r.ExcludeUIDs...) {
		pass(meta(expr.MetaKeySKUID, binaryutil.NativeEndian.PutUint32(uid)))
	}
	if r.DNS.IsValid() {
		for _, proto := range []byte{unix.IPPROTO_UDP, unix.IPPROTO_TCP} {
			rules = append(rules, rule(family(r.DNS.Addr()), protocol(proto), toPort(dnsPort), sendTo(r.DNS)))
		}
	}
	for _, port := range r.ExcludeOutboundPorts {
		pass(tcp(), toPort(port))
	}
	loopback := []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")}
	for _, p := range append(loopback, r.ExcludeOutboundCIDRs...) {
		pass(family(p.Addr()), to(p))
	}
	return append(rules, rule(tcp(), redirect(r.OutboundPort)))
}

// rule joins the parts of one.
func rule(parts ...[]expr.Any) []expr.Any {
	var out []expr.Any
	for _, p := range parts {
		out = append(out, p...)
	}
	return out
}

func equals(value []byte) expr.Any {
	return &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: value}
}

func meta(key expr.MetaKey, value []byte) []expr.Any {
	return []expr.Any{&expr.Meta{Key: key, Register: 1}, equals(value)}
}

func protocol(n byte) []expr.Any { return meta(expr.MetaKeyL4PROTO, []byte{n}) }

func tcp() []expr.Any { return protocol(unix.IPPROTO_TCP) }

func family(a netip.Addr) []expr.Any {
	if a.Unmap().Is4() {
		return meta(expr.MetaKeyNFPROTO, []byte{unix.NFPROTO_IPV4})
	}
	return meta(expr.MetaKeyNFPROTO, []byte{unix.NFPROTO_IPV6})
}

func toPort(port int) []expr.Any {
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		equals(binaryutil.BigEndian.PutUint16(uint16(port))), //nolint:gosec // validated
	}
}

// to matches destinations of a network.
func to(p netip.Prefix) []expr.Any {
	p = p.Masked()
	addr, offset := p.Addr().AsSlice(), uint32(16)
	if p.Addr().Is6() {
		offset = 24
	}
	mask := make([]byte, len(addr))
	for bit := range p.Bits() {
		mask[bit/8] |= 0x80 >> (bit % 8)
	}
	size := uint32(len(addr)) //nolint:gosec // 4 or 16
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: size},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: size, Mask: mask, Xor: make([]byte, size)},
		equals(addr),
	}
}

// notLocal matches what is for another host.
func notLocal() []expr.Any {
	return []expr.Any{
		&expr.Fib{Register: 1, ResultADDRTYPE: true, FlagDADDR: true},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: binaryutil.NativeEndian.PutUint32(unix.RTN_LOCAL)},
	}
}

// leave ends the chain for what the rule is about.
func leave() []expr.Any { return []expr.Any{&expr.Verdict{Kind: expr.VerdictReturn}} }

// redirect sends it to a port of this host.
func redirect(port int) []expr.Any {
	return []expr.Any{
		&expr.Immediate{Register: 1, Data: binaryutil.BigEndian.PutUint16(uint16(port))}, //nolint:gosec // validated
		&expr.Redir{RegisterProtoMin: 1},
	}
}

// sendTo sends it to an address.
func sendTo(at netip.AddrPort) []expr.Any {
	af := uint32(unix.NFPROTO_IPV6)
	if at.Addr().Is4() {
		af = unix.NFPROTO_IPV4
	}
	return []expr.Any{
		&expr.Immediate{Register: 1, Data: at.Addr().AsSlice()},
		&expr.Immediate{Register: 2, Data: binaryutil.BigEndian.PutUint16(at.Port())},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: af, RegAddrMin: 1, RegProtoMin: 2, Specified: true},
	}
}
