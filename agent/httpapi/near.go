package httpapi

import (
	"context"
	"net"
	"net/netip"
	"strings"

	"github.com/weftmesh/weft/agent/discover"
	"github.com/weftmesh/weft/catalog"
)

// near measures from a node, as ?near names it; nil sorts nothing.
func (q *queries) near(c *call, name string) (discover.Distances, error) {
	return discover.Measure(c.ctx(), q.reader(c), name, q.asker(c))
}

// reader reads for a request without waiting and without headers.
func (q *queries) reader(c *call) discover.Reader {
	return func(_ context.Context, query catalog.Query) (*catalog.View, error) { return q.peek(c, query) }
}

// asker is who sent a request. What a proxy in front says of the address is
// believed: it only orders an answer.
func (q *queries) asker(c *call) discover.Asker {
	by := discover.Asker{Node: q.self}
	text, _, err := net.SplitHostPort(c.r.RemoteAddr)
	if err != nil {
		text = c.r.RemoteAddr
	}
	if first, _, _ := strings.Cut(c.r.Header.Get("X-Forwarded-For"), ","); first != "" {
		text = strings.TrimSpace(first)
	}
	if addr, err := netip.ParseAddr(text); err == nil {
		addr = addr.Unmap().WithZone("")
		by.Addr = netip.PrefixFrom(addr, addr.BitLen())
	}
	return by
}
