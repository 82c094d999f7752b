//go:build !unix

package handover

import (
	"errors"
	"net"
	"os"
)

func duplicate(int) (int, error) { return -1, errors.ErrUnsupported }

func closeOnExec(int) {}

func rights(int) []byte { return nil }

func pair() (net.Conn, *os.File, error) { return nil, nil, errors.ErrUnsupported }

var errHeld = errors.New("another process has the lock")

func lock(*os.File) error { return errors.ErrUnsupported }
