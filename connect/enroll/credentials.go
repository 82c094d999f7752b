package enroll

import (
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"github.com/weftmesh/weft/connect/identity"
)

// Credentials hold what a node proves itself with, and renew it. They are safe for
// concurrent use.
type Credentials struct {
	self   Peer // its ClusterID may be unknown until an agent has joined
	held   atomic.Pointer[held]
	now    func() time.Time
	logger *slog.Logger
	source source
	look   time.Duration // lookEvery
	doubts chan struct{} // has a value when servers turn this node away
	failed atomic.Pointer[error]
}

// source is where the next certificate comes from.
type source interface {
	// next waits until a certificate is due and gets it.
	next(ctx context.Context, c *Credentials) error
}

// held is what one certificate comes with. It is immutable.
type held struct {
	cert   *tls.Certificate // the leaf alone
	joined *tls.Certificate // the leaf and the root, for newcomers to check their pin
	trust  *trust
	node   string // whose certificate it is
}

// ServerConfig is what NewServer needs.
type ServerConfig struct {
	Secret                   Secret
	Node, NodeID, Datacenter string
	Now                      func() time.Time // time.Now when nil
	Logger                   *slog.Logger     // nil discards
}

// NewServer makes the credentials of a server, from the secret.
func NewServer(cfg ServerConfig) (*Credentials, error) {
	root, err := cfg.Secret.root()
	if err != nil {
		return nil, err
	}
	self := Peer{Role: RoleServer, Node: cfg.Node, NodeID: cfg.NodeID, Datacenter: cfg.Datacenter, ClusterID: root.clusterID}
	if _, err := self.id(); err != nil {
		return nil, fmt.Errorf("server certificate: %w", err)
	}
	c := newCredentials(self, cfg.Now, cfg.Logger)
	c.source = &selfIssued{root: root}
	return c, c.selfIssue(root)
}

func newCredentials(self Peer, now func() time.Time, logger *slog.Logger) *Credentials {
	if now == nil {
		now = time.Now
	}
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	return &Credentials{self: self, now: now, logger: logger, look: lookEvery, doubts: make(chan struct{}, 1)}
}

// selfIssued is the source of a server.
type selfIssued struct{ root *authority }

func (s *selfIssued) next(ctx context.Context, c *Credentials) error {
	if err := c.sleepUntil(ctx, c.renewalDue(), nil); err != nil {
		return err
	}
	if err := c.selfIssue(s.root); err != nil {
		return err
	}
	c.logger.Info("the node's certificate was renewed", "node", c.self.Node, "not_after", c.NotAfter())
	return nil
}

func (c *Credentials) selfIssue(root *authority) error {
	key, err := identity.NewKey()
	if err != nil {
		return fmt.Errorf("server certificate: %w", err)
	}
	leaf, err := root.issue(c.self, key.Public(), c.now())
	if err != nil {
		return fmt.Errorf("server certificate: %w", err)
	}
	return c.hold(key, leaf, root.cert)
}

// hold puts a certificate into use.
func (c *Credentials) hold(key crypto.Signer, leaf, root *x509.Certificate) error {
	if !identity.SameKey(key.Public(), leaf.PublicKey) {
		return errors.New("node certificate: it is not for the key at hand")
	}
	p, err := peerIn(leaf)
	if err != nil {
		return err
	}
	t, err := newTrust(p.ClusterID, root)
	if err != nil {
		return err
	}
	c.held.Store(&held{
		cert:   &tls.Certificate{Certificate: [][]byte{leaf.Raw}, PrivateKey: key, Leaf: leaf},
		joined: &tls.Certificate{Certificate: [][]byte{leaf.Raw, root.Raw}, PrivateKey: key, Leaf: leaf},
		trust:  t,
		node:   p.Node,
	})
	return nil
}

// Run renews the certificate until ctx ends.
func (c *Credentials) Run(ctx context.Context) error {
	for {
		err := c.source.next(ctx, c)
		if ctx.Err() != nil {
			return nil //nolint:nilerr // told to end
		}
		if err != nil {
			return err
		}
	}
}

// Self is who this node says it is. The cluster is "" as long as that is not known.
func (c *Credentials) Self() Peer {
	p := c.self
	if h := c.held.Load(); h != nil {
		p.ClusterID = h.trust.clusterID
	}
	return p
}

// Ready tells whether there is a certificate to show, be it expired. One of the name
// that this node had before is none: its servers would let it speak for that name only.
func (c *Credentials) Ready() bool {
	h := c.held.Load()
	return h != nil && h.node == c.self.Node
}

// Failure is why the last attempt to join or to renew failed; nil when it did not.
func (c *Credentials) Failure() error {
	if err := c.failed.Load(); err != nil {
		return *err
	}
	return nil
}

// NotAfter is the end of the certificate, zero when there is none.
func (c *Credentials) NotAfter() time.Time {
	if h := c.held.Load(); h != nil {
		return h.cert.Leaf.NotAfter
	}
	return time.Time{}
}

// renewalDue is at half the certificate's life, give or take, so that nodes that were
// started together do not renew together.
func (c *Credentials) renewalDue() time.Time {
	h := c.held.Load()
	if h == nil {
		return c.now()
	}
	return identity.RenewAt(h.cert.Leaf.NotBefore, h.cert.Leaf.NotAfter, rand.Float64())
}

// lookEvery is how often a node that waits looks at the clock on the wall, which may
// be set, and passes over a suspend as timers do not. gRPC ends connections within four
// seconds when it is set back (its keep-alives go by it), and new ones need a
// certificate of the time.
const lookEvery = time.Second

// premature tells whether the certificate begins only later by the clock here, which
// others, who go by the same time, refuse: the clock was ahead when it was made.
func (c *Credentials) premature() bool {
	h := c.held.Load()
	return h != nil && c.now().Add(skew).Before(h.cert.Leaf.NotBefore)
}

// rest waits without looking at the wall, but ends when the clock there is set back to
// before the certificate begins.
func (c *Credentials) rest(ctx context.Context, d time.Duration) error {
	odd := c.premature() // already: the clock here is not that of who signs
	for ; d > 0; d -= c.look {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(min(d, c.look)):
		}
		if !odd && c.premature() {
			break
		}
	}
	return ctx.Err()
}

// sleepUntil waits until the wall clock says so, the certificate is premature, or there
// is a doubt: nil doubts wait for the clock alone.
func (c *Credentials) sleepUntil(ctx context.Context, due time.Time, doubts <-chan struct{}) error {
	for {
		d := due.Round(0).Sub(c.now().Round(0)) // the wall's time, not the monotonic one
		if d <= 0 || c.premature() {
			return ctx.Err()
		}
		t := time.NewTimer(min(d, c.look))
		select {
		case <-ctx.Done():
			t.Stop()
			return ctx.Err()
		case <-doubts:
			t.Stop()
			return nil
		case <-t.C:
		}
	}
}
