package local

import (
	"errors"
	"fmt"

	"github.com/weftmesh/weft/catalog"
)

// ErrUnstated is for a host that has told no server yet what it registers.
var ErrUnstated = errors.New("no server was told yet")

// refusal is an error whose text is complete as it stands and which wraps a
// sentinel of catalog, so that the HTTP API can say it word for word.
type refusal struct {
	text string
	is   error
}

func (r *refusal) Error() string { return r.text }
func (r *refusal) Unwrap() error { return r.is }

func refuse(format string, args ...any) error {
	return &refusal{text: fmt.Sprintf(format, args...), is: catalog.ErrInvalid}
}

func unknownService(id string) error {
	return &refusal{
		text: fmt.Sprintf("Unknown service ID %q. Ensure that the service ID is passed, not the service name.", id),
		is:   catalog.ErrNotFound,
	}
}

func unknownCheck(id string) error {
	return &refusal{
		text: fmt.Sprintf("Unknown check ID %q. Ensure that the check ID is passed, not the check name.", id),
		is:   catalog.ErrNotFound,
	}
}
