//go:build !linux

package connect

// isClosedFD cannot be told here: a reset that a write meets before the read does
// may look like the end of the stream.
func isClosedFD(uintptr) bool { return false }

// hasInput cannot be told here: a connection counts as silent until it is read.
func hasInput(uintptr) bool { return false }
