package tunnel

import (
	"errors"
	"fmt"
)

// Code says why a stream was reset. It travels on the wire; values are never reused.
type Code uint32

// Codes.
const (
	// CodeCancelled: the application at the other end went away.
	CodeCancelled Code = 1
	// CodeRefused: policy forbids the stream.
	CodeRefused Code = 2
	// CodeRevoked: policy allowed the stream once and forbids it now.
	CodeRevoked Code = 3
	// CodeDialFailed: the application behind the other end took no connection.
	CodeDialFailed Code = 4
	// CodeLimit: a limit of the other end was reached.
	CodeLimit Code = 5
	// CodeDraining: cut at the end of a grace period.
	CodeDraining Code = 6
	// CodeIdle: no bytes for too long.
	CodeIdle Code = 7
	// CodeInternal: a failure of the other end itself.
	CodeInternal Code = 8
	// CodeUnauthenticated: the certificate behind the tunnel is no longer accepted.
	CodeUnauthenticated Code = 9
)

// Its highest bit is not part of a code; see unseenBit.

var codeNames = [...]string{
	CodeCancelled: "cancelled", CodeRefused: "refused", CodeRevoked: "revoked", CodeDialFailed: "dial_failed",
	CodeLimit: "limit", CodeDraining: "draining", CodeIdle: "idle", CodeInternal: "internal",
	CodeUnauthenticated: "unauthenticated",
}

// String is the name of the code; codes of later versions have a number.
func (c Code) String() string {
	if int(c) < len(codeNames) && codeNames[c] != "" {
		return codeNames[c]
	}
	return fmt.Sprintf("code_%d", uint32(c))
}

// Errors that say why there is no stream, or no longer one.
var (
	// ErrFull: the tunnel carries as many streams as the peer allows. Use another tunnel.
	ErrFull = errors.New("the tunnel carries as many streams as its peer allows")
	// ErrDraining: the tunnel takes no new streams. Use another tunnel.
	ErrDraining = errors.New("the tunnel is draining")
	// ErrUnprocessed: the peer drained before it saw the stream; it is safe to open it elsewhere.
	ErrUnprocessed = errors.New("the peer drained before it saw the stream")
	// ErrLost: the tunnel under the stream is gone.
	ErrLost = errors.New("the tunnel was lost")
	// errMemory: see Config.Memory.
	errMemory = errors.New("too much waits for applications that do not read")
	// ErrMeta: the metadata of a stream is longer than MaxMeta.
	ErrMeta = fmt.Errorf("stream metadata is longer than %d bytes", MaxMeta)
)

// ResetError says that a stream was reset, by whom and why.
type ResetError struct {
	Code   Code
	Remote bool // by the peer
	// Unseen: the peer says that its application saw nothing of the stream.
	Unseen bool
}

// Error implements error.
func (e *ResetError) Error() string {
	if e.Remote {
		return "stream reset by the peer: " + e.Code.String()
	}
	return "stream reset: " + e.Code.String()
}
