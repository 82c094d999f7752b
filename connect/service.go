package connect

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/connect/identity"
	"github.com/weftmesh/weft/connect/tunnel"
)

// Signer issues a leaf certificate for a certificate request (PKCS #10, DER). The
// key that made the request stays with the Service.
type Signer interface {
	Sign(ctx context.Context, csr []byte) (identity.Chain, error)
}

// ServiceConfig configures a Service.
type ServiceConfig struct {
	// ID names the service in logs and metrics, for example by its proxy ID.
	ID string
	// Signer issues certificates. Required.
	Signer Signer
	// KeyFile holds the key and its leaf across restarts, with mode 0600. Its
	// directory is made when missing. Empty: both live in memory only.
	KeyFile string
	Logger  *slog.Logger     // nil: slog.Default
	Metrics *Metrics         // nil: none
	Now     func() time.Time // nil: time.Now
	// AccessLog says which connections get a line when they end.
	AccessLog AccessLog
	// Guard bounds what strangers may cost, for all services of a process. Nil: its own.
	Guard *Guard
}

// Service is one identity in the mesh: it dials and accepts mutual-TLS
// connections in the name that its snapshot gives it, and holds each to the
// policy of now for as long as it lives. Run keeps its certificate fresh.
type Service struct {
	cfg     ServiceConfig
	log     *slog.Logger
	now     func() time.Time
	metrics *Metrics
	guard   *Guard

	world    atomic.Pointer[world]
	updating sync.Mutex // one Update at a time

	table     table
	keys      *keyring
	serverTLS *tls.Config
	balancer  balancer
	journal   journal
}

// maxOutboundHandshakes bounds the handshakes that one service has under way with
// an upstream, so that a burst waits here rather than in its peers, and so that an
// upstream that hangs holds up no other.
const maxOutboundHandshakes = 128

// NewService checks the configuration. The service refuses everything until it
// has a snapshot (Update) and a certificate (Run).
func NewService(cfg ServiceConfig) (*Service, error) {
	if cfg.Signer == nil {
		return nil, errors.New("service: no Signer")
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Guard == nil {
		cfg.Guard = NewGuard(GuardConfig{})
	}
	if cfg.Metrics == nil {
		cfg.Metrics = NewMetrics(nil)
	}
	s := &Service{
		cfg:     cfg,
		log:     cfg.Logger,
		now:     cfg.Now,
		metrics: cfg.Metrics,
		guard:   cfg.Guard,
	}
	s.table.rows, s.table.guard = map[*row]struct{}{}, cfg.Guard
	s.balancer.now = cfg.Now
	s.journal.own = cfg.ID
	s.journal.access.Store(&s.cfg.AccessLog)
	s.journal.init(cfg.Logger, cfg.Now)
	s.keys = newKeyring(cfg)
	s.serverTLS = identity.ServerConfig(s.tlsOptions(s.bundle))
	// Large records at once: what is written is gathered before.
	s.serverTLS.DynamicRecordSizingDisabled = true
	s.world.Store(newWorld(nil, nil))
	return s, nil
}

// Run keeps the certificate of the service fresh until ctx ends.
func (s *Service) Run(ctx context.Context) error {
	defer s.metrics.serve(s)()
	return s.keys.run(ctx)
}

// Close ends every live connection for the reason. The service stays usable.
func (s *Service) Close(why Reason) {
	for _, r := range s.table.all(nil) {
		r.kill(ending{reason: why})
	}
}

// Ready is closed once the service has its first certificate.
func (s *Service) Ready() <-chan struct{} { return s.keys.ready }

// Snapshot returns the snapshot in force, nil when there is none. It must not be changed.
func (s *Service) Snapshot() *Snapshot { return s.world.Load().snap }

// Update swaps the snapshot and then judges every live connection by it: those
// that it forbids are closed before Update returns. New connections meet the new
// snapshot from the moment of the swap. A nil snapshot forbids everything.
func (s *Service) Update(snap *Snapshot) {
	s.updating.Lock()
	defer s.updating.Unlock()
	old := s.world.Load()
	w := newWorld(snap, old)
	for key, up := range w.upstreams {
		if was := old.upstreams[key]; was != nil {
			up.handshakes = was.handshakes
		} else {
			up.handshakes = make(chan struct{}, maxOutboundHandshakes)
		}
		for i := range up.Instances {
			id := up.peer(&up.Instances[i])
			if w.peers[id] == nil {
				w.peers[id] = s.newPeer(id, w, old)
			}
		}
	}
	access := &s.cfg.AccessLog
	if snap != nil && snap.AccessLog != nil {
		access = snap.AccessLog
	}
	s.journal.access.Store(access)
	s.world.Store(w)
	s.judge(w, old)
	s.balancer.keep(w)
	s.keys.update(w)
	if w.problem != "" && w.problem != old.problem {
		s.log.Error("nothing is let through", "service", w.service(), "err", w.problem)
	}
}

// judge walks the table after a swap. Verdicts are kept for one walk, as
// thousands of connections share a few sources and certificates.
func (s *Service) judge(w, old *world) {
	verdicts := map[catalog.Name]catalog.Decision{}
	own := w.ownRevocation()
	chains := chainVerdicts{w: w, now: s.now(), known: map[any]error{}}
	for _, r := range s.table.all(nil) {
		if r.outside {
			if w.captured != nil && w.captured.meshOnly {
				r.kill(ending{reason: ReasonPolicyChanged, err: errMeshOnly})
			}
			continue
		}
		if w.bundle != old.bundle {
			if err := chains.check(r); err != nil {
				r.kill(ending{reason: ReasonPolicyChanged, rule: w.untrusted(r), err: err})
				continue
			}
		}
		if r.outbound {
			if own != "" {
				r.kill(ending{reason: ReasonPolicyChanged, rule: "revoked: " + w.id.String(), err: errors.New(own)})
			}
			continue
		}
		d, ok := verdicts[r.source]
		if !ok {
			d = w.decide(r.source)
			verdicts[r.source] = d
		}
		if !d.Action.Allowed() {
			r.kill(ending{reason: ReasonPolicyChanged, rule: d.Rule.String(), hint: hintFor(r.source, r.destination, d)})
		}
	}
}

// peer is an identity that upstreams lead to, with what all connections to it share.
type peer struct {
	name    string      // as logs have it
	alone   *tls.Config // accepts only it
	tunnels *tls.Config // the same, and asks for tunnels
}

// newPeer keeps what the old world had, with the sessions that can be resumed, while whom
// to trust stays the same.
func (s *Service) newPeer(id identity.ServiceID, w, old *world) *peer {
	if was := old.peers[id]; was != nil && w.bundle == old.bundle {
		return was
	}
	bundle := w.bundle // not all of w, which the config may outlive
	c := identity.ClientConfig(s.tlsOptions(func() *identity.Bundle { return bundle }), id)
	c.DynamicRecordSizingDisabled = true
	with := c.Clone()
	with.NextProtos = []string{tunnel.ALPN}
	return &peer{name: id.String(), alone: c, tunnels: with}
}

func (s *Service) tlsOptions(bundle func() *identity.Bundle) identity.Options {
	return identity.Options{Certificate: s.keys.certificate, Bundle: bundle, Now: s.now}
}

func (s *Service) bundle() *identity.Bundle { return s.world.Load().bundle }

// world is a snapshot made ready for decisions. It never changes.
type world struct {
	snap      *Snapshot // nil when there is none
	id        identity.ServiceID
	name      string           // id, as logs have it
	bundle    *identity.Bundle // nil: nobody is trusted
	signing   *identity.Bundle // the signing root alone; nil when not named
	problem   string           // why nothing passes, empty when all is well
	upstreams map[catalog.Name]*upstream
	peers     map[identity.ServiceID]*peer
	// local is where the application listens; not valid for a name or a Unix socket.
	local netip.AddrPort
	// captured is nil where nothing is captured.
	captured *captured
}

// upstream is one destination, or one way to it: see upstreamKeys.
type upstream struct {
	Upstream
	key  catalog.Name
	base catalog.Name // the key of the destination
	id   identity.ServiceID

	handshakes chan struct{} // those under way
}

// peer is the identity that an instance must show.
func (u *upstream) peer(e *Endpoint) identity.ServiceID {
	id := u.id
	if e.Service != "" {
		id.Service = e.Service
	}
	return id
}

// newWorld keeps the bundle of old when the roots are the same, so that a changed
// pointer means changed trust.
func newWorld(snap *Snapshot, old *world) *world {
	w := &world{snap: snap, upstreams: map[catalog.Name]*upstream{}, peers: map[identity.ServiceID]*peer{}}
	if snap == nil {
		w.problem = "no snapshot"
		return w
	}
	w.id = identity.ServiceID{TrustDomain: snap.TrustDomain, Datacenter: snap.Datacenter, Service: snap.Service}
	switch {
	case snap.Service == "" || snap.TrustDomain == "" || snap.Datacenter == "":
		w.problem = "the snapshot names no service, datacenter or trust domain"
		return w
	}
	w.name = w.id.String()
	switch {
	case len(snap.Roots) == 0:
		w.problem = "the snapshot has no roots: nobody can be verified"
		return w
	case slices.Contains(snap.Intentions, nil):
		w.problem = "the snapshot holds an empty intention"
		return w
	}
	if old != nil && old.sameTrust(snap) {
		w.bundle, w.signing = old.bundle, old.signing
	} else if err := w.loadTrust(snap, old); err != nil {
		w.problem = err.Error()
		return w
	}
	w.local, _ = netip.ParseAddrPort(snap.Local) // anything else is dialled by name
	w.problem = w.ownRevocation()                // the upstreams stay known: it may be taken back
	for i, key := range snap.upstreamKeys() {
		u := &snap.Upstreams[i]
		if _, dup := w.upstreams[key]; dup {
			continue // a second listener of the same
		}
		dc := u.Datacenter
		if dc == "" {
			dc = snap.Datacenter
		}
		w.upstreams[key] = &upstream{
			Upstream: *u,
			key:      key,
			base:     snap.upstreamKey(u),
			id:       identity.ServiceID{TrustDomain: snap.TrustDomain, Datacenter: dc, Service: u.Name},
		}
	}
	w.captured = newCaptured(w)
	return w
}

// upstreamKey is what Dial calls an upstream: its name, and "name@datacenter" for
// one of another datacenter, or whose name has an @ in it, so that no two services
// have one key.
func (s *Snapshot) upstreamKey(u *Upstream) catalog.Name {
	dc := u.Datacenter
	if dc == "" {
		dc = s.Datacenter
	}
	if dc == s.Datacenter && !strings.Contains(u.Name, "@") {
		return u.Name
	}
	return u.Name + "@" + dc
}

// upstreamKeys are those of Upstreams, in their order. A further one of the same
// destination shares the key of the first if it differs only in its listener; else it
// has that in its key, as it has instances, limits and failures of its own.
func (s *Snapshot) upstreamKeys() []catalog.Name {
	keys := make([]catalog.Name, 0, len(s.Upstreams))
	first := make(map[catalog.Name]*Upstream, len(s.Upstreams))
	for i := range s.Upstreams {
		u := &s.Upstreams[i]
		key := s.upstreamKey(u)
		switch one := first[key]; {
		case one == nil:
			first[key] = u
		case u.Listen != "" && !one.sameSettings(u):
			key += "@" + u.Listen // no datacenter has such a name
		}
		keys = append(keys, key)
	}
	return keys
}

func (u *Upstream) sameSettings(o *Upstream) bool {
	return u.ConnectTimeout == o.ConnectTimeout && u.MaxConnections == o.MaxConnections && u.Ejection == o.Ejection &&
		slices.EqualFunc(u.Instances, o.Instances, func(a, b Endpoint) bool { return reflect.DeepEqual(a, b) })
}

func (w *world) sameTrust(snap *Snapshot) bool {
	return w.bundle != nil && w.snap.TrustDomain == snap.TrustDomain && w.snap.sameRevoked(snap) &&
		w.snap.SigningRoot == snap.SigningRoot && slices.Equal(w.snap.Roots, snap.Roots)
}

func (w *world) loadTrust(snap *Snapshot, old *world) error {
	b, err := identity.NewBundle(snap.TrustDomain, snap.Roots)
	if err != nil {
		return fmt.Errorf("roots of the snapshot: %w", err)
	}
	if snap.SigningRoot != "" {
		if w.signing, err = identity.NewBundle(snap.TrustDomain, []string{snap.SigningRoot}); err != nil {
			return fmt.Errorf("signing root of the snapshot: %w", err)
		}
	}
	b = b.Revoking(snap.RevokedSerials, snap.RevokedIDs)
	w.bundle = b
	if old != nil && old.bundle.Fingerprint() == b.Fingerprint() {
		w.bundle = old.bundle // listed in another order
	}
	return nil
}

func (w *world) service() catalog.Name { return w.id.Service }

// decide asks the one judge. With a problem, nobody passes.
func (w *world) decide(source catalog.Name) catalog.Decision {
	if w.problem != "" {
		return catalog.Decision{Action: catalog.ActionDeny}
	}
	return w.snap.Intentions.Decide(catalog.Request{Source: source, Destination: w.snap.Service}, w.snap.Default)
}

func (w *world) limits() Limits {
	var l Limits
	if w.snap != nil {
		l = w.snap.Limits
	}
	for _, d := range []*time.Duration{&l.HandshakeTimeout, &l.DrainTimeout, &l.LocalConnectTimeout} {
		if *d <= 0 {
			*d = 5 * time.Second
		}
	}
	return l
}

// names lists the upstreams, sorted.
func (w *world) names() []catalog.Name { return slices.Sorted(maps.Keys(w.upstreams)) }
