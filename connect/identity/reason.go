package identity

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"time"
)

// Reason says, in one word from a closed set, why a handshake was refused.
type Reason string

// Reasons. The first group is ours, about the peer's certificate; the second reads
// what crypto/tls and the network say.
const (
	ReasonNoCertificate    Reason = "no_certificate"    // the peer showed none
	ReasonNoBundle         Reason = "no_bundle"         // this end has no roots yet
	ReasonNotALeaf         Reason = "not_a_leaf"        // the peer shows an authority's certificate
	ReasonBadIdentity      Reason = "bad_identity"      // no URI, several, or one that is no service's ID
	ReasonTrustDomain      Reason = "trust_domain"      // the ID is of another trust domain
	ReasonExpired          Reason = "expired"           // past its end
	ReasonNotYetValid      Reason = "not_yet_valid"     // before its start: look at the clocks
	ReasonUsage            Reason = "usage"             // not for this end of a connection
	ReasonConstraint       Reason = "constraint"        // its issuer may not issue for this name
	ReasonUnknownAuthority Reason = "unknown_authority" // no trusted root has signed it
	ReasonWrongService     Reason = "wrong_service"     // valid, for another service
	ReasonRevoked          Reason = "revoked"           // an operator withdrew trust in it
	ReasonResumed          Reason = "resumed"           // a resumed session, which we never offer
	ReasonTooLarge         Reason = "too_large"         // more bytes than a handshake has

	ReasonNotTLS    Reason = "not_tls"     // the peer does not speak TLS
	ReasonProtocol  Reason = "protocol"    // no common TLS version or application protocol
	ReasonByPeer    Reason = "by_peer"     // the peer refused us
	ReasonTimeout   Reason = "timeout"     // the handshake took too long
	ReasonClosed    Reason = "closed"      // the peer went away
	ReasonNoOwnCert Reason = "no_own_cert" // this end has no certificate yet
	ReasonOther     Reason = "other"
)

// VerifyError is why a peer was not accepted.
type VerifyError struct {
	Reason Reason
	// Peer is the ID that the peer's certificate shows, "" if none can be read. It
	// is a claim: nothing was proven.
	Peer string
	// NotAfter is the end of the peer's certificate, zero if there is none.
	NotAfter time.Time
	// Detail is a sentence for people.
	Detail string
	Err    error // the cause, may be nil
}

// Error names the reason, the peer and what to look at.
func (e *VerifyError) Error() string {
	var b strings.Builder
	b.WriteString("peer refused (" + string(e.Reason) + ")")
	if e.Peer != "" {
		b.WriteString(": " + e.Peer)
	}
	if e.Detail != "" {
		b.WriteString(": " + e.Detail)
	}
	if e.Err != nil {
		b.WriteString(": " + e.Err.Error())
	}
	return b.String()
}

// Unwrap gives the cause.
func (e *VerifyError) Unwrap() error { return e.Err }

// errNoOwnCert is what this end says when it has no certificate to show.
var errNoOwnCert = errors.New("this end has no certificate yet")

// ReasonOf classifies what a TLS handshake returned. It is "" for nil.
func ReasonOf(err error) Reason {
	var verify *VerifyError
	var record tls.RecordHeaderError
	var op *net.OpError
	switch {
	case err == nil:
		return ""
	case errors.As(err, &verify):
		return verify.Reason
	case errors.Is(err, errNoOwnCert):
		return ReasonNoOwnCert
	case errors.As(err, &record):
		return ReasonNotTLS
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded):
		return ReasonTimeout
	case errors.As(err, &op) && op.Op == "remote error":
		return ReasonByPeer
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, net.ErrClosed),
		op != nil && !op.Timeout():
		return ReasonClosed
	}
	// crypto/tls has no values for these; a test holds the texts.
	switch msg := err.Error(); {
	case strings.Contains(msg, "didn't provide a certificate"):
		return ReasonNoCertificate
	case strings.Contains(msg, "unsupported versions"), strings.Contains(msg, "protocol version"),
		strings.Contains(msg, "unsupported application protocols"):
		return ReasonProtocol
	}
	return ReasonOther
}
