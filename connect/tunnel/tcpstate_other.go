//go:build !linux

package tunnel

func closedFD(uintptr) bool { return false }
