package connect

import (
	"context"
	"fmt"
)

// sharePort takes the connections of the shared port that ask for this service, where
// the inbound address of the snapshot is on it; p.mu is held.
func (p *Proxy) sharePort(live context.Context, snap *Snapshot) {
	name := ""
	if p.port.serves(snap.Inbound) {
		name = p.svc.world.Load().id.SNI()
		if name == "" {
			p.log.Error("the service cannot share the mesh port: its name is none that a server name could hold; give its sidecar a port of its own", "service", snap.Service)
		}
	}
	if name == p.sharing {
		return
	}
	p.unshare()
	if name == "" {
		return
	}
	p.sharing = name
	p.shortCut.open(snap.Inbound, p)
	p.port.attach(p, taker{name: name, serve: func(w *wire, place *ticket) {
		p.spawn(w.Conn, func() { p.serveInbound(live, w, place) })
	}})
}

// unshare leaves the shared port; p.mu is held.
func (p *Proxy) unshare() {
	if p.sharing != "" {
		p.port.detach(p)
		p.shortCut.close(p)
		p.sharing = ""
	}
}

// inboundStatus describes the listener or the port; p.mu is held.
func (p *Proxy) inboundStatus() *ListenerStatus {
	switch {
	case p.inbound != nil:
		return p.inbound.status()
	case p.sharing != "":
		st := p.port.status()
		st.Shared = fmt.Sprintf("server name %s", p.sharing)
		st.Refused = p.port.journal.failures()
		return st
	default:
		return nil
	}
}
