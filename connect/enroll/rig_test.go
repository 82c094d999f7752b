package enroll

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

const (
	dc       = "dc1"
	serverID = "aaaaaaaa-0000-4000-8000-000000000001"
	agentID  = "bbbbbbbb-0000-4000-8000-000000000001"
)

// clock is a wall clock that a test sets.
type clock struct {
	mu sync.Mutex
	t  time.Time
}

func newClock() *clock { return &clock{t: time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)} }

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.t
}

func (c *clock) add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.t = c.t.Add(d)
}

// registrar is the replicated state of a test.
type registrar struct {
	mu     sync.Mutex
	asked  []Admission
	grant  Grant
	refuse error
	tokens map[string]bool // revoked
	nodes  map[string]bool // revoked
}

func (r *registrar) Admit(_ context.Context, a Admission) (Grant, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.asked = append(r.asked, a)
	switch {
	case r.refuse != nil:
		return Grant{}, r.refuse
	case r.tokens[a.TokenID]:
		return Grant{}, Refuse(ReasonTokenRevoked, "join token %s was revoked; make another with weft join-token", a.TokenID)
	case r.nodes[a.NodeID]:
		return Grant{}, Refuse(ReasonNodeRevoked, "node %s was revoked", a.Node)
	}
	return r.grant, nil
}

func (r *registrar) with(f func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f()
}

func (r *registrar) last(t *testing.T) Admission {
	t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.asked) == 0 {
		t.Fatal("the registrar was not asked")
	}
	return r.asked[len(r.asked)-1]
}

// site is one server with its port, without a mux: what it serves is echoed, or
// goes to the gate.
type site struct {
	secret Secret
	clock  *clock
	creds  *Credentials
	reg    *registrar
	addr   string
	log    lockedBuffer // of the gate
}

func newSite(t *testing.T, secret Secret, clk *clock) *site {
	t.Helper()
	s := &site{secret: secret, clock: clk, reg: &registrar{
		tokens: map[string]bool{}, nodes: map[string]bool{},
		grant: Grant{GossipKeys: [][]byte{secret.GossipKey()}, Servers: []string{"192.0.2.1:8300"}},
	}}
	s.creds = must(NewServer(ServerConfig{Secret: secret, Node: "s1", NodeID: serverID, Datacenter: dc, Now: clk.now}))
	gate := must(NewGate(GateConfig{Secret: secret, Datacenter: dc, Registrar: s.reg, Now: clk.now, Logger: slog.New(slog.NewTextHandler(&s.log, nil))}))
	s.listen(t, s.creds.Server(ProtoRPC, ProtoRaft, ProtoJoin), gate)
	return s
}

func (s *site) listen(t *testing.T, cfg *tls.Config, gate *Gate) {
	t.Helper()
	ln := must(net.Listen("tcp", "127.0.0.1:0"))
	s.addr = ln.Addr().String()
	ctx, cancel := context.WithCancel(t.Context())
	joins := &handed{addr: ln.Addr(), ch: make(chan net.Conn), done: make(chan struct{})}
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := gate.Serve(ctx, joins); err != nil {
			t.Errorf("gate: %v", err)
		}
	})
	wg.Go(func() {
		for {
			raw, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				_ = raw.SetDeadline(time.Now().Add(20 * time.Second))
				c := tls.Server(raw, cfg)
				if err := c.HandshakeContext(ctx); err != nil {
					_ = c.Close()
					return
				}
				if c.ConnectionState().NegotiatedProtocol == ProtoJoin {
					joins.ch <- c
					return
				}
				defer c.Close()
				_, _ = io.Copy(c, c)
			})
		}
	})
	t.Cleanup(func() {
		_ = ln.Close()
		cancel()
		wg.Wait()
	})
}

// handed is a listener of connections that somebody else accepts.
type handed struct {
	addr net.Addr
	ch   chan net.Conn
	done chan struct{}
	once sync.Once
}

func (h *handed) Accept() (net.Conn, error) {
	select {
	case c := <-h.ch:
		return c, nil
	case <-h.done:
		return nil, net.ErrClosed
	}
}
func (h *handed) Close() error   { h.once.Do(func() { close(h.done) }); return nil }
func (h *handed) Addr() net.Addr { return h.addr }

func (s *site) token(t *testing.T, o MintOptions) string {
	t.Helper()
	if o.Now.IsZero() {
		o.Now = s.clock.now()
	}
	tok, err := s.secret.Mint(o)
	if err != nil {
		t.Fatal(err)
	}
	return tok.Text()
}

func text(s string) func() (string, error) { return func() (string, error) { return s, nil } }

// agent makes the credentials of an agent of the site.
func (s *site) agent(token string, change ...func(*AgentConfig)) (*Credentials, error) {
	cfg := AgentConfig{
		Token: text(token), Servers: func() []string { return []string{s.addr} },
		Node: "web1", NodeID: agentID, Datacenter: dc, Version: "1.0", Now: s.clock.now,
	}
	for _, f := range change {
		f(&cfg)
	}
	return NewAgent(cfg)
}

func inDir(dir string) func(*AgentConfig) { return func(c *AgentConfig) { c.Dir = dir } }

// joined is an agent that has joined.
func (s *site) joined(t *testing.T, change ...func(*AgentConfig)) *Credentials {
	t.Helper()
	c, err := s.agent(s.token(t, MintOptions{}), change...)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Enroll(t.Context()); err != nil {
		t.Fatal(err)
	}
	return c
}

// call opens a connection and has one byte echoed.
func call(addr string, cfg *tls.Config) (tls.ConnectionState, error) {
	c, err := tls.Dial("tcp", addr, cfg)
	if err != nil {
		return tls.ConnectionState{}, err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := c.Write([]byte("x")); err != nil {
		return tls.ConnectionState{}, err
	}
	b := make([]byte, 1)
	if _, err := io.ReadFull(c, b); err != nil {
		return tls.ConnectionState{}, err
	}
	if b[0] != 'x' {
		return tls.ConnectionState{}, fmt.Errorf("echoed %q", b)
	}
	return c.ConnectionState(), nil
}

func wantReason(t *testing.T, err error, want Reason) {
	t.Helper()
	var r *Refusal
	if !errors.As(err, &r) || r.Reason != want {
		t.Errorf("got %v, want a refusal for %s", err, want)
	}
}

func writeFile(t *testing.T, text string, mode os.FileMode) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(file, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(file, mode); err != nil {
		t.Fatal(err)
	}
	return file
}

func rsaKey() (*rsa.PrivateKey, error) { return rsa.GenerateKey(rand.Reader, 2048) }

// inBubble runs in virtual time.
func inBubble(t *testing.T, name string, f func(*testing.T)) {
	t.Helper()
	t.Run(name, func(t *testing.T) { synctest.Test(t, f) })
}

func (h *held) joinedCerts() []*x509.Certificate {
	return []*x509.Certificate{h.cert.Leaf, h.trust.root}
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
