package enroll

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"time"
)

// Inquire asks the servers at the addresses, one after the other, for what a node
// learns when it joins, without a new certificate: how a server that was down while
// the keys of gossip changed gets those of now. Its certificate is its right to them.
func (c *Credentials) Inquire(ctx context.Context, addrs []string) (Joined, error) {
	errs := []error{errors.New("no other server told what changed")}
	for _, addr := range addrs {
		got, err := c.inquire(ctx, addr)
		if err == nil {
			return got, nil
		}
		errs = append(errs, fmt.Errorf("%s: %w", addr, err))
		if ctx.Err() != nil {
			break
		}
	}
	return Joined{}, errors.Join(errs...)
}

// Renew asks for another certificate now, and with it for what changed: an agent does
// so when it hears that it missed something. Servers make theirs themselves.
func (c *Credentials) Renew(ctx context.Context) (Joined, error) {
	j, ok := c.source.(*joining)
	if !ok {
		return Joined{}, errors.New("a server makes its own certificate")
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return Joined{}, err // somebody else was asking all the while
	}
	return j.join(ctx, c)
}

func (c *Credentials) inquire(ctx context.Context, addr string) (Joined, error) {
	ctx, cancel := context.WithTimeout(ctx, joinTimeout)
	defer cancel()
	raw, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return Joined{}, err
	}
	defer raw.Close()
	stop := context.AfterFunc(ctx, func() { _ = raw.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	conn := tls.Client(raw, c.Client(ProtoJoin, Peer{Role: RoleServer}))
	if err := conn.HandshakeContext(ctx); err != nil {
		return Joined{}, err
	}
	self := c.Self()
	req := request{Node: self.Node, NodeID: self.NodeID, Datacenter: self.Datacenter}
	if err := writeFrame(conn, &req, maxRequest); err != nil {
		return Joined{}, err
	}
	var rep reply
	if err := readFrame(conn, &rep, maxReply); err != nil {
		return Joined{}, err
	}
	if rep.Refused != nil {
		return Joined{}, rep.Refused.cleaned()
	}
	return Joined{ClusterID: self.ClusterID, GossipKeys: rep.GossipKeys, Servers: rep.Servers}, nil
}

// inform answers another server that inquires. A server issues its own certificate.
func (g *Gate) inform(ctx context.Context, p Peer, a Admission) (*reply, error) {
	if p.Datacenter != g.cfg.Datacenter {
		return nil, Refuse(ReasonDatacenter, "this is datacenter %q, the server is of %q", g.cfg.Datacenter, p.Datacenter)
	}
	a.Node, a.NodeID, a.Datacenter, a.Renewal = p.Node, p.NodeID, p.Datacenter, &p
	grant, err := g.cfg.Registrar.Admit(ctx, a)
	if err != nil {
		return nil, err
	}
	return &reply{Root: g.root.cert.Raw, ClusterID: g.root.clusterID, GossipKeys: grant.GossipKeys, Servers: grant.Servers}, nil
}
