//go:build !unix

package tunnel

import "errors"

const canProbe = false

func readFD(uintptr, []byte) (n int, again bool, err error) {
	return 0, false, errors.ErrUnsupported
}
