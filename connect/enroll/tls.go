package enroll

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/weftmesh/weft/connect/identity"
)

// Application protocols of the servers' one port.
const (
	ProtoRPC  = "h2"
	ProtoRaft = "weft-raft/1"
	ProtoJoin = "weft-join/1"
)

// maxPeerChain bounds the bytes of the certificates that a peer shows. One of ours
// and the root are 1.2 kB.
const maxPeerChain = 16 << 10

// ErrNoCertificate means that this node has no certificate yet.
var ErrNoCertificate = errors.New("this node has not joined a cluster yet: it has no certificate")

// trust is a cluster's root, ready to verify with.
type trust struct {
	clusterID string
	root      *x509.Certificate
	bundle    *identity.Bundle
}

func newTrust(clusterID string, root *x509.Certificate) (*trust, error) {
	b, err := identity.NewBundle(trustDomain(clusterID), []string{string(identity.EncodeCert(root.Raw))})
	if err != nil {
		return nil, fmt.Errorf("root of cluster %s: %w", clip(clusterID), err)
	}
	return &trust{clusterID: clusterID, root: root, bundle: b}, nil
}

// verify checks the certificates of a node. With anytime, one that is past its end, or
// that begins later, will do.
func (t *trust) verify(certs []*x509.Certificate, now time.Time, usage x509.ExtKeyUsage, anytime bool) (Peer, error) {
	size := 0
	for _, c := range certs {
		size += len(c.Raw)
	}
	if size > maxPeerChain {
		return Peer{}, fmt.Errorf("the peer shows %d bytes of certificates, at most %d are allowed", size, maxPeerChain)
	}
	if len(certs) > 0 {
		now = lenient(certs[0], now, anytime)
	}
	if _, err := t.bundle.Verify(certs, now, usage); err != nil {
		if len(certs) > 0 {
			if p, odd := peerIn(certs[0]); odd == nil && p.ClusterID != t.clusterID {
				return Peer{}, fmt.Errorf("%s says that it is of cluster %s, this node is of cluster %s: they began with different cluster secrets: %w", p, clip(p.ClusterID), t.clusterID, err)
			}
		}
		return Peer{}, err
	}
	return peerIn(certs[0])
}

// lenient moves the time of verification into the life of the certificate when the
// clocks of two nodes may explain the difference.
func lenient(c *x509.Certificate, now time.Time, anytime bool) time.Time {
	switch {
	case now.Before(c.NotBefore) && (anytime || !now.Add(skew).Before(c.NotBefore)):
		return c.NotBefore
	case now.After(c.NotAfter) && (anytime || !now.Add(-skew).After(c.NotAfter)):
		return c.NotAfter
	}
	return now
}

// Server is the config of an accepting end that serves the protocols, best first. All
// but ProtoJoin demand a valid certificate of a node of this cluster, ProtoRaft that
// of a server. For ProtoJoin a certificate may be missing, expired, or made while
// clocks were ahead; one that is shown must be of this cluster.
func (c *Credentials) Server(protos ...string) *tls.Config {
	by := make(map[string]*tls.Config, len(protos))
	for _, p := range protos {
		by[p] = c.serverConfig(p)
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: protos, Time: c.now, SessionTicketsDisabled: true,
		// The protocol is chosen here, before any asymmetric cryptography, as the
		// demands on the client hang on it.
		GetConfigForClient: func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
			for _, p := range protos {
				if slices.Contains(hello.SupportedProtos, p) {
					return by[p], nil
				}
			}
			return nil, fmt.Errorf("the peer asks for %.100q, this port speaks %q", hello.SupportedProtos, protos)
		},
	}
}

func (c *Credentials) serverConfig(proto string) *tls.Config {
	join := proto == ProtoJoin
	auth := tls.RequireAnyClientCert // verified below
	if join {
		auth = tls.RequestClientCert
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: []string{proto}, Time: c.now, SessionTicketsDisabled: true,
		ClientAuth: auth,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			h := c.held.Load()
			if h == nil {
				return nil, ErrNoCertificate
			}
			if join {
				return h.joined, nil
			}
			return h.cert, nil
		},
		VerifyConnection: func(cs tls.ConnectionState) error {
			if cs.NegotiatedProtocol != proto || cs.DidResume {
				return fmt.Errorf("protocol %q was negotiated where %q was chosen", clip(cs.NegotiatedProtocol), proto)
			}
			if join && len(cs.PeerCertificates) == 0 {
				return nil
			}
			h := c.held.Load()
			if h == nil {
				return ErrNoCertificate
			}
			p, err := h.trust.verify(cs.PeerCertificates, c.now(), x509.ExtKeyUsageClientAuth, join)
			if err != nil {
				return err
			}
			if proto == ProtoRaft {
				return p.matches(Peer{Role: RoleServer})
			}
			return nil
		},
	}
}

// Client is the config of a dialling end. The peer must be as want says, where empty
// fields do not matter but Role, which is RoleServer when empty.
func (c *Credentials) Client(proto string, want Peer) *tls.Config {
	if want.Role == "" {
		want.Role = RoleServer
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: []string{proto}, Time: c.now, SessionTicketsDisabled: true,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			if h := c.held.Load(); h != nil {
				return h.cert, nil
			}
			return nil, ErrNoCertificate
		},
		InsecureSkipVerify: true, //nolint:gosec // verified in VerifyConnection
		VerifyConnection: func(cs tls.ConnectionState) error {
			h := c.held.Load()
			if h == nil {
				return ErrNoCertificate
			}
			if cs.NegotiatedProtocol != proto || cs.DidResume {
				return fmt.Errorf("the peer does not speak %s", proto)
			}
			p, err := h.trust.verify(cs.PeerCertificates, c.now(), x509.ExtKeyUsageServerAuth, false)
			if err != nil {
				return err
			}
			return p.matches(want)
		},
	}
}
