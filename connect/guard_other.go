//go:build !unix

package connect

// descriptorLimit is not known here.
func descriptorLimit() int { return 0 }
