package wire

import (
	"context"
	"errors"
	"strconv"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/weftmesh/weft/catalog"
)

// table maps each sentinel to the code that carries it, the more telling first: an
// error that wraps several travels as the first of them. Each has a code of its own,
// but for the two that say that a rate is exceeded. Codes
// with grpcToo come from gRPC itself as well (a lost connection, a message over
// the limit), with a text that does not speak of our sentinels.
var table = []struct {
	sentinel error
	code     codes.Code
	grpcToo  bool
}{
	{catalog.ErrDenied, codes.PermissionDenied, false},
	{catalog.ErrTooLarge, codes.ResourceExhausted, true},
	{catalog.ErrInvalid, codes.InvalidArgument, false},
	{catalog.ErrNotFound, codes.NotFound, false},
	{catalog.ErrConflict, codes.AlreadyExists, false},
	{catalog.ErrStale, codes.OutOfRange, false},
	{catalog.ErrTryElsewhere, codes.Aborted, false},
	{catalog.ErrTryLater, codes.Aborted, false}, // told apart by its text
	{catalog.ErrNoLeader, codes.FailedPrecondition, false},
	{catalog.ErrUnavailable, codes.Unavailable, true},
	{context.DeadlineExceeded, codes.DeadlineExceeded, true},
	{context.Canceled, codes.Canceled, true},
}

// ToStatus gives err the gRPC code of the sentinel that it wraps, keeping its
// text. An error that has a status already is left as it is; nil stays nil.
func ToStatus(err error) error {
	if err == nil {
		return nil
	}
	if _, ok := status.FromError(err); ok {
		return err
	}
	for _, row := range table {
		if errors.Is(err, row.sentinel) {
			return status.Error(row.code, strings.ToValidUTF8(err.Error(), "\uFFFD"))
		}
	}
	return status.Error(codes.Internal, strings.ToValidUTF8(err.Error(), "\uFFFD"))
}

// FromStatus is the other direction: an error with the server's text alone, for
// which errors.Is finds the sentinel that the server wrapped.
func FromStatus(err error) error {
	if err == nil {
		return nil
	}
	s, ok := status.FromError(err)
	if !ok {
		return err
	}
	text := plain(s.Message())
	for _, row := range table {
		if s.Code() != row.code || row.sentinel == catalog.ErrTryElsewhere && strings.Contains(text, catalog.ErrTryLater.Error()) { //nolint:errorlint // the very value
			continue
		}
		if row.grpcToo && !strings.Contains(text, row.sentinel.Error()) {
			text = row.sentinel.Error() + ": " + text
		}
		return &remoteError{text: text, sentinel: row.sentinel}
	}
	if text == "" {
		text = s.Code().String()
	}
	return &remoteError{text: text}
}

// plain takes off what gRPC wraps around the cause of a lost connection.
func plain(text string) string {
	if quoted, ok := strings.CutPrefix(text, "connection error: desc = "); ok {
		if cause, err := strconv.Unquote(quoted); err == nil {
			text = cause
		}
	}
	return strings.TrimPrefix(strings.TrimPrefix(text, "transport: "), "Error while dialing: ")
}

// remoteError is an error that another process met.
type remoteError struct {
	text     string
	sentinel error
}

func (e *remoteError) Error() string { return e.text }
func (e *remoteError) Unwrap() error { return e.sentinel }
