//go:build !linux

package tunnel

// New gives the best Driver of the platform.
func New(cfg Config) (Driver, error) { return NewGoroutines(cfg) }
