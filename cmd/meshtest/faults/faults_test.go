//go:build faults

// Package faults_test does to real processes what hosts do: it kills, freezes and
// starves them, and floods their ports. `make test-faults` runs it, in a short
// form of some minutes; a test that holds a published promise carries its number.
package faults_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/weftmesh/weft/cmd/meshtest/proc"
)

// TestP01KillNine kills the agent and its server in the middle of writes: every
// acknowledged registration and intention is there after the restart.
func TestP01KillNine(t *testing.T) {
	t.Parallel()
	a := proc.Start(t, "-server", "-bootstrap-expect=1", "-bind", "127.0.0.1", "-data-dir", t.TempDir())
	rng := rand.New(rand.NewPCG(1, 1))
	var mu sync.Mutex
	intentions, services := map[string]bool{}, map[string]bool{}
	const kills = 8
	for round := range kills {
		stop := make(chan struct{})
		var wg sync.WaitGroup
		for w := range 4 {
			wg.Add(1)
			go func() {
				defer wg.Done()
				for i := 0; ; i++ {
					select {
					case <-stop:
						return
					default:
					}
					name := fmt.Sprintf("s-%d-%d-%d", round, w, i)
					if w%2 == 0 {
						if _, err := a.Client.Connect().IntentionUpsert(&api.Intention{SourceName: name, DestinationName: "db", Action: api.IntentionActionAllow}, nil); err == nil {
							mu.Lock()
							intentions[name] = true
							mu.Unlock()
						}
					} else if err := a.Client.Agent().ServiceRegister(&api.AgentServiceRegistration{Name: name, Port: 1}); err == nil {
						mu.Lock()
						services[name] = true
						mu.Unlock()
					}
				}
			}()
		}
		pause(200 + time.Duration(rng.IntN(400)))
		a.Kill()
		close(stop)
		wg.Wait()
		a.Exec()
	}
	got, _, err := a.Client.Connect().Intentions(nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range got {
		delete(intentions, i.SourceName)
	}
	if len(intentions) > 0 {
		t.Errorf("%d acknowledged intentions are lost after %d kills", len(intentions), kills)
	}
	proc.Eventually(t, 20*time.Second, "every acknowledged registration is in the catalog", func() error {
		names, _, err := a.Client.Catalog().Services(nil)
		if err != nil {
			return err
		}
		lost := 0
		for s := range services {
			if _, ok := names[s]; !ok {
				lost++
			}
		}
		if lost > 0 {
			return fmt.Errorf("%d of %d are missing", lost, len(services))
		}
		return nil
	})
	t.Logf("%d kills, %d intentions and %d services acknowledged, none lost", kills, len(got), len(services))
}

// pause lets load run for so many milliseconds.
func pause(ms time.Duration) { time.Sleep(ms * time.Millisecond) }

// echo answers every byte with itself and counts the connections it holds.
type echo struct {
	ln   net.Listener
	open atomic.Int64
}

func startEcho(t *testing.T) *echo {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return serveEcho(t, ln)
}

func serveEcho(t *testing.T, ln net.Listener) *echo {
	t.Helper()
	e := &echo{ln: ln}
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			e.open.Add(1)
			go func() {
				defer e.open.Add(-1)
				defer c.Close()
				_, _ = io.Copy(c, c)
			}()
		}
	}()
	return e
}

func (e *echo) port() int { return e.ln.Addr().(*net.TCPAddr).Port }

func register(t *testing.T, a *proc.Agent, s *api.AgentServiceRegistration) {
	t.Helper()
	if err := a.Client.Agent().ServiceRegister(s); err != nil {
		t.Fatal(err)
	}
}

func sidecar(name string, port int, upstreams ...api.Upstream) *api.AgentServiceRegistration {
	return &api.AgentServiceRegistration{Name: name, Port: port, Connect: &api.AgentServiceConnect{
		SidecarService: &api.AgentServiceRegistration{Proxy: &api.AgentServiceConnectProxyConfig{Upstreams: upstreams}},
	}}
}

func intend(t *testing.T, a *proc.Agent, src, dst string, action api.IntentionAction) {
	t.Helper()
	if _, err := a.Client.Connect().IntentionUpsert(&api.Intention{SourceName: src, DestinationName: dst, Action: action}, nil); err != nil {
		t.Fatal(err)
	}
}

func ping(c net.Conn) error {
	_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	defer c.SetDeadline(time.Time{})
	if _, err := c.Write([]byte("ping")); err != nil {
		return err
	}
	b := make([]byte, 4)
	if _, err := io.ReadFull(c, b); err != nil {
		return err
	}
	if string(b) != "ping" {
		return fmt.Errorf("echo said %q", b)
	}
	return nil
}

// through dials until one exchange gets through.
func through(t *testing.T, addr string) net.Conn {
	t.Helper()
	var conn net.Conn
	proc.Eventually(t, 15*time.Second, "a connection through "+addr, func() error {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			return err
		}
		if err := ping(c); err != nil {
			c.Close()
			return err
		}
		conn = c
		return nil
	})
	t.Cleanup(func() { conn.Close() })
	return conn
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func command(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", name, err, out)
	}
}

// TestP09DamagedDataDirectory flips and cuts bytes of what the agent keeps on
// disk: it starts, or it refuses with a message that names the file; it never panics.
func TestP09DamagedDataDirectory(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	args := []string{"-server", "-bootstrap-expect=1", "-bind", "127.0.0.1", "-data-dir", dir}
	a := proc.Start(t, args...)
	register(t, a, sidecar("db", 1))
	intend(t, a, "web", "db", api.IntentionActionAllow)
	if code := a.Stop(); code != 0 {
		t.Fatalf("SIGTERM: exit code %d", code)
	}
	files := map[string][]byte{}
	must(t, filepath.WalkDir(dir, func(p string, d os.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			files[p], err = os.ReadFile(p)
		}
		return err
	}))
	rng := rand.New(rand.NewPCG(9, 9))
	for _, f := range slices.Sorted(maps.Keys(files)) {
		whole := files[f]
		damaged := map[string][]byte{"cut": whole[:len(whole)/2], "empty": {}}
		if len(whole) > 0 {
			flipped := bytes.Clone(whole)
			for range 1 + len(flipped)/4096 {
				flipped[rng.IntN(len(flipped))] ^= 0xff
			}
			damaged["flipped"] = flipped
		}
		for how, b := range damaged {
			restore(t, dir, files)
			must(t, os.WriteFile(f, b, 0o600))
			out, served := a.TryExec(6 * time.Second)
			if strings.Contains(out, "panic:") || strings.Contains(out, "goroutine ") || strings.Contains(out, "fatal error") {
				t.Errorf("%s %s: the agent panicked:\n%s", filepath.Base(f), how, out)
			}
			if !served && !strings.Contains(afterGreeting(out), dir) {
				t.Errorf("%s %s: the agent refused to start without naming a file below %s:\n%s", filepath.Base(f), how, dir, out)
			}
			t.Logf("%s %s: served %v", strings.TrimPrefix(f, dir), how, served)
		}
	}
}

// restore makes a directory hold just these files again.
// afterGreeting is what an agent says after the line in which it names its own settings.
func afterGreeting(out string) string {
	i := strings.Index(out, `msg="weft agent starts"`)
	if i < 0 {
		return out
	}
	_, rest, _ := strings.Cut(out[i:], "\n")
	return rest
}

func restore(t *testing.T, dir string, files map[string][]byte) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	must(t, err)
	for _, e := range entries {
		must(t, os.RemoveAll(filepath.Join(dir, e.Name())))
	}
	for p, b := range files {
		must(t, os.MkdirAll(filepath.Dir(p), 0o700))
		must(t, os.WriteFile(p, b, 0o600))
	}
}

// TestP25SilentClients opens many connections that say nothing to every port a
// stranger can reach; another client is served meanwhile, and all of them are gone soon.
func TestP25SilentClients(t *testing.T) {
	t.Parallel()
	a := proc.StartAgent(t)
	e := startEcho(t)
	up := proc.FreePorts(t, 1)[0]
	register(t, a, sidecar("db", e.port()))
	register(t, a, sidecar("web", 1, api.Upstream{DestinationName: "db", LocalBindPort: up}))
	intend(t, a, "web", "db", api.IntentionActionAllow)
	upstream := net.JoinHostPort("127.0.0.1", strconv.Itoa(up))
	through(t, upstream)
	svc, _, err := a.Client.Agent().Service("db-sidecar-proxy", nil)
	must(t, err)
	inbound := net.JoinHostPort("127.0.0.1", strconv.Itoa(svc.Port))

	var silent []net.Conn
	stranger := net.Dial
	if proc.Full() { // more than one address may have, so that the operator is at another
		stranger = (&net.Dialer{Timeout: 10 * time.Second, LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 9)}}).Dial
	}
	for _, addr := range []string{inbound, a.HTTP} {
		for i := range proc.Count(150, 2000) {
			c, err := stranger("tcp", addr)
			if err != nil {
				break // refused at the door is an answer too
			}
			if i%2 == 0 {
				_, _ = c.Write([]byte("\x16\x03\x01"))
			}
			silent = append(silent, c)
			defer c.Close()
		}
	}
	for range 20 {
		through(t, upstream)
	}
	if _, err := a.Client.Agent().Self(); err != nil {
		t.Errorf("the HTTP API does not answer beside silent clients: %v", err)
	}
	var left atomic.Int64
	var wg sync.WaitGroup
	begin := time.Now()
	for _, c := range silent {
		wg.Add(1)
		go func() {
			defer wg.Done()
			_ = c.SetReadDeadline(time.Now().Add(30 * time.Second))
			if _, err := io.Copy(io.Discard, c); errors.Is(err, os.ErrDeadlineExceeded) {
				left.Add(1)
			}
		}()
	}
	wg.Wait()
	took := time.Since(begin)
	if n := left.Load(); n > 0 {
		t.Errorf("%d of %d silent connections are still open after 30 s", n, len(silent))
	}
	if proc.Full() && took > 15*time.Second {
		t.Errorf("silent connections were gone after %s, want 15 s", took)
	}
	t.Logf("%d silent connections at a proxy and the API: all gone %s later", len(silent), took.Round(time.Millisecond))
}
