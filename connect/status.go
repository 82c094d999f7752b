package connect

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/connect/identity"
)

// Status is what a Proxy shows of itself. It holds no secret.
type Status struct {
	Proxy       string
	Service     catalog.Name
	Datacenter  string
	TrustDomain string
	// Applied is the index of the snapshot enforced now.
	Applied uint64
	// Ready tells whether connections can be made and taken; else Problem says why not.
	Ready   bool
	Problem string `json:",omitempty"`
	// External: it runs outside the agent, and tells of itself.
	External bool `json:",omitempty"`
	// Untold: it runs outside the agent, follows its policy and does not say how it is.
	Untold bool `json:",omitempty"`
	// Resting says why connections are asked to end, where they are.
	Resting     string `json:",omitempty"`
	Certificate *CertificateStatus
	// Inbound is nil when the snapshot asks for no inbound listener.
	Inbound   *ListenerStatus
	Upstreams []UpstreamStatus
	// Captured are the listeners for connections that the host redirects here.
	Captured []ListenerStatus `json:",omitempty"`
	// Exposed are the listeners of paths that are exposed past the mesh.
	Exposed []ListenerStatus `json:",omitempty"`
	// Peers sums the open connections by source and destination.
	Peers []PeerStatus
	// Tunnels carry the connections to and from peers that speak them.
	Tunnels []TunnelStatus
	// Drainers are earlier processes of the agent that still carry connections.
	Drainers []DrainerStatus `json:",omitempty"`
	// Errors are the last refusals and failures, oldest first; equal ones are one.
	Errors []ErrorStatus
}

// DrainerStatus is what a process carries that another one has followed.
type DrainerStatus struct {
	PID   int
	Peers []PeerStatus
}

// CertificateStatus describes the leaf in use.
type CertificateStatus struct {
	URI       string
	Serial    string // hex with colons
	NotBefore time.Time
	NotAfter  time.Time
	RenewAt   time.Time
	// Error is why the last renewal failed, empty when it did not.
	Error string `json:",omitempty"`
}

// ListenerStatus describes a listener.
type ListenerStatus struct {
	Addr      string // where it listens; what was asked for while it does not
	Listening bool
	Error     string `json:",omitempty"` // why it does not
	Local     string `json:",omitempty"` // inbound: the application behind it
	Shared    string `json:",omitempty"` // inbound: by what it is told apart from others of the mesh port
	// Refused are the last refusals of the mesh port itself, which are of none of the
	// services that share it.
	Refused []ErrorStatus `json:",omitempty"`
}

// UpstreamStatus describes an upstream and its instances.
type UpstreamStatus struct {
	Name       catalog.Name
	Datacenter string
	Listener   *ListenerStatus `json:",omitempty"`
	Instances  []InstanceStatus
	// Virtual and Implicit are as in Upstream.
	Virtual  []netip.Addr `json:",omitempty"`
	Implicit bool         `json:",omitempty"`
}

// InstanceStatus is an instance of an upstream as this proxy sees it.
type InstanceStatus struct {
	ID     string
	Node   string
	Addr   string
	Status catalog.Status
	Weight int
	Active int64 // open connections from here
	// Service and Priority are as in Endpoint.
	Service  catalog.Name `json:",omitempty"`
	Priority int          `json:",omitempty"`
	// SkippedUntil is set while others are preferred after a failure.
	SkippedUntil *time.Time `json:",omitempty"`
	Error        string     `json:",omitempty"` // the last failure, cleared by success
}

// PeerStatus sums the open connections of a pair.
type PeerStatus struct {
	Direction   string // "inbound" or "outbound"
	Source      catalog.Name
	Destination catalog.Name
	Peer        string // SPIFFE ID of the far end
	Open        int
	BytesIn     int64 // from source to destination
	BytesOut    int64 // from destination to source
}

// ConnectionStatus is one open connection.
type ConnectionStatus struct {
	ID          uint64
	Direction   string
	Source      catalog.Name
	Destination catalog.Name
	Peer        string
	Remote      string
	Instance    string `json:",omitempty"`
	Rule        string `json:",omitempty"`
	Started     time.Time
	BytesIn     int64
	BytesOut    int64
}

// TunnelStatus is one tunnel.
type TunnelStatus struct {
	Direction string // "inbound" or "outbound"
	Peer      string // SPIFFE ID of the far end
	Addr      string // of the far end
	Streams   int    // connections that it carries now
	Draining  bool   // it takes no new ones
	Since     time.Time
}

// ErrorStatus is a refusal or failure of the recent past, and those like it.
type ErrorStatus struct {
	Time        time.Time // of the last
	Count       int
	Reason      Reason
	Source      catalog.Name `json:",omitempty"`
	Destination catalog.Name `json:",omitempty"`
	Addr        string       `json:",omitempty"`
	Rule        string       `json:",omitempty"`
	Error       string       `json:",omitempty"`
	Hint        string       `json:",omitempty"`
}

// Status shows the proxy as it is now.
func (p *Proxy) Status() Status {
	w := p.svc.world.Load()
	st := Status{
		Proxy: p.id, Service: w.id.Service, Datacenter: w.id.Datacenter, TrustDomain: w.id.TrustDomain,
		Applied: p.Applied(), Problem: w.problem, Certificate: p.svc.keys.status(),
		Peers: p.svc.table.peers(), Tunnels: p.tunnels.status(), Errors: p.svc.journal.failures(),
	}
	if st.Problem == "" {
		if err := p.svc.keys.usable(w); err != nil {
			st.Problem = err.Error()
		}
	}
	st.Ready = st.Problem == ""
	if w.snap != nil && w.snap.Rest != nil {
		st.Resting = w.snap.Rest.Why
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	in := p.inboundStatus()
	if in != nil {
		st.Inbound = in
		if w.snap != nil {
			st.Inbound.Local = w.snap.Local
		}
	}
	for _, addr := range slices.Sorted(maps.Keys(p.exposed)) {
		st.Exposed = append(st.Exposed, *p.exposed[addr].status())
	}
	for _, addr := range slices.Sorted(maps.Keys(p.capture.listeners)) {
		st.Captured = append(st.Captured, *p.capture.listeners[addr].status())
	}
	listeners := map[catalog.Name]*ListenerStatus{}
	for _, o := range p.upstreams {
		listeners[*o.key.Load()] = o.status()
	}
	for _, key := range w.names() {
		up := w.upstreams[key]
		us := UpstreamStatus{
			Name: up.Name, Datacenter: up.id.Datacenter, Listener: listeners[key], Instances: p.svc.balancer.status(up),
			Virtual: up.Virtual, Implicit: up.Implicit,
		}
		if text := p.clashes[key]; text != "" && us.Listener == nil {
			us.Listener = &ListenerStatus{Addr: up.Listen, Error: text}
		}
		st.Upstreams = append(st.Upstreams, us)
	}
	return st
}

// Connections lists at most limit open connections, oldest first; 0 is 1000.
func (p *Proxy) Connections(limit int) []ConnectionStatus {
	if limit <= 0 {
		limit = 1000
	}
	rows := p.svc.table.all(nil)
	slices.SortFunc(rows, func(a, b *row) int { return cmp.Compare(a.id, b.id) })
	out := make([]ConnectionStatus, 0, min(limit, len(rows)))
	for _, r := range rows[:min(limit, len(rows))] {
		out = append(out, r.status())
	}
	return out
}

func (k *keyring) status() *CertificateStatus {
	c := k.held.Load()
	err := k.lastError()
	if c == nil && err == nil {
		return nil
	}
	st := &CertificateStatus{}
	if c != nil {
		*st = CertificateStatus{
			URI: c.id.String(), Serial: identity.Serial(c.leaf().SerialNumber),
			NotBefore: c.leaf().NotBefore, NotAfter: c.leaf().NotAfter, RenewAt: c.renewAt,
		}
	}
	if err != nil {
		st.Error = err.Error()
	}
	return st
}
