package proc

import (
	"net"
	"slices"
	"testing"
)

// TestPortsAreOnesOwn: no port is given twice, and where another process has a block,
// none of it is given.
func TestPortsAreOnesOwn(t *testing.T) {
	low, high := SidecarPorts(t)
	other, _ := SidecarPorts(t)
	got := FreePorts(t, 2*blockSize)
	for p := low; p <= high; p++ {
		got = append(got, p)
	}
	slices.Sort(got)
	if all := len(got); len(slices.Compact(got)) != all {
		t.Errorf("given twice: %v", got)
	}
	for _, p := range got {
		if p < lowestPort || p >= lowestPort+blocks*blockSize || p >= other && p < other+blockSize {
			t.Errorf("%d is of another block", p)
		}
	}
	if ln, err := net.Listen("tcp", loopback(low-1)); err == nil {
		ln.Close()
		t.Error("a block is not held")
	}
}
