package demo

import (
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
)

// tap stands on the wire between two proxies: it passes bytes on unchanged, both
// ways, and keeps a copy of the first ones.
type tap struct {
	ln   net.Listener
	to   string
	wg   sync.WaitGroup
	mu   sync.Mutex
	seen capture
	open map[net.Conn]struct{}
}

// capture is what the tap saw, by direction.
type capture struct{ toServer, toClient []byte }

const maxCapture = 1 << 20

func startTap(port int) (*tap, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("tap: %w", err)
	}
	t := &tap{ln: ln, to: net.JoinHostPort("127.0.0.1", strconv.Itoa(port)), open: map[net.Conn]struct{}{}}
	t.wg.Go(t.accept)
	return t, nil
}

func (t *tap) addr() string { return t.ln.Addr().String() }
func (t *tap) port() int    { return t.ln.Addr().(*net.TCPAddr).Port }

func (t *tap) accept() {
	for {
		c, err := t.ln.Accept()
		if err != nil {
			return
		}
		t.wg.Go(func() { t.pass(c) })
	}
}

func (t *tap) pass(client net.Conn) {
	defer client.Close()
	server, err := net.Dial("tcp", t.to)
	if err != nil {
		return
	}
	defer server.Close()
	if !t.hold(client, server) {
		return
	}
	defer t.release(client, server)
	done := make(chan struct{})
	go func() {
		defer close(done)
		t.copy(server, client, func(c *capture) *[]byte { return &c.toServer })
	}()
	t.copy(client, server, func(c *capture) *[]byte { return &c.toClient })
	<-done
}

func (t *tap) copy(dst, src net.Conn, into func(*capture) *[]byte) {
	_, err := io.Copy(dst, io.TeeReader(src, writerFunc(func(p []byte) (int, error) {
		t.mu.Lock()
		defer t.mu.Unlock()
		b := into(&t.seen)
		*b = append(*b, p[:min(len(p), maxCapture-len(*b))]...)
		return len(p), nil
	})))
	if err != nil {
		// A reset passes on as a reset.
		_ = dst.(*net.TCPConn).SetLinger(0)
		dst.Close()
		return
	}
	_ = dst.(*net.TCPConn).CloseWrite()
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

func (t *tap) hold(conns ...net.Conn) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.open == nil {
		return false
	}
	for _, c := range conns {
		t.open[c] = struct{}{}
	}
	return true
}

func (t *tap) release(conns ...net.Conn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, c := range conns {
		delete(t.open, c)
	}
}

func (t *tap) reset() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.seen = capture{}
}

func (t *tap) copied() capture {
	t.mu.Lock()
	defer t.mu.Unlock()
	return capture{toServer: append([]byte(nil), t.seen.toServer...), toClient: append([]byte(nil), t.seen.toClient...)}
}

func (t *tap) close() {
	t.ln.Close()
	t.mu.Lock()
	for c := range t.open {
		c.Close()
	}
	t.open = nil
	t.mu.Unlock()
	t.wg.Wait()
}

// record is one TLS record by its clear header (RFC 8446, section 5.1).
type record struct {
	kind byte
	size int
}

// records reads the headers of the TLS records in b. It ends at the first byte
// that starts none.
func records(b []byte) []record {
	var out []record
	for len(b) >= 5 && b[0] >= 20 && b[0] <= 23 && b[1] == 3 {
		size := int(b[3])<<8 | int(b[4])
		out = append(out, record{kind: b[0], size: size})
		b = b[min(len(b), 5+size):]
	}
	return out
}

func summary(rs []record) string {
	names := map[byte]string{20: "change-cipher-spec", 21: "alert", 22: "handshake", 23: "encrypted"}
	count := map[byte]int{}
	var order []byte
	for _, r := range rs {
		if count[r.kind] == 0 {
			order = append(order, r.kind)
		}
		count[r.kind]++
	}
	parts := make([]string, 0, len(order))
	for _, k := range order {
		parts = append(parts, fmt.Sprintf("%d %s", count[k], names[k]))
	}
	return "TLS records: " + strings.Join(parts, ", ")
}
