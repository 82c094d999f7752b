//go:build faults

package faults_test

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/weftmesh/weft/agent/httpapi"
	"github.com/weftmesh/weft/cmd/meshtest/proc"
)

// TestP23NoInputCrashes sends generated requests to every route of the API, and
// noise to every other port: nothing may panic, answer a 5xx that Consul would not,
// or leave memory behind. WEFT_SEED chooses other requests than those of every day.
func TestP23NoInputCrashes(t *testing.T) {
	requests := proc.Count(30_000, 1_000_000)
	seed := uint64(1)
	if s := os.Getenv("WEFT_SEED"); s != "" {
		n, err := strconv.ParseUint(s, 10, 64)
		must(t, err)
		seed = n
	}
	dns := proc.FreePorts(t, 1)[0]
	a := proc.Start(t, "-server", "-bootstrap-expect=1", "-bind", "127.0.0.1", "-data-dir", t.TempDir(), "-dns-port", strconv.Itoa(dns),
		"-hcl", "limits { http_max_conns_per_client = 1000 }")
	h := &hostile{t: t, agent: a, seen: map[string]int{}, client: &http.Client{
		Timeout:       30 * time.Second,
		Transport:     &http.Transport{MaxIdleConnsPerHost: 16},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
	h.run(seed, requests/10) // caches, buffers and views have their size after a while
	h.bodies(rand.New(rand.NewPCG(seed, 1)))
	h.ports(seed, dns, 500)
	h.settle()
	before := residentKiB(t, a.PID())
	begin := time.Now()
	h.run(seed+1, requests)
	h.bodies(rand.New(rand.NewPCG(seed, 2)))
	h.ports(seed+1, dns, proc.Count(2_000, 50_000))
	took := time.Since(begin)
	h.settle()
	grown := float64(residentKiB(t, a.PID())-before) / 1024
	t.Logf("seed %d: %d requests to %d routes and noise on the other ports in %s: statuses %v, 5xx that must not be: %d, resident memory %+.1f MB",
		seed, requests, len(h.routes()), took.Round(time.Second), h.statuses(), h.bad.Load(), grown)
	for _, e := range h.refusals() {
		t.Log(e)
	}
	if !a.Running() {
		t.Fatal("the agent ended")
	}
	for _, word := range []string{"panic", "goroutine ", "fatal error"} {
		if i := strings.Index(a.Log(), word); i >= 0 {
			t.Errorf("the log says %q: %.2000s", word, a.Log()[max(0, i-200):])
		}
	}
	if grown > 50 {
		t.Errorf("resident memory grew by %.1f MB", grown)
	}
	if leader, err := a.Client.Status().Leader(); err != nil || leader == "" {
		t.Errorf("no leader afterwards: %q, %v", leader, err)
	}
	must(t, a.Client.Agent().ServiceRegister(&api.AgentServiceRegistration{Name: "afterwards", Port: 1}))
	proc.Eventually(t, 20*time.Second, "a registration arrives", func() error {
		rows, _, err := a.Client.Catalog().Service("afterwards", "", nil)
		if err == nil && len(rows) != 1 {
			err = fmt.Errorf("%d rows", len(rows))
		}
		return err
	})
}

type hostile struct {
	t      *testing.T
	agent  *proc.Agent
	client *http.Client
	bad    atomic.Int64

	mu     sync.Mutex
	status [6]int
	seen   map[string]int // refusals that are 5xx, without what varies
}

func (h *hostile) routes() []httpapi.Route {
	// What ends the agent, or never ends itself, is no question of input.
	return slices.DeleteFunc(httpapi.Routes(), func(r httpapi.Route) bool {
		return slices.Contains([]string{"/v1/agent/leave", "/v1/agent/monitor", "/v1/agent/metrics/stream"}, r.Path) ||
			strings.HasPrefix(r.Path, "/v1/agent/force-leave")
	})
}

func (h *hostile) run(seed uint64, n int) {
	h.t.Helper()
	routes := h.routes()
	const workers = 8
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			g := &generator{rand.New(rand.NewPCG(seed, uint64(w)))}
			for i := range n / workers {
				if i%2000 == 1999 {
					h.clean()
				}
				if !h.agent.Running() {
					return
				}
				h.send(g, routes[(i*workers+w)%len(routes)])
			}
		})
	}
	wg.Wait()
	h.clean()
}

// clean keeps the state from growing by what was accepted.
func (h *hostile) clean() {
	c := h.agent.Client
	_, _ = c.KV().DeleteTree("", nil)
	if sessions, _, err := c.Session().List(nil); err == nil {
		for _, s := range sessions {
			_, _ = c.Session().Destroy(s.ID, nil)
		}
	}
	if queries, _, err := c.PreparedQuery().List(nil); err == nil {
		for _, q := range queries {
			_, _ = c.PreparedQuery().Delete(q.ID, nil)
		}
	}
	if services, err := c.Agent().Services(); err == nil {
		for id := range services {
			_ = c.Agent().ServiceDeregister(id)
		}
	}
	if checks, err := c.Agent().Checks(); err == nil {
		for id := range checks {
			_ = c.Agent().CheckDeregister(id)
		}
	}
	if nodes, _, err := c.Catalog().Nodes(nil); err == nil {
		name, _ := c.Agent().NodeName()
		for _, n := range nodes {
			if n.Node != name {
				_, _ = c.Catalog().Deregister(&api.CatalogDeregistration{Node: n.Node}, nil)
			}
		}
	}
	_ = c.Agent().DisableNodeMaintenance()
}

func (h *hostile) send(g *generator, rt httpapi.Route) {
	method, target, body, header := g.request(rt)
	req, err := http.NewRequest(method, "http://"+h.agent.HTTP+target, bytes.NewReader(body))
	if err != nil {
		return // no client can send it; see ports for what no client would
	}
	for k, v := range header {
		req.Header.Set(k, v)
	}
	resp, err := h.client.Do(req)
	if err != nil {
		if strings.Contains(err.Error(), "EOF") || strings.Contains(err.Error(), "Timeout") {
			h.bad.Add(1)
			h.t.Errorf("%s %s %.300q: %v", method, target, body, err)
		}
		return
	}
	text, _ := io.ReadAll(io.LimitReader(resp.Body, 4096))
	_, _ = io.Copy(io.Discard, resp.Body)
	resp.Body.Close()
	h.mu.Lock()
	defer h.mu.Unlock()
	h.status[resp.StatusCode/100]++
	if resp.StatusCode < 500 {
		return
	}
	kind := fmt.Sprintf("%d %s", resp.StatusCode, blank(string(text)))
	if h.seen[kind]++; h.seen[kind] < 10 && !knownAs5xx(resp.StatusCode, string(text)) {
		h.bad.Add(1)
		h.t.Errorf("%s %s %.300q %v: %d %s", method, target, body, header, resp.StatusCode, text)
	}
}

// knownAs5xx tells the refusals that Consul's clients know as 500: validation of what
// decodes. What is not among them are failures of our own.
func knownAs5xx(status int, text string) bool {
	if status == http.StatusNotImplemented {
		return true
	}
	if status != http.StatusInternalServerError || text == "" {
		return false
	}
	for _, theirs := range []string{"failed to read snapshot file: ", "gossip: joining "} {
		if strings.HasPrefix(text, theirs) {
			return true // what follows is the cause
		}
	}
	for _, ours := range []string{"Internal error", "timed out", "deadline exceeded", "canceled", "EOF", "runtime error", "nil pointer", "unavailable", "connection re", "code = ", "msgpack", "codec"} {
		if strings.Contains(text, ours) {
			return false
		}
	}
	return true
}

var varies = regexp.MustCompile(`"[^"]*"|'[^']*'|[0-9a-f-]{8,}|[0-9]+|kind: .*|\n`)

// blank takes out of a text what varies with the input.
func blank(text string) string {
	text = varies.ReplaceAllString(text, "…")
	return strings.ToValidUTF8(text[:min(len(text), 90)], "")
}

func (h *hostile) statuses() map[string]int {
	out := map[string]int{}
	for i, n := range h.status {
		if n > 0 {
			out[strconv.Itoa(i)+"xx"] = n
		}
	}
	return out
}

func (h *hostile) refusals() []string {
	var out []string
	for kind, n := range h.seen {
		out = append(out, fmt.Sprintf("%6d × %s", n, kind))
	}
	slices.SortFunc(out, func(a, b string) int { return strings.Compare(b, a) })
	return out[:min(len(out), 100)]
}

// settle lets garbage be collected and memory be given back.
func (h *hostile) settle() {
	h.client.CloseIdleConnections()
	for range proc.Count(3, 30) {
		pause(1000)
	}
}

// bodies sends what is too large, too deep, or more than it seems.
func (h *hostile) bodies(rng *rand.Rand) {
	h.t.Helper()
	const large = 64 << 20
	var bomb bytes.Buffer
	z := gzip.NewWriter(&bomb)
	_, _ = io.CopyN(z, zeros{}, large)
	_ = z.Close()
	deep := strings.Repeat(`{"a":[`, 200_000)
	routes := slices.DeleteFunc(h.routes(), func(r httpapi.Route) bool { return r.Method == http.MethodGet })
	before, most := residentKiB(h.t, h.agent.PID()), 0
	for i := range proc.Count(24, len(routes)) {
		rt := routes[rng.IntN(len(routes))]
		if proc.Full() {
			rt = routes[i]
		}
		path, _, _ := strings.Cut(rt.Path, ":")
		for name, body := range map[string]io.Reader{
			"declared":      io.LimitReader(zeros{}, large), // its length is set below
			"chunked":       io.LimitReader(zeros{}, large),
			"chunked words": io.LimitReader(rand.NewChaCha8([32]byte{}), large),
			"deep":          strings.NewReader(deep),
			"bomb":          bytes.NewReader(bomb.Bytes()),
		} {
			req, err := http.NewRequest(rt.Method, "http://"+h.agent.HTTP+path+"x", body)
			must(h.t, err)
			switch name {
			case "declared":
				req.ContentLength = large
			case "bomb":
				req.Header.Set("Content-Encoding", "gzip")
			}
			resp, err := h.client.Do(req)
			if err == nil {
				text, _ := io.ReadAll(io.LimitReader(resp.Body, 4096))
				resp.Body.Close()
				if resp.StatusCode >= 500 && !knownAs5xx(resp.StatusCode, string(text)) {
					h.t.Errorf("%s %s with a %s body: %d %s", rt.Method, path, name, resp.StatusCode, text)
				}
			}
			most = max(most, residentKiB(h.t, h.agent.PID()))
		}
	}
	grown := float64(most-before) / 1024
	h.t.Logf("bodies of 64 MiB, deep ones and bombs: resident memory %+.1f MB at most", grown)
	if grown > 100 {
		h.t.Errorf("a body of 64 MiB costs %.1f MB", grown)
	}
}

// ports sends noise, and what begins well and ends badly, to every port.
func (h *hostile) ports(seed uint64, dns, n int) {
	h.t.Helper()
	g := &generator{rand.New(rand.NewPCG(seed, 99))}
	self, err := h.agent.Client.Agent().Self()
	must(h.t, err)
	gossip := int(self["Member"]["Port"].(float64))
	tcp := []string{h.agent.HTTP, "127.0.0.1:" + strconv.Itoa(dns), "127.0.0.1:" + strconv.Itoa(gossip)}
	if s, ok := self["Config"]["Server"].(bool); ok && s {
		if tags, ok := self["Member"]["Tags"].(map[string]any); ok {
			tcp = append(tcp, fmt.Sprintf("127.0.0.1:%v", tags["port"]))
		}
	}
	udp := []string{tcp[1], tcp[2]}
	for i := range n {
		b := g.noise()
		if i%4 == 0 {
			addr := tcp[(i/4)%len(tcp)]
			c, err := net.DialTimeout("tcp", addr, 5*time.Second)
			if err != nil {
				if !h.agent.Running() {
					return
				}
				continue // its places for connections are taken for a moment
			}
			_ = c.SetDeadline(time.Now().Add(50 * time.Millisecond))
			_, _ = c.Write(b)
			_, _ = io.CopyN(io.Discard, c, 512)
			c.Close()
			continue
		}
		c, err := net.Dial("udp", udp[i%len(udp)])
		must(h.t, err)
		_, _ = c.Write(b[:min(len(b), 1400)])
		c.Close()
	}
	if !h.agent.Running() {
		h.t.Fatal("noise on a port ended the agent")
	}
}
