package enroll

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/weftmesh/weft/connect/identity"
)

const (
	joinTimeout = 10 * time.Second
	retryFirst  = time.Second
	retryMost   = 5 * time.Minute
)

// AgentConfig is what NewAgent needs.
type AgentConfig struct {
	// Dir keeps the certificate and its key; "" keeps them in memory.
	Dir string
	// Token gives the join token, "" for none. It is asked at each attempt, so that an
	// operator may put a new one into the file.
	Token func() (string, error)
	// Servers are the addresses to try, host:port of the servers' one port.
	Servers func() []string
	// Dial opens a connection; net.Dialer when nil.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)

	Node, NodeID, Datacenter string
	Version                  string
	Now                      func() time.Time // time.Now when nil
	Logger                   *slog.Logger     // nil discards
	// OnJoined hears each answer of a server: gossip keys and servers of now.
	OnJoined func(Joined)
}

// Joined is what a node learns when it joins or renews.
type Joined struct {
	ClusterID  string
	GossipKeys [][]byte // the primary first; none when nobody was asked
	Servers    []string // host:port
}

// NewAgent makes the credentials of an agent from what lies in its directory; there
// may be nothing yet. Damaged files are an error: they say who this node is.
func NewAgent(cfg AgentConfig) (*Credentials, error) {
	self := Peer{Role: RoleAgent, Node: cfg.Node, NodeID: cfg.NodeID, Datacenter: cfg.Datacenter}
	probe := self
	probe.ClusterID = "00000000-0000-0000-0000-000000000000"
	if _, err := probe.id(); err != nil {
		return nil, fmt.Errorf("node certificate: %w", err)
	}
	if cfg.Servers == nil {
		return nil, errors.New("node certificate: nobody says where the servers are")
	}
	if cfg.Dial == nil {
		cfg.Dial = (&net.Dialer{}).DialContext
	}
	if cfg.Token == nil {
		cfg.Token = func() (string, error) { return "", nil }
	}
	if cfg.OnJoined == nil {
		cfg.OnJoined = func(Joined) {}
	}
	c := newCredentials(self, cfg.Now, cfg.Logger)
	c.source = &joining{cfg: cfg}
	if cfg.Dir == "" {
		return c, nil
	}
	kept, err := readKept(cfg.Dir)
	if err != nil || kept == nil {
		return c, err
	}
	p, err := peerIn(kept.leaf)
	if err != nil {
		return nil, err
	}
	switch text, err := cfg.Token(); {
	case p.NodeID != cfg.NodeID || p.Role != RoleAgent || p.Datacenter != cfg.Datacenter:
		// Another node's files, as in a copied image: this one has to join itself.
		c.logger.Warn("the kept certificate is that of another node and is not used", "node", cfg.Node, "peer", p.String())
		return c, nil
	case err == nil && movedTo(text, kept.root):
		c.logger.Warn("the join token is of another cluster than the kept certificate, which is not used", "node", cfg.Node, "peer", p.ClusterID)
		return c, nil
	}
	return c, c.hold(kept.key, kept.leaf, kept.root)
}

// movedTo tells whether a token leads to another cluster than that of the root.
func movedTo(token string, root *x509.Certificate) bool {
	t, err := ParseToken(token)
	return err == nil && t.Pin != pinOf(root)
}

// joining is the source of an agent: the servers, over weft-join/1.
type joining struct {
	cfg AgentConfig

	mu    sync.Mutex // one asks at a time
	asked bool       // since the start, with success
	fails int
	doubt time.Time // when a doubt was looked into last
}

// Enroll gives an agent a certificate that is good now: the one it has, or else one
// that it asks a server for, by its token or its expired certificate. One attempt at
// each server; the caller repeats it. Servers need none.
func (c *Credentials) Enroll(ctx context.Context) (Joined, error) {
	j, ok := c.source.(*joining)
	if h := c.held.Load(); h != nil && (!ok || c.Ready() && c.now().Before(h.cert.Leaf.NotAfter)) {
		return Joined{ClusterID: h.trust.clusterID}, nil
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.join(ctx, c)
}

// next asks at once after a start, so that what changed while this node was off is
// learnt, and then at half the certificate's life.
func (j *joining) next(ctx context.Context, c *Credentials) error {
	pause, due := j.due(c)
	// A doubt is looked into at once, so that a node that was revoked says so at once,
	// but for a while after the last one.
	if err := c.rest(ctx, pause); err != nil {
		return err
	}
	if err := c.sleepUntil(ctx, due, c.doubts); err != nil {
		return err
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if now := c.now(); now.Before(due) {
		j.doubt = now
	}
	_, err := j.join(ctx, c)
	if err == nil {
		c.logger.Info("the node's certificate was renewed", "node", c.self.Node, "not_after", c.NotAfter())
		return nil
	}
	j.fails++
	if ctx.Err() == nil {
		c.logger.Warn("the node's certificate could not be renewed; it is tried again", "node", c.self.Node, "not_after", c.NotAfter(), "err", err)
	}
	return nil
}

// due is how long to be calm, whatever the clock on the wall is set to meanwhile, and
// when to ask next by that clock; in between a doubt makes it sooner. A certificate that
// is due as soon as it came, as the clocks of the two ends differ by days, is not asked
// for ever again at once.
func (j *joining) due(c *Credentials) (calm time.Duration, due time.Time) {
	j.mu.Lock()
	defer j.mu.Unlock()
	switch {
	case j.fails > 0:
		return backoff(j.fails), time.Time{}
	case j.asked:
		due, now := c.renewalDue(), c.now()
		if !now.Before(due) {
			return doubtEvery, due
		}
		return doubtEvery - now.Sub(j.doubt), due
	}
	return time.Duration(rand.Float64() * float64(time.Second)), time.Time{}
}

func backoff(fails int) time.Duration {
	d := min(retryFirst<<min(fails-1, 16), retryMost)
	return time.Duration((0.5 + rand.Float64()) * float64(d))
}

// join asks one server after the other.
func (j *joining) join(ctx context.Context, c *Credentials) (_ Joined, err error) {
	defer func() { c.failed.Store(&err) }()
	token, err := j.token(c)
	if err != nil {
		return Joined{}, err
	}
	servers := slices.Clone(j.cfg.Servers())
	if len(servers) == 0 {
		return Joined{}, errors.New("join: no server's address is known; set retry_join")
	}
	rand.Shuffle(len(servers), func(a, b int) { servers[a], servers[b] = servers[b], servers[a] })
	var errs []error
	for _, addr := range servers {
		got, err := j.ask(ctx, c, addr, token)
		if err == nil {
			j.asked, j.fails = true, 0
			return got, nil
		}
		errs = append(errs, fmt.Errorf("join at %s: %w", addr, err))
		var r *Refusal
		if ctx.Err() != nil || errors.As(err, &r) && r.Lasting() {
			break
		}
	}
	return Joined{}, errors.Join(errs...)
}

// token is the token to show. It may be missing when there is a certificate.
func (j *joining) token(c *Credentials) (Token, error) {
	text, err := j.cfg.Token()
	var t Token
	if err == nil && text != "" {
		t, err = ParseToken(text)
	}
	switch {
	case c.held.Load() != nil && err != nil:
		c.logger.Warn("the join token cannot be read; the certificate at hand is used", "node", c.self.Node, "err", err)
		return Token{}, nil
	case err != nil:
		return Token{}, fmt.Errorf("join: %w", err)
	case t.Empty() && c.held.Load() == nil:
		return Token{}, fmt.Errorf("join: %w: there is none, and this node has no certificate; make one with weft join-token and put it into join_token_file", ErrToken)
	}
	return t, nil
}

func (j *joining) ask(ctx context.Context, c *Credentials, addr string, token Token) (Joined, error) {
	ctx, cancel := context.WithTimeout(ctx, joinTimeout)
	defer cancel()
	raw, err := j.cfg.Dial(ctx, "tcp", addr)
	if err != nil {
		return Joined{}, err
	}
	defer raw.Close()
	stop := context.AfterFunc(ctx, func() { _ = raw.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	old, pinned := c.held.Load(), &pinned{token: token, now: c.now}
	if old != nil && (token.Empty() || pinOf(old.trust.root) == token.Pin) {
		pinned.known = old.trust
	} else {
		old = nil // a token for another cluster: an operator moved this node
	}
	conn := tls.Client(raw, pinned.config(old))
	if err := conn.HandshakeContext(ctx); err != nil {
		return Joined{}, err
	}
	key, err := identity.NewKey()
	if err != nil {
		return Joined{}, err
	}
	csr, err := newCSR(key)
	if err != nil {
		return Joined{}, err
	}
	req := request{CSR: csr, Node: c.self.Node, NodeID: c.self.NodeID, Datacenter: c.self.Datacenter, Version: j.cfg.Version, Token: token.Text()}
	if err := writeFrame(conn, &req, maxRequest); err != nil {
		return Joined{}, err
	}
	var rep reply
	if err := readFrame(conn, &rep, maxReply); err != nil {
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			err = fmt.Errorf("the server closed the connection without an answer: %w", err)
		}
		return Joined{}, err
	}
	if rep.Refused != nil {
		return Joined{}, rep.Refused.cleaned()
	}
	return j.take(c, key, pinned.root, &rep)
}

// take checks the answer and puts it to use.
func (j *joining) take(c *Credentials, key identityKey, t *trust, rep *reply) (Joined, error) {
	leaf, err := x509.ParseCertificate(rep.Certificate)
	if err != nil {
		return Joined{}, fmt.Errorf("the server's answer: certificate: %w", err)
	}
	p, err := t.verify([]*x509.Certificate{leaf}, c.now(), x509.ExtKeyUsageClientAuth, false)
	if err != nil {
		return Joined{}, fmt.Errorf("the server's answer: %w", err)
	}
	want := c.self
	want.ClusterID = t.clusterID
	if err := p.matches(want); err != nil {
		return Joined{}, fmt.Errorf("the server's answer: %w", err)
	}
	if err := c.hold(key, leaf, t.root); err != nil {
		return Joined{}, err
	}
	if j.cfg.Dir != "" {
		if err := writeKept(j.cfg.Dir, &kept{key: key, leaf: leaf, root: t.root}); err != nil {
			c.logger.Error("the node's new certificate could not be kept; after a restart the old one is used", "node", c.self.Node, "err", err)
		}
	}
	got := Joined{ClusterID: t.clusterID, GossipKeys: rep.GossipKeys, Servers: rep.Servers}
	j.cfg.OnJoined(got)
	return got, nil
}

// pinned verifies the server that a node joins at: by the root that the node has, or
// by the pin of its token.
type pinned struct {
	token Token
	known *trust
	now   func() time.Time
	root  *trust // found in the handshake
}

func (p *pinned) config(old *held) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: []string{ProtoJoin}, Time: p.now, SessionTicketsDisabled: true,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			if old == nil {
				return &tls.Certificate{}, nil // a newcomer shows none
			}
			return old.cert, nil
		},
		InsecureSkipVerify: true, //nolint:gosec // verified in VerifyConnection
		VerifyConnection: func(cs tls.ConnectionState) error {
			if cs.NegotiatedProtocol != ProtoJoin || cs.DidResume {
				return fmt.Errorf("the peer does not speak %s: it is no weft server", ProtoJoin)
			}
			return p.verify(cs.PeerCertificates)
		},
	}
}

func (p *pinned) verify(certs []*x509.Certificate) error {
	t := p.known
	if t == nil {
		for _, cert := range certs {
			if pinOf(cert) == p.token.Pin {
				var err error
				if t, err = newTrust(p.token.ClusterID, cert); err != nil {
					return err
				}
				break
			}
		}
		if t == nil {
			return fmt.Errorf("the server is not of cluster %s, which the join token is for: somebody else answers at this address, or the token is of another cluster", p.token.ClusterID)
		}
	}
	peer, err := t.verify(certs, p.now(), x509.ExtKeyUsageServerAuth, false)
	if err != nil {
		return err
	}
	p.root = t
	return peer.matches(Peer{Role: RoleServer})
}
