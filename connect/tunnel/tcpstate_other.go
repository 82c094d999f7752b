//go:build !linux

package tunnel

import "time"

func closedFD(uintptr) bool { return false }

func shortestRTT(uintptr) time.Duration { return 0 }
