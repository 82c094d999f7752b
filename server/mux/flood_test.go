package mux

import (
	"io"
	"net"
	"testing"
	"time"
)

// TestP25SilentHandshakes: strangers at many addresses fill the port with connections
// that say nothing, or begin a handshake and stop; members come in all the while, and
// of the strangers nothing stays.
func TestP25SilentHandshakes(t *testing.T) {
	const strangers, timeout = 600, 2 * time.Second
	r := start(t, func(c *Config) { c.MaxHandshakes, c.HandshakeTimeout, c.RatePerSource = 64, timeout, 1000 })
	begin := time.Now()
	for i := range strangers {
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 1, byte(1+i%48))}}
		c, err := d.DialContext(t.Context(), "tcp", r.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if i%2 == 0 {
			_, _ = io.WriteString(c, "\x16\x03\x01\x02\x00\x01\x00") // a ClientHello that ends early
		}
		if i%50 == 0 {
			member, err := r.dial("a")
			if err != nil {
				t.Fatalf("after %d strangers: %v", i+1, err)
			}
			member.Close()
		}
	}
	eventually(t, "the last stranger to go", func() bool { n, h := r.table.counts(); return n == 0 && h == 0 })
	if took := time.Since(begin); took > 15*time.Second {
		t.Errorf("it took %s", took)
	}
	eventually(t, "all of them to be counted", func() bool {
		return r.refusals("evicted")+r.refusals("timeout")+r.refusals("too_many_handshakes") == strangers
	})
}
