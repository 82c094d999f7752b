//go:build !unix

package httpapi

import "syscall"

// canPark is false where a connection cannot be looked at without reading from it:
// there, each blocked query waits in its own handler.
const canPark = false

func readable(syscall.RawConn) bool { return false }

func writeSome(syscall.RawConn, []byte) (int, error) { return 0, nil }
