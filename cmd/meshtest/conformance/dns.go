package conformance

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand"
	"net"
	"net/netip"
	"strings"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// Question is a DNS query in place of an HTTP request.
type Question struct {
	Name string `json:"name"`
	Type string `json:"type"`
	// NoRecursion is "rd": false.
	Recursion *bool  `json:"rd"`
	TCP       bool   `json:"tcp"`
	EDNS      uint16 `json:"edns"`
	// Fits compares whether the answer has so many bytes at most, and only that
	// there are records.
	Fits int `json:"fits"`
	// CountOnly compares how many records there are.
	CountOnly bool `json:"count_only"`
}

func (q *Question) kind() string {
	if q.Type == "" {
		return "A"
	}
	return q.Type
}

var queryTypes = map[string]uint16{
	"A": 1, "NS": 2, "CNAME": 5, "SOA": 6, "PTR": 12, "MX": 15, "TXT": 16, "AAAA": 28, "SRV": 33,
	"OPT": 41, "AXFR": 252, "ANY": 255,
}

func typeText(t dnsmessage.Type) string {
	for name, n := range queryTypes {
		if n == uint16(t) {
			return name
		}
	}
	return fmt.Sprint(uint16(t))
}

var rcodes = []string{"NOERROR", "FORMERR", "SERVFAIL", "NXDOMAIN", "NOTIMP", "REFUSED"}

// ask sends the query and describes the answer as the recordings do.
func (q *Question) ask(addr, name string) (any, error) {
	id := uint16(rand.Intn(1 << 16))
	msg, err := q.pack(id, name)
	if err != nil {
		return nil, err
	}
	answer, err := q.exchange(addr, msg)
	if err != nil {
		return nil, err
	}
	var m dnsmessage.Message
	if err := m.Unpack(answer); err != nil {
		return nil, fmt.Errorf("answer of %d bytes: %w", len(answer), err)
	}
	if m.ID != id {
		return nil, errors.New("answer to another query")
	}
	return valueOf(q.describe(&m, len(answer))), nil
}

func (q *Question) pack(id uint16, name string) ([]byte, error) {
	n, err := dnsmessage.NewName(strings.TrimSuffix(name, ".") + ".")
	if err != nil {
		return nil, fmt.Errorf("name %q: %w", name, err)
	}
	m := dnsmessage.Message{
		Header:    dnsmessage.Header{ID: id, RecursionDesired: q.Recursion == nil || *q.Recursion},
		Questions: []dnsmessage.Question{{Name: n, Type: dnsmessage.Type(queryTypes[q.kind()]), Class: dnsmessage.ClassINET}},
	}
	if q.EDNS > 0 {
		root := dnsmessage.MustNewName(".")
		m.Additionals = []dnsmessage.Resource{{
			Header: dnsmessage.ResourceHeader{Name: root, Type: dnsmessage.TypeOPT, Class: dnsmessage.Class(q.EDNS)},
			Body:   &dnsmessage.OPTResource{},
		}}
	}
	return m.Pack()
}

func (q *Question) exchange(addr string, msg []byte) ([]byte, error) {
	network := "udp"
	if q.TCP {
		network = "tcp"
		msg = append(binary.BigEndian.AppendUint16(nil, uint16(len(msg))), msg...)
	}
	conn, err := net.DialTimeout(network, addr, 5*time.Second)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := conn.Write(msg); err != nil {
		return nil, err
	}
	if !q.TCP {
		buf := make([]byte, 65536)
		n, err := conn.Read(buf)
		return buf[:n], err
	}
	var size [2]byte
	if _, err := io.ReadFull(conn, size[:]); err != nil {
		return nil, err
	}
	buf := make([]byte, binary.BigEndian.Uint16(size[:]))
	_, err = io.ReadFull(conn, buf)
	return buf, err
}

func (q *Question) describe(m *dnsmessage.Message, size int) map[string]any {
	extra, opt := []map[string]any{}, false
	for _, r := range m.Additionals {
		if r.Header.Type == dnsmessage.TypeOPT {
			opt = true
		} else {
			extra = append(extra, record(r))
		}
	}
	sections := map[string][]map[string]any{"answer": records(m.Answers), "authority": records(m.Authorities), "additional": extra}
	rcode := fmt.Sprint(uint16(m.RCode))
	if int(m.RCode) < len(rcodes) {
		rcode = rcodes[m.RCode]
	}
	out := map[string]any{
		"rcode": rcode, "aa": m.Authoritative, "tc": m.Truncated, "ra": m.RecursionAvailable, "edns": opt,
	}
	for name, rrs := range sections {
		switch {
		case q.Fits > 0 && name != "authority":
			out[name] = map[string]any{"some": len(rrs) > 0}
		case q.CountOnly && name != "authority":
			out[name] = map[string]any{"count": len(rrs)}
		case len(rrs) > 1 && q.Fits == 0:
			out[name] = map[string]any{"<unordered>": rrs}
		default:
			out[name] = rrs
		}
	}
	if q.Fits > 0 {
		out["fits"] = size <= q.Fits
	}
	return out
}

func records(rrs []dnsmessage.Resource) []map[string]any {
	out := []map[string]any{}
	for _, r := range rrs {
		out = append(out, record(r))
	}
	return out
}

func record(r dnsmessage.Resource) map[string]any {
	return map[string]any{
		"name": r.Header.Name.String(), "type": typeText(r.Header.Type), "ttl": r.Header.TTL, "data": recordData(r.Body),
	}
}

func recordData(body dnsmessage.ResourceBody) string {
	switch b := body.(type) {
	case *dnsmessage.AResource:
		return netip.AddrFrom4(b.A).String()
	case *dnsmessage.AAAAResource:
		return netip.AddrFrom16(b.AAAA).String()
	case *dnsmessage.NSResource:
		return b.NS.String()
	case *dnsmessage.CNAMEResource:
		return b.CNAME.String()
	case *dnsmessage.PTRResource:
		return b.PTR.String()
	case *dnsmessage.SRVResource:
		return fmt.Sprintf("%d %d %d %s", b.Priority, b.Weight, b.Port, b.Target)
	case *dnsmessage.SOAResource:
		return fmt.Sprintf("%s %s %d %d %d %d %d", b.NS, b.MBox, b.Serial, b.Refresh, b.Retry, b.Expire, b.MinTTL)
	case *dnsmessage.TXTResource:
		return strings.Join(b.TXT, "")
	case *dnsmessage.UnknownResource:
		return fmt.Sprintf("%x", b.Data)
	default:
		return fmt.Sprint(body)
	}
}
