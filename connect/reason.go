package connect

import (
	"fmt"
	"strings"

	"github.com/weftmesh/weft/catalog"
)

// Reason says why a connection ended or was refused. The list is closed: it is a
// metric label and a log value.
type Reason string

// Reasons.
const (
	ReasonOK            Reason = "ok"             // both ends finished
	ReasonClientClosed  Reason = "client_closed"  // the source ended it early, or reset it
	ReasonServerClosed  Reason = "server_closed"  // the destination ended it early, or reset it
	ReasonDenied        Reason = "denied"         // an intention, or the default, forbids it
	ReasonTLSFailed     Reason = "tls_failed"     // no mutual TLS with an acceptable peer
	ReasonNoInstance    Reason = "no_instance"    // the upstream is unknown or has no instance
	ReasonDialFailed    Reason = "dial_failed"    // no instance, or not the application, took the connection
	ReasonPolicyChanged Reason = "policy_changed" // allowed once, forbidden now
	ReasonCertExpired   Reason = "cert_expired"   // this service has no valid certificate of its own
	ReasonDraining      Reason = "draining"       // cut at the end of the grace period
	ReasonIdle          Reason = "idle"           // no bytes for too long
	ReasonLimit         Reason = "limit"          // a limit on connections was reached
	ReasonViolation     Reason = "violation"      // not of a connection: the peer of a tunnel broke its protocol
)

// RefusedError tells why Accept or Dial gave no connection.
type RefusedError struct {
	Reason      Reason
	Source      catalog.Name // empty when the peer proved no identity
	Destination catalog.Name
	// Rule is the intention that decided, or "default"; empty where none was asked.
	Rule string
	// Hint is the command that would help, where there is one.
	Hint string
	Err  error
}

// Error implements error.
func (e *RefusedError) Error() string {
	src := e.Source
	if src == "" {
		src = "unknown source"
	}
	s := fmt.Sprintf("%s → %s: %s", src, e.Destination, e.Reason)
	if e.Rule != "" {
		s += fmt.Sprintf(" (rule: %s)", e.Rule)
	}
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

// Unwrap gives the cause; a denied connection wraps catalog.ErrDenied.
func (e *RefusedError) Unwrap() error {
	if e.Err == nil && e.Reason == ReasonDenied {
		return catalog.ErrDenied
	}
	return e.Err
}

// hintFor names the command that would allow source to reach destination.
func hintFor(source, destination catalog.Name, d catalog.Decision) string {
	src, dst := shellWord(source), shellWord(destination)
	if d.Rule.IsDefault() {
		return fmt.Sprintf("weft intention create %s %s", src, dst)
	}
	if d.Rule.Source == source && d.Rule.Destination == destination && d.Rule.SourcePeer == "" {
		return fmt.Sprintf("weft intention create -replace -allow %s %s", src, dst)
	}
	// A wildcard decided: an exact intention outranks it and leaves it in place.
	return fmt.Sprintf("weft intention create -allow %s %s", src, dst)
}

// shellWord writes a name so that a shell takes it as one word and does nothing
// else: whoever names a service must not get a command run by who copies a hint.
func shellWord(name catalog.Name) string {
	plain := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("-_.@", r)
	}
	if name != "" && name[0] != '-' && !strings.ContainsFunc(name, func(r rune) bool { return !plain(r) }) {
		return name
	}
	return "'" + strings.ReplaceAll(name, "'", `'\''`) + "'"
}
