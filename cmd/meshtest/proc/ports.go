package proc

import (
	"net"
	"os"
	"strconv"
	"sync"
	"testing"
)

// The ports that tests choose for processes are below the ephemeral ones, which anybody
// gets for a connection or a listener, and come in blocks. A block belongs to the one who
// listens on its first port: test processes beside each other do not meet.
const blocks, blockSize, lowestPort = 256, 40, 22000

var ports struct {
	mu   sync.Mutex
	next int            // the block to try next
	free []int          // of the blocks that this process keeps, the least used first
	kept []net.Listener // on the first ports of those; a listener that is forgotten is closed
}

// takeBlock gives the first port of a block, with the one who listens there.
func takeBlock(t testing.TB) (first int, owner net.Listener) {
	t.Helper()
	for range blocks {
		first = lowestPort + (os.Getpid()*7+ports.next)%blocks*blockSize
		ports.next++
		if ln, err := net.Listen("tcp", loopback(first)); err == nil {
			return first, ln
		}
	}
	t.Fatalf("all blocks of ports from %d on are taken", lowestPort)
	return 0, nil
}

func loopback(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }

// FreePorts returns ports, for TCP and UDP, that nobody else uses until the test ends.
func FreePorts(t testing.TB, n int) []int {
	t.Helper()
	ports.mu.Lock()
	defer ports.mu.Unlock()
	var got []int
	for len(got) < n {
		if len(ports.free) == 0 {
			first, ln := takeBlock(t)
			ports.kept = append(ports.kept, ln)
			for p := first + 1; p < first+blockSize; p++ {
				ports.free = append(ports.free, p)
			}
		}
		p := ports.free[0]
		ports.free = ports.free[1:]
		if unused(p) { // else a program that no test started has it, and it is left alone
			got = append(got, p)
		}
	}
	t.Cleanup(func() {
		ports.mu.Lock()
		defer ports.mu.Unlock()
		ports.free = append(ports.free, got...)
	})
	return got
}

func unused(port int) bool {
	ln, err := net.Listen("tcp", loopback(port))
	if err != nil {
		return false
	}
	defer ln.Close()
	pc, err := net.ListenPacket("udp", loopback(port))
	if err != nil {
		return false
	}
	return pc.Close() == nil
}

// SidecarPorts returns a range for the sidecars of one agent that nobody else uses until
// the test ends.
func SidecarPorts(t testing.TB) (low, high int) {
	t.Helper()
	ports.mu.Lock()
	defer ports.mu.Unlock()
	first, ln := takeBlock(t)
	t.Cleanup(func() { _ = ln.Close() }) // nobody ever connects
	return first + 1, first + blockSize - 1
}
