package enroll

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Admission is what a Registrar is asked about: who has proved, by a good token or a
// certificate, that it may come in unless the replicated state says otherwise.
type Admission struct {
	TokenID    string // "" for a renewal
	Node       string
	NodeID     string
	Datacenter string
	Version    string
	Remote     net.Addr
	// Renewal is what the node's certificate says of it, nil for a token.
	Renewal *Peer
}

// Grant is what an admitted node is told.
type Grant struct {
	GossipKeys [][]byte // of now, the primary first
	Servers    []string // host:port of the servers' one port
}

// Registrar knows the replicated state: revoked tokens and nodes, who is alive under
// which name, the keys and servers of now.
type Registrar interface {
	// Admit grants, or gives an error of Refuse; every other error is logged and the
	// node is told to ask again.
	Admit(ctx context.Context, a Admission) (Grant, error)
}

// GateConfig is what NewGate needs.
type GateConfig struct {
	Secret     Secret
	Datacenter string
	Registrar  Registrar
	Now        func() time.Time      // time.Now when nil
	Logger     *slog.Logger          // nil discards
	Registerer prometheus.Registerer // nil registers nowhere
}

const (
	requestTimeout = 5 * time.Second
	// maxLapsed is how long after its end a certificate still gets its node back in. It
	// bounds the use of what is found on an old disk.
	maxLapsed = 400 * 24 * time.Hour
)

// Gate is the servers' half of weft-join/1.
type Gate struct {
	cfg  GateConfig
	root *authority
	// limits are those of strangers, members those of who shows a certificate of this
	// cluster: nobody without one keeps a node from its renewal.
	limits, members *limits
	answered        *prometheus.CounterVec // by result
}

// NewGate makes the gate of one server.
func NewGate(cfg GateConfig) (*Gate, error) {
	if cfg.Registrar == nil {
		return nil, errors.New("gate: there is no registrar")
	}
	root, err := cfg.Secret.root()
	if err != nil {
		return nil, err
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	g := &Gate{cfg: cfg, root: root, limits: newLimits(), members: newLimits(), answered: prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "weft_server_joins_total", Help: "Requests of nodes to join or to renew their certificate, by result.",
	}, []string{"result"})}
	for _, r := range results {
		g.answered.WithLabelValues(r)
	}
	if cfg.Registerer != nil {
		if err := cfg.Registerer.Register(g.answered); err != nil {
			return nil, fmt.Errorf("gate: %w", err)
		}
	}
	return g, nil
}

// Serve answers the connections of a listener, of *tls.Conn whose handshake under a
// config of Credentials.Server is done, until ctx ends. It closes the listener.
func (g *Gate) Serve(ctx context.Context, ln net.Listener) error {
	stop := context.AfterFunc(ctx, func() { _ = ln.Close() })
	defer stop()
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		conn, err := ln.Accept()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("gate: %w", err)
		}
		tc, ok := conn.(*tls.Conn)
		if !ok {
			_ = conn.Close()
			return fmt.Errorf("gate: a %T is no TLS connection", conn)
		}
		leave, ok := g.limitsOf(tc).enter(tc.RemoteAddr())
		if !ok {
			g.answered.WithLabelValues(string(ReasonLimited)).Inc()
			_ = tc.NetConn().Close() // the node sees no answer, and asks again
			continue
		}
		wg.Go(func() {
			defer leave()
			g.answer(ctx, tc)
		})
	}
}

// limitsOf are the limits that count for a connection. What certificate it shows was
// verified with the handshake.
func (g *Gate) limitsOf(conn *tls.Conn) *limits {
	if len(conn.ConnectionState().PeerCertificates) > 0 {
		return g.members
	}
	return g.limits
}

// answer serves one connection.
func (g *Gate) answer(ctx context.Context, conn *tls.Conn) {
	defer conn.Close()
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	log := g.cfg.Logger.With("peer", conn.RemoteAddr().String())
	var req request
	if err := readFrame(conn, &req, maxRequest); err != nil {
		g.answered.WithLabelValues(string(ReasonBadRequest)).Inc()
		log.Debug("a node that asked to join sent no request", "err", err)
		return
	}
	rep, err := g.admit(ctx, conn, &req)
	if err != nil {
		rep = &reply{Refused: refusalOf(err)}
		g.answered.WithLabelValues(resultOf(rep.Refused.Reason)).Inc()
		log.Warn("a node was not admitted", "node", clip(req.Node), "reason", string(rep.Refused.Reason), "err", err)
	} else {
		g.answered.WithLabelValues(resultOK).Inc()
		log.Info("a node was admitted", "node", req.Node, "id", req.NodeID)
	}
	if err := writeFrame(conn, rep, maxReply); err != nil {
		log.Warn("the answer to a node that joins was not sent", "node", clip(req.Node), "err", err)
		return
	}
	_ = conn.CloseWrite()
	_, _ = io.Copy(io.Discard, io.LimitReader(conn, 1)) // the node closes when it has read
}

const (
	resultOK    = "ok"
	resultOther = "other"
)

// results are the values of the metric's label.
var results = []string{
	resultOK, resultOther, string(ReasonBadRequest), string(ReasonBadToken), string(ReasonTokenExpired), string(ReasonTokenRevoked),
	string(ReasonNodeRevoked), string(ReasonNeedToken), string(ReasonDatacenter), string(ReasonNameTaken), string(ReasonNodeIDInUse),
	string(ReasonLimited), string(ReasonUnavailable),
}

func resultOf(r Reason) string {
	if slices.Contains(results, string(r)) {
		return string(r)
	}
	return resultOther
}

func refusalOf(err error) *Refusal {
	var r *Refusal
	if errors.As(err, &r) {
		return r.cleaned()
	}
	return &Refusal{Reason: ReasonUnavailable, Message: refusedForNoneToSee}
}

// cleaned bounds and cleans the text, which may be a stranger's.
func (r *Refusal) cleaned() *Refusal {
	text := []rune(r.Message)
	if len(text) > maxRefusalText {
		text = text[:maxRefusalText]
	}
	for i, c := range text {
		if c < ' ' || c == 0x7f {
			text[i] = ' '
		}
	}
	return &Refusal{Reason: Reason(clip(string(r.Reason))), Message: string(text)}
}

func (g *Gate) admit(ctx context.Context, conn *tls.Conn, req *request) (*reply, error) {
	a := Admission{Node: req.Node, NodeID: req.NodeID, Datacenter: req.Datacenter, Version: req.Version, Remote: conn.RemoteAddr()}
	if !g.limitsOf(conn).allow(a.Remote) {
		return nil, Refuse(ReasonLimited, "too many nodes ask to join at once; ask again")
	}
	if cs := conn.ConnectionState(); len(cs.PeerCertificates) > 0 {
		if p, err := PeerOf(cs); err == nil && p.Role == RoleServer {
			if now := g.cfg.Now(); now.After(cs.PeerCertificates[0].NotAfter.Add(skew)) {
				// It has the secret, or had it once: then it could have made another.
				return nil, Refuse(ReasonBadRequest, "the certificate of %s has expired; the clock here says %s", p, stamp(now))
			}
			return g.inform(ctx, p, a)
		}
	}
	self := Peer{Role: RoleAgent, Node: req.Node, NodeID: req.NodeID, Datacenter: req.Datacenter, ClusterID: g.root.clusterID}
	if _, err := self.id(); err != nil {
		return nil, Refuse(ReasonBadRequest, "%v", err)
	}
	if _, err := parseUUID(req.NodeID); err != nil { // by another it could not be revoked
		return nil, Refuse(ReasonBadRequest, "node ID: %v; set node_id in its configuration, or remove the file node-id from its data directory", err)
	}
	if req.Datacenter != g.cfg.Datacenter {
		return nil, Refuse(ReasonDatacenter, "this is datacenter %q, the node says that it is of %q; set datacenter in its configuration", g.cfg.Datacenter, req.Datacenter)
	}
	if err := g.prove(conn, req, &a); err != nil {
		return nil, err
	}
	key, err := keyOf(req.CSR) // a signature to verify: not for strangers to ask for
	if err != nil {
		return nil, Refuse(ReasonBadRequest, "certificate request: %v", err)
	}
	grant, err := g.cfg.Registrar.Admit(ctx, a)
	if err != nil {
		return nil, err
	}
	leaf, err := g.root.issue(self, key, g.cfg.Now())
	if err != nil {
		return nil, err
	}
	return &reply{Certificate: leaf.Raw, Root: g.root.cert.Raw, ClusterID: g.root.clusterID, GossipKeys: grant.GossipKeys, Servers: grant.Servers}, nil
}

// prove finds the node's right to come in: its certificate, or else its token.
func (g *Gate) prove(conn *tls.Conn, req *request, a *Admission) error {
	cs := conn.ConnectionState()
	p, err := PeerOf(cs)
	switch {
	case err == nil:
		if p.Role != RoleAgent || p.NodeID != req.NodeID {
			return Refuse(ReasonBadRequest, "the certificate is that of %s, the request is for node ID %s", p, clip(req.NodeID))
		}
		lapsed := g.cfg.Now().Sub(cs.PeerCertificates[0].NotAfter)
		switch here := p.Datacenter == g.cfg.Datacenter; {
		case here && lapsed <= maxLapsed:
			a.Renewal = &p
			return nil
		case req.Token != "":
		case !here: // what is revoked there is not known here
			return Refuse(ReasonDatacenter, "this is datacenter %q, the certificate is of %q; to move the node make a token here with weft join-token", g.cfg.Datacenter, p.Datacenter)
		default:
			return Refuse(ReasonNeedToken, "the certificate ended %d days ago, more than the %d that a node may be away; make a token with weft join-token",
				lapsed/(24*time.Hour), maxLapsed/(24*time.Hour))
		}
	case !errors.Is(err, ErrNoPeer):
		return Refuse(ReasonBadRequest, "%v", err)
	case req.Token == "":
		return Refuse(ReasonNeedToken, "the node shows neither a token nor a certificate; make a token with weft join-token")
	}
	t, err := ParseToken(req.Token)
	if err != nil {
		return Refuse(ReasonBadToken, "%v", err)
	}
	if err := g.cfg.Secret.Check(t, g.cfg.Now()); err != nil {
		reason := ReasonBadToken
		if errors.Is(err, ErrTokenExpired) {
			reason = ReasonTokenExpired
		}
		return Refuse(reason, "%v", err)
	}
	a.TokenID = t.ID
	return nil
}

// keyOf takes the public key, and nothing else, from a request that its holder signed.
func keyOf(csr []byte) (*ecdsa.PublicKey, error) {
	req, err := x509.ParseCertificateRequest(csr)
	if err != nil {
		return nil, err
	}
	key, ok := req.PublicKey.(*ecdsa.PublicKey)
	if !ok || key.Curve != elliptic.P256() {
		return nil, errors.New("its key is not ECDSA on P-256")
	}
	return key, req.CheckSignature()
}
