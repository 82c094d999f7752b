//go:build unix

package connect

import (
	"math"
	"syscall"
)

// descriptorLimit is how many files this process may have open, 0 when that is as
// good as endless or not known.
func descriptorLimit() int {
	var l syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &l); err != nil || uint64(l.Cur) > math.MaxInt32 { //nolint:unconvert // signed on some systems
		return 0
	}
	return int(l.Cur)
}
