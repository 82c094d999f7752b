package connect

import (
	"math/rand/v2"
)

// AccessLog says which connections get a line in the log when they end. The zero
// value: all of them. Status and metrics know of all, whatever it says.
type AccessLog struct {
	// Off writes none, not of refusals either.
	Off bool `json:",omitempty"`
	// Skip is the share, from 0 to 1, of connections that ended well and are left out.
	// What was refused and what failed is not.
	Skip float64 `json:",omitempty"`
}

// leavesOut tells whether the end of a connection gets no line, by chance or always.
func (a AccessLog) leavesOut() bool {
	return a.Off || a.Skip > 0 && rand.Float64() < a.Skip //nolint:gosec // a sample, no secret
}
