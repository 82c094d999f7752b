//go:build !linux

package guard

import "errors"

var errNotHere = errors.New("connections are redirected on Linux only")

// Apply is for Linux.
func Apply(r Rules) error {
	if err := r.validate(); err != nil {
		return err
	}
	return errNotHere
}

// Remove is for Linux.
func Remove(string) error { return errNotHere }
