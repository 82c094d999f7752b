package identity

import (
	"crypto/tls"
	"errors"
	"fmt"
	"strings"
	"time"
)

// Options are what both ends need. The functions are called on each handshake, so
// that a new certificate or bundle needs no new tls.Config; they must be safe for
// concurrent use and quick.
type Options struct {
	// Certificate is this end's leaf with its key, nil while there is none.
	Certificate func() *tls.Certificate
	// Bundle is what is trusted now, nil while that is not known.
	Bundle func() *Bundle
	// Now is the clock; nil is time.Now.
	Now func() time.Time
	// MinVersion is tls.VersionTLS13 when 0, and otherwise never below
	// tls.VersionTLS12, which foreign sidecars may need.
	MinVersion uint16
	// NextProtos are the ALPN protocols, best first. Empty: none are negotiated.
	NextProtos []string
}

// ServerConfig is the accepting end: it demands a certificate of a service of its
// trust domain. Who that service may talk to is decided after the handshake.
func ServerConfig(o Options) *tls.Config {
	c := o.config()
	c.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return o.certificate() }
	// crypto/tls only makes sure that there is a certificate and that the peer has
	// its key; the rest is ours.
	c.ClientAuth = tls.RequireAnyClientCert
	c.VerifyConnection = func(cs tls.ConnectionState) error {
		if cs.DidResume {
			return verifyError(ReasonResumed, nil, nil, "sessions are not resumed", nil)
		}
		id, err := o.bundle().VerifyClient(cs.PeerCertificates, o.now())
		if err != nil {
			return err
		}
		return o.checkSNI(cs, id)
	}
	return c
}

// ClientConfig is the dialling end: it accepts exactly the service that it wants.
func ClientConfig(o Options, want ServiceID) *tls.Config {
	c := o.config()
	c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return o.certificate() }
	c.ServerName = want.SNI()
	// The name in the certificate is a URI, which crypto/tls cannot check;
	// VerifyConnection does all of it.
	c.InsecureSkipVerify = true //nolint:gosec // verified in VerifyConnection
	c.VerifyConnection = func(cs tls.ConnectionState) error {
		if cs.DidResume {
			return verifyError(ReasonResumed, nil, nil, "sessions are not resumed", nil)
		}
		if err := want.Validate(); err != nil {
			return verifyError(ReasonWrongService, nil, nil, "no service can be expected", err)
		}
		id, err := o.bundle().VerifyServer(cs.PeerCertificates, o.now())
		if err != nil {
			return err
		}
		if id != want {
			return verifyError(ReasonWrongService, cs.PeerCertificates[0], id, "want "+want.String(), nil)
		}
		return nil
	}
	return c
}

// PeerID is the service at the other end of a connection whose handshake is done,
// under a config of this package.
func PeerID(cs tls.ConnectionState) (ServiceID, error) {
	if !cs.HandshakeComplete || len(cs.PeerCertificates) == 0 {
		return ServiceID{}, errors.New("peer identity: the handshake is not done")
	}
	id, err := IDOf(cs.PeerCertificates[0])
	if err != nil {
		return ServiceID{}, fmt.Errorf("peer identity: %w", err)
	}
	svc, ok := id.(ServiceID)
	if !ok {
		return ServiceID{}, fmt.Errorf("peer identity: %s does not name a service", id)
	}
	return svc, nil
}

func (o Options) config() *tls.Config {
	version := o.MinVersion
	if version == 0 {
		version = tls.VersionTLS13
	}
	return &tls.Config{
		MinVersion: max(version, tls.VersionTLS12),
		NextProtos: o.NextProtos,
		Time:       o.now,
		// A resumed session would skip the checks of the certificate against the
		// roots of now. CurvePreferences stay unset: Go's order begins with the
		// post-quantum hybrid.
		SessionTicketsDisabled: true,
	}
}

func (o Options) now() time.Time {
	if o.Now == nil {
		return time.Now()
	}
	return o.Now()
}

func (o Options) bundle() *Bundle {
	if o.Bundle == nil {
		return nil
	}
	return o.Bundle()
}

func (o Options) certificate() (*tls.Certificate, error) {
	if o.Certificate != nil {
		if c := o.Certificate(); c != nil {
			return c, nil
		}
	}
	return nil, errNoOwnCert
}

// checkSNI refuses a client that asks, in the mesh's own form, for another service
// than this one: it was led astray. Server names of any other form, or none, say
// nothing and pass. A subset may stand before the name.
func (o Options) checkSNI(cs tls.ConnectionState, peer ServiceID) error {
	asked := strings.ToLower(cs.ServerName)
	if !strings.HasSuffix(asked, sniSuffix(peer.TrustDomain)) {
		return nil
	}
	cert, err := o.certificate()
	if err != nil {
		return err
	}
	if cert.Leaf == nil {
		return nil
	}
	self, err := IDOf(cert.Leaf)
	if err != nil {
		return nil //nolint:nilerr // our own odd certificate is for the client to judge
	}
	svc, ok := self.(ServiceID)
	if !ok || svc.SNI() == "" || asked == svc.SNI() || strings.HasSuffix(asked, "."+svc.SNI()) {
		return nil
	}
	return verifyError(ReasonWrongService, cs.PeerCertificates[0], peer, "it asks for "+quote(cs.ServerName)+", this is "+svc.String(), nil)
}
