package catalog

import (
	"errors"
	"fmt"
)

// Sentinels that every layer wraps with the noun they speak of ("intention web →
// db: not found"). They survive RPC and become HTTP statuses.
var (
	// ErrNotFound means the named thing does not exist.
	ErrNotFound = errors.New("not found")
	// ErrInvalid means the input can never be accepted as it is.
	ErrInvalid = errors.New("invalid")
	// ErrConflict means the thing exists already, or a check-and-set lost.
	ErrConflict = errors.New("conflict")
	// ErrNoLeader means no server could act as leader for the request.
	ErrNoLeader = errors.New("no cluster leader")
	// ErrDenied means the caller may not do this.
	ErrDenied = errors.New("permission denied")
	// ErrStale means the answer would be older than the caller allows.
	ErrStale = errors.New("stale")
	// ErrUnavailable means the servers could not be reached or did not answer in time.
	ErrUnavailable = errors.New("servers unavailable")
	// ErrTryElsewhere means that a server took no more requests of the kind, at its
	// limits.request_limits, and that another server could.
	ErrTryElsewhere = errors.New("rate limit exceeded, try again later or against a different server")
	// ErrTryLater is the same where only the leader, which refused, could do it.
	ErrTryLater = errors.New("rate limit exceeded for operation that can only be performed by the leader, try again later")
	// ErrRPCRate means that this agent asks its servers no more, at its limits.rpc_rate.
	ErrRPCRate = errors.New("RPC rate limit exceeded")
	// ErrTooLarge means the input is over a documented limit.
	ErrTooLarge = errors.New("too large")
)

// Invalidf makes an error that reads as the sentence given and wraps ErrInvalid.
// Its format may wrap a cause with %w.
func Invalidf(format string, args ...any) error {
	return &kindError{kind: ErrInvalid, sentence: fmt.Errorf(format, args...)}
}

// NotFoundf is Invalidf for ErrNotFound.
func NotFoundf(format string, args ...any) error {
	return &kindError{kind: ErrNotFound, sentence: fmt.Errorf(format, args...)}
}

// Conflictf is Invalidf for ErrConflict.
func Conflictf(format string, args ...any) error {
	return &kindError{kind: ErrConflict, sentence: fmt.Errorf(format, args...)}
}

// kindError has a sentinel without saying its word, so that a message can be a
// sentence of its own.
type kindError struct {
	kind     error
	sentence error
}

func (e *kindError) Error() string   { return e.sentence.Error() }
func (e *kindError) Unwrap() []error { return []error{e.kind, e.sentence} }
