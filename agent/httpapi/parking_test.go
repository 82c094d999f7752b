package httpapi

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/catalog/wire"
)

// wireClient is one connection, written and read by hand.
type wireClient struct {
	t *testing.T
	net.Conn
	in *bufio.Reader
}

func (r *rig) dial(t *testing.T) *wireClient {
	t.Helper()
	c, err := net.Dial("tcp", r.api.Addrs()[0].String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	return &wireClient{t, c, bufio.NewReader(c)}
}

func (c *wireClient) ask(target string, headers ...string) {
	c.t.Helper()
	if _, err := io.WriteString(c, "GET "+target+" HTTP/1.1\r\nHost: localhost\r\n"+strings.Join(append(headers, "\r\n"), "\r\n")); err != nil {
		c.t.Fatal(err)
	}
}

func (c *wireClient) answer() (status int, h http.Header, body string) {
	c.t.Helper()
	resp, err := http.ReadResponse(c.in, nil)
	if err != nil {
		c.t.Fatal(err)
	}
	defer resp.Body.Close()
	return resp.StatusCode, resp.Header, readAll(c.t, resp.Body)
}

func parkingRig(t *testing.T) (r *rig, stop func() error, index string) {
	r = newRig(t, func(c *Config) { c.Addrs = []string{"127.0.0.1:0"}; c.ShutdownGrace = 10 * time.Second })
	stop = r.run()
	return r, stop, r.do("GET", "/v1/catalog/nodes", "").header.Get("X-Consul-Index")
}

// waiting is how many clients are parked, by the metric.
func (r *rig) parked() string {
	for line := range strings.Lines(r.do("GET", "/v1/agent/metrics?format=prometheus", "").body) {
		if n, ok := strings.CutPrefix(line, "weft_http_waiting_clients "); ok {
			return strings.TrimSpace(n)
		}
	}
	return "?"
}

func (r *rig) waits(t *testing.T, n string) {
	t.Helper()
	eventually(t, n+" clients wait", func() bool { return r.parked() == n })
}

func (r *rig) addNode(name string) {
	r.mustApply(&catalog.Register{Node: &catalog.Node{Node: name, Address: "10.0.0.1"}})
}

// A crowd is answered alike, with what a client that waits alone gets, and each may
// use its connection again, for whatever it wants.
func TestParkedClientsWakeAndAskAgain(t *testing.T) {
	r, _, index := parkingRig(t)
	clients := make([]*wireClient, 150)
	for i := range clients {
		clients[i] = r.dial(t)
	}
	for round := range 3 {
		for _, c := range clients {
			c.ask("/v1/catalog/nodes?wait=5m&index=" + index)
		}
		r.waits(t, "150")
		r.addNode("n" + string(rune('a'+round)))
		want := r.do("GET", "/v1/catalog/nodes", "")
		index = want.header.Get("X-Consul-Index")
		for _, c := range clients {
			status, h, body := c.answer()
			if status != 200 || body != want.body || h.Get("X-Consul-Index") != index {
				t.Fatal(status, h, body)
			}
			for name := range want.header {
				if h.Get(name) == "" && name != "Vary" {
					t.Fatalf("without %s: %v", name, h)
				}
			}
		}
		r.waits(t, "0")
	}
	clients[0].ask("/v1/catalog/datacenters")
	if status, _, body := clients[0].answer(); status != 200 || body != `["dc1"]` {
		t.Fatal(status, body)
	}
	if log := r.log.String(); !strings.Contains(log, "/v1/catalog/nodes?wait=5m&index=") {
		t.Fatal("no log line of a parked request")
	}
}

func TestParkedClientsHaveTheirOwnClocks(t *testing.T) {
	r, _, index := parkingRig(t)
	patient, hasty := r.dial(t), r.dial(t)
	patient.ask("/v1/catalog/nodes?wait=5m&index=" + index)
	r.waits(t, "1")
	begin := time.Now()
	hasty.ask("/v1/catalog/nodes?wait=80ms&index=" + index)
	if status, h, _ := hasty.answer(); status != 200 || h.Get("X-Consul-Index") != index || time.Since(begin) < 80*time.Millisecond {
		t.Fatal(status, h, time.Since(begin))
	}
	if n := r.parked(); n != "1" {
		t.Fatalf("%s wait", n)
	}
	r.addNode("later")
	if status, _, body := patient.answer(); status != 200 || !strings.Contains(body, "later") {
		t.Fatal(status, body)
	}
}

// What differs in the question differs in the answer.
func TestCrowdsAreApart(t *testing.T) {
	r, _, index := parkingRig(t)
	nodes := "/v1/catalog/nodes?wait=5m&index=" + index
	plain, filtered, packed := r.dial(t), r.dial(t), r.dial(t)
	plain.ask(nodes)
	filtered.ask(nodes + `&filter=Node+==+nobody`)
	packed.ask(nodes, "Accept-Encoding: gzip")
	r.waits(t, "3")
	r.addNode(strings.Repeat("long", 30))
	r.addNode("second")
	if _, h, body := plain.answer(); !strings.Contains(body, "longlong") || h.Get("Content-Encoding") != "" {
		t.Fatal(h, body)
	}
	if _, _, body := filtered.answer(); body != "[]" {
		t.Fatal(body)
	}
	if status, h, _ := packed.answer(); status != 200 || h.Get("Content-Length") == "" {
		t.Fatal(status, h)
	}
}

// Who leaves is not waited for: its place is free, and nobody asks for it any more.
func TestParkedClientLeaves(t *testing.T) {
	r := newRig(t, func(c *Config) { c.Addrs = []string{"127.0.0.1:0"}; c.MaxConnsPerClient = 1 })
	r.run()
	index := r.do("GET", "/v1/catalog/nodes", "").header.Get("X-Consul-Index")
	for range 3 {
		var c *wireClient
		eventually(t, "a client waits", func() bool {
			if c == nil {
				c = r.dial(t)
				c.ask("/v1/catalog/nodes?wait=5m&index=" + index)
			}
			if r.parked() == "1" {
				return true
			}
			_ = c.SetReadDeadline(time.Now().Add(time.Millisecond))
			if _, err := c.in.Peek(1); !errors.Is(err, os.ErrDeadlineExceeded) {
				c = nil // refused: the place is not free yet
			}
			return false
		})
		_ = c.Close()
		r.waits(t, "0")
	}
}

// A client may send its next requests before it is answered.
func TestParkedClientAsksAhead(t *testing.T) {
	r, _, index := parkingRig(t)
	c := r.dial(t)
	c.ask("/v1/catalog/nodes?wait=5m&index=" + index)
	r.waits(t, "1")
	c.ask("/v1/catalog/datacenters")
	r.addNode("later")
	if _, _, body := c.answer(); !strings.Contains(body, "later") {
		t.Fatal(body)
	}
	if _, _, body := c.answer(); body != `["dc1"]` {
		t.Fatal(body)
	}
	index = r.do("GET", "/v1/catalog/nodes", "").header.Get("X-Consul-Index")
	both := "/v1/catalog/nodes?wait=5m&index=" + index + " HTTP/1.1\r\nHost: localhost\r\n\r\nGET /v1/catalog/datacenters"
	c.ask(both) // in one segment
	r.waits(t, "1")
	r.addNode("later still")
	if _, _, body := c.answer(); !strings.Contains(body, "later still") {
		t.Fatal(body)
	}
	if _, _, body := c.answer(); body != `["dc1"]` {
		t.Fatal(body)
	}
}

// A client that takes its answer slowly holds up nobody else, and gets all of it.
func TestParkedClientReadsSlowly(t *testing.T) {
	r, _, _ := parkingRig(t)
	big := strings.Repeat("x", 400<<10)
	r.mustApply(&catalog.SetKey{Pair: catalog.KVPair{Key: "big", Value: []byte("small")}})
	index := r.do("GET", "/v1/kv/big", "").header.Get("X-Consul-Index")
	slow, quick := r.dial(t), r.dial(t)
	if err := slow.Conn.(*net.TCPConn).SetReadBuffer(4 << 10); err != nil {
		t.Fatal(err)
	}
	for _, c := range []*wireClient{slow, quick} {
		c.ask("/v1/kv/big?raw&wait=5m&index=" + index)
	}
	r.waits(t, "2")
	r.mustApply(&catalog.SetKey{Pair: catalog.KVPair{Key: "big", Value: []byte(big)}})
	for _, c := range []*wireClient{quick, slow} {
		if _, _, body := c.answer(); body != big {
			t.Fatalf("%d bytes", len(body))
		}
		c.ask("/v1/catalog/datacenters")
		if _, _, body := c.answer(); body != `["dc1"]` {
			t.Fatal(body)
		}
	}
}

// What cannot be parked waits as before.
func TestRequestsThatAreNotParked(t *testing.T) {
	r, _, index := parkingRig(t)
	for _, header := range []string{"Connection: close", "Content-Length: 1"} {
		c := r.dial(t)
		c.ask("/v1/catalog/nodes?wait=50ms&index="+index, header)
		if header == "Content-Length: 1" {
			_, _ = io.WriteString(c, "x")
		}
		if status, h, _ := c.answer(); status != 200 && status != 413 || h.Get("X-Consul-Default-Acl-Policy") == "" {
			t.Fatal(header, status, h)
		}
	}
	c := r.dial(t)
	_, _ = io.WriteString(c, "GET /v1/catalog/nodes?wait=50ms&index="+index+" HTTP/1.0\r\n\r\n")
	if status, _, _ := c.answer(); status != 200 {
		t.Fatal(status)
	}
}

func TestShutdownTellsTheParked(t *testing.T) {
	r, stop, index := parkingRig(t)
	idle, gone, blocked := r.dial(t), r.dial(t), r.dial(t)
	idle.ask("/v1/catalog/nodes?wait=20ms&index=" + index)
	if status, _, _ := idle.answer(); status != 200 {
		t.Fatal(status)
	}
	gone.ask("/v1/catalog/nodes?wait=5m&index=" + index)
	blocked.ask("/v1/catalog/nodes?wait=5m&index=" + index)
	r.waits(t, "2")
	_ = gone.Close()
	begin := time.Now()
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	if d := time.Since(begin); d > 5*time.Second {
		t.Errorf("the end took %s", d)
	}
	if status, h, body := blocked.answer(); status != 503 || h.Get("Connection") != "close" && !strings.Contains(body, "shutting down") {
		t.Fatal(status, h, body)
	}
	for _, c := range []*wireClient{idle, blocked} {
		if _, err := c.in.ReadByte(); err == nil {
			t.Fatal("still open")
		}
	}
}

// readHook stands before the servers, for the reads of those whose time is over.
type readHook struct {
	Servers
	overdue func(context.Context) (*wire.ReadReply, error)
}

func (s readHook) Read(ctx context.Context, req *wire.ReadRequest) (*wire.ReadReply, error) {
	if req.MaxWait == time.Nanosecond {
		return s.overdue(ctx)
	}
	return s.Servers.Read(ctx, req)
}

// When a wait runs out, what this host holds of the answer may not be there yet, or be
// older than what the client has.
func TestOverdueIsNotBehind(t *testing.T) {
	for name, rep := range map[string]*wire.ReadReply{"nothing": nil, "older": {View: &catalog.View{Index: 1}}} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, func(c *Config) {
				c.Addrs = []string{"127.0.0.1:0"}
				c.Servers = readHook{c.Servers, func(context.Context) (*wire.ReadReply, error) {
					if rep == nil {
						return nil, catalog.ErrUnavailable
					}
					return rep, nil
				}}
			})
			r.run()
			r.addNode("one")
			index := r.do("GET", "/v1/catalog/nodes", "").header.Get("X-Consul-Index")
			c := r.dial(t)
			c.ask("/v1/catalog/nodes?wait=10ms&index=" + index)
			if status, h, body := c.answer(); status != 200 || h.Get("X-Consul-Index") != index || !strings.Contains(body, "one") {
				t.Fatal(status, h, body)
			}
		})
	}
}

// Who is answered because its time is over is not cut off by its crowd, which is told
// in the same moment.
func TestOverdueOutlivesItsCrowd(t *testing.T) {
	expiring, goOn := make(chan struct{}), make(chan struct{})
	r := newRig(t, func(c *Config) {
		c.Addrs = []string{"127.0.0.1:0"}
		own := c.Servers
		c.Servers = readHook{own, func(ctx context.Context) (*wire.ReadReply, error) {
			close(expiring)
			select {
			case <-ctx.Done():
				return nil, context.Cause(ctx)
			case <-goOn:
			}
			return own.Read(ctx, &wire.ReadRequest{Query: catalog.Query{Kind: catalog.QueryNodes}})
		}}
	})
	r.run()
	index := r.do("GET", "/v1/catalog/nodes", "").header.Get("X-Consul-Index")
	patient, hasty := r.dial(t), r.dial(t)
	patient.ask("/v1/catalog/nodes?wait=5m&index=" + index)
	r.waits(t, "1")
	hasty.ask("/v1/catalog/nodes?wait=50ms&index=" + index)
	<-expiring
	r.addNode("later")
	if status, _, body := patient.answer(); status != 200 || !strings.Contains(body, "later") {
		t.Fatal(status, body)
	}
	r.waits(t, "0")
	close(goOn)
	if status, _, body := hasty.answer(); status != 200 || !strings.Contains(body, "later") {
		t.Fatal(status, body)
	}
}

// A connection whose client always asks ahead does not grow.
func TestReadAheadIsOneLayer(t *testing.T) {
	ours, theirs := net.Pipe()
	defer ours.Close()
	defer theirs.Close()
	c := withAhead(ours, nil)
	if c != ours {
		t.Fatalf("%T", c)
	}
	for range 3 {
		c = withAhead(c, []byte("ab"))
		if r, ok := c.(*readAhead); !ok || r.Conn != ours {
			t.Fatalf("%T", c)
		}
		if n, err := c.Read(make([]byte, 2)); n != 2 || err != nil {
			t.Fatal(n, err)
		}
	}
	c = withAhead(withAhead(c, []byte("cd")), []byte("ab"))
	if got, err := io.ReadAll(io.LimitReader(c, 4)); string(got) != "abcd" || err != nil {
		t.Fatalf("%q, %v", got, err)
	}
	if c = withAhead(c, nil); c != ours {
		t.Fatalf("%T", c)
	}
}
