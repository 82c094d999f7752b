package connect

import (
	"errors"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/weftmesh/weft/connect/identity"
	"github.com/weftmesh/weft/connect/tunnel"
)

// ShortCut lets the proxies of one process reach each other without a tunnel: both ends
// are here, so nothing is proved by encrypting what the host's own kernel carries. Who
// they are is proved as ever: the certificate of each is verified by the other's roots
// and revocations, and the destination judges each connection, which is a row of both
// tables and a line of both logs.
type ShortCut struct {
	mu    sync.RWMutex
	doors map[uint16][]door // by port

	own     atomic.Pointer[map[netip.Addr]bool] // addresses of this host
	askedAt atomic.Int64
}

// door is the inbound address of a proxy.
type door struct {
	at    netip.AddrPort
	proxy *Proxy
}

// ownAddressesFor is how long the addresses of the host are taken for granted.
const ownAddressesFor = 10 * time.Second

// NewShortCut makes one for the proxies of a process.
func NewShortCut() *ShortCut {
	c := &ShortCut{doors: map[uint16][]door{}}
	c.ask()
	return c
}

// ask learns the addresses of this host.
func (c *ShortCut) ask() {
	c.askedAt.Store(time.Now().UnixNano())
	own := map[netip.Addr]bool{}
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return // those known stay
	}
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok {
			if ip, ok := netip.AddrFromSlice(n.IP); ok {
				own[ip.Unmap()] = true
			}
		}
	}
	c.own.Store(&own)
}

func (c *ShortCut) isOwn(a netip.Addr) bool {
	if asked := c.askedAt.Load(); time.Now().UnixNano()-asked > int64(ownAddressesFor) {
		if c.askedAt.CompareAndSwap(asked, time.Now().UnixNano()) {
			go c.ask()
		}
	}
	own := c.own.Load()
	return own != nil && (*own)[a]
}

// open makes a proxy reachable at addr, which it listens on; close ends that. Both do
// nothing on a nil ShortCut.
func (c *ShortCut) open(addr string, p *Proxy) {
	at, err := netip.ParseAddrPort(addr)
	if c == nil || err != nil {
		return
	}
	at = netip.AddrPortFrom(at.Addr().Unmap(), at.Port())
	c.mu.Lock()
	defer c.mu.Unlock()
	c.doors[at.Port()] = append(c.doors[at.Port()], door{at, p})
}

func (c *ShortCut) close(p *Proxy) {
	if c == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for port, list := range c.doors {
		list = slices.DeleteFunc(slices.Clone(list), func(d door) bool { return d.proxy == p })
		if c.doors[port] = list; len(list) == 0 {
			delete(c.doors, port)
		}
	}
}

// find gives the proxy that a connection to key would reach, if it is of this process.
func (c *ShortCut) find(key instanceKey) *Proxy {
	if c == nil {
		return nil
	}
	at, err := netip.ParseAddrPort(key.addr)
	if err != nil {
		return nil
	}
	ip := at.Addr().Unmap()
	c.mu.RLock()
	defer c.mu.RUnlock()
	for _, d := range c.doors[at.Port()] {
		if d.at.Addr() != ip && (!d.at.Addr().IsUnspecified() || !c.isOwn(ip)) {
			continue
		}
		if !d.proxy.refusing() && d.proxy.svc.world.Load().id == key.id {
			return d.proxy
		}
	}
	return nil
}

// localPath is a short cut that both ends have proved, with what the proof rests on.
type localPath struct {
	ours, theirs *credential
	bundle       *identity.Bundle // ours, which accepted theirs
	last         atomic.Pointer[ends]

	mu sync.Mutex // of in: its proof moves on with the destination's trust
	in *inboundTunnel
}

// localPaths are the short cuts of a proxy.
type localPaths struct {
	mu sync.Mutex
	to map[*Proxy]*localPath
}

// stands gives a path to the destination that holds in the world w.
func (t *localPaths) stands(to *Proxy, cred *credential, w *world) *localPath {
	t.mu.Lock()
	defer t.mu.Unlock()
	p := t.to[to]
	if p == nil || p.ours != cred || p.bundle != w.bundle || p.theirs != to.svc.keys.held.Load() {
		return nil
	}
	return p
}

func (t *localPaths) put(to *Proxy, p *localPath) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.to == nil {
		t.to = map[*Proxy]*localPath{}
	}
	t.to[to] = p
}

// tidy forgets the paths to proxies that are at their end.
func (t *localPaths) tidy() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for to := range t.to {
		if to.refusing() {
			delete(t.to, to)
		}
	}
}

// prove makes a path as a handshake would: our roots must vouch for their certificate.
// Theirs are asked for ours with the first connection.
func (p *Proxy) prove(to *Proxy, key instanceKey, w *world) (*localPath, error) {
	ours, theirs := p.svc.keys.held.Load(), to.svc.keys.held.Load()
	if ours == nil || theirs == nil || w.bundle == nil {
		return nil, errors.New("one end has no certificate yet")
	}
	now := p.svc.now()
	id, err := w.bundle.VerifyServer(theirs.chain, now)
	switch {
	case err != nil:
		return nil, err
	case id != key.id:
		return nil, errors.New("the service at this address is another")
	}
	dst := to.svc.world.Load()
	t := &inboundTunnel{
		ends: to.svc.inboundEnds(ours.id, dst, localPeer, ours.chain),
		p:    to, since: now, proof: proof{id: dst.id},
	}
	made := &localPath{ours: ours, theirs: theirs, bundle: w.bundle, in: t}
	p.local.put(to, made)
	return made, nil
}

// localPeer is the address, in logs, of a source that is in the same process.
const localPeer = "local"

// accept judges one connection for the destination.
func (t *localPath) accept(f *tunnel.Flow, meta []byte) tunnel.Verdict {
	p := t.in.p
	p.live.add() // before the question, so that its end waits for the answer
	defer p.live.done()
	if p.refusing() {
		return tunnel.Verdict{Refuse: tunnel.CodeDraining}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.in.accept(f, meta)
}

// short joins the application to an instance of this process, if e is one; a fresh
// proof is made only where that may take its time. False: it goes by tunnel.
func (a *attempt) short(e *candidate, mayProve bool) bool {
	key := instanceKey{e.Addr, a.up.peer(e.Endpoint)}
	to := a.p.shortCut.find(key)
	if to == nil {
		return false
	}
	by := a.p.local.stands(to, a.p.svc.keys.held.Load(), a.w)
	if by == nil && mayProve {
		by, _ = a.p.prove(to, key, a.w) // a handshake meets the same, and says so
	}
	if by == nil {
		return false
	}
	return a.hand(e, a.endsOf(e, key.id, by.theirs.chain, &by.last), func(app net.Conn, end tunnel.EndFunc) (*tunnel.Flow, error) {
		return a.p.driver.Splice(app, by.accept, end)
	}) == nil
}
