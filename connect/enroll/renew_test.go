package enroll

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weftmesh/weft/connect/identity"
)

// A node that was off for 90 days, while the gossip key changed, comes back by what
// lies on its disk; without a token, and with one that has long expired.
func TestBackAfter90Days(t *testing.T) {
	for name, token := range map[string]func(s *site) string{
		"no token":  func(*site) string { return "" },
		"old token": func(s *site) string { return s.token(t, MintOptions{Now: s.clock.now().Add(-91 * 24 * time.Hour)}) },
	} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t, NewSecret(), newClock())
			dir := t.TempDir()
			first := s.joined(t, inDir(dir))
			s.clock.add(90 * 24 * time.Hour)
			// The servers were renewed meanwhile, and the keyring has moved on.
			if err := s.creds.selfIssue(must(s.secret.root())); err != nil {
				t.Fatal(err)
			}
			next := []byte(strings.Repeat("k", 32))
			s.reg.with(func() { s.reg.grant.GossipKeys = [][]byte{next} })
			if _, err := call(s.addr, first.Client(ProtoRPC, Peer{})); err == nil {
				t.Fatal("an expired certificate opens the door")
			}
			var heard []Joined
			c, err := s.agent(token(s), inDir(dir), func(c *AgentConfig) { c.OnJoined = func(j Joined) { heard = append(heard, j) } })
			if err != nil {
				t.Fatal(err)
			}
			if !c.Ready() {
				t.Fatal("what lay on the disk is not used")
			}
			got, err := c.Enroll(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if len(got.GossipKeys) != 1 || !bytes.Equal(got.GossipKeys[0], next) || len(heard) != 1 {
				t.Errorf("%+v, heard %+v", got, heard)
			}
			if _, err := call(s.addr, c.Client(ProtoRPC, Peer{})); err != nil {
				t.Error(err)
			}
			if a := s.reg.last(t); a.TokenID != "" || a.Renewal == nil || a.Renewal.NodeID != agentID {
				t.Errorf("%+v", a)
			}
		})
	}
}

func TestRevokedNodeIsRefused(t *testing.T) {
	s := newSite(t, NewSecret(), newClock())
	dir := t.TempDir()
	s.joined(t, inDir(dir))
	s.reg.with(func() { s.reg.nodes[agentID] = true })
	s.clock.add(90 * 24 * time.Hour)
	if err := s.creds.selfIssue(must(s.secret.root())); err != nil {
		t.Fatal(err)
	}
	for _, token := range []string{"", s.token(t, MintOptions{})} {
		c := must(s.agent(token, inDir(dir)))
		_, err := c.Enroll(t.Context())
		wantReason(t, err, ReasonNodeRevoked)
	}
}

func TestTooLongAway(t *testing.T) {
	s := newSite(t, NewSecret(), newClock())
	dir := t.TempDir()
	s.joined(t, inDir(dir))
	s.clock.add(maxLapsed + 100*time.Hour)
	if err := s.creds.selfIssue(must(s.secret.root())); err != nil {
		t.Fatal(err)
	}
	_, err := must(s.agent("", inDir(dir))).Enroll(t.Context())
	wantReason(t, err, ReasonNeedToken)
	if _, err := must(s.agent(s.token(t, MintOptions{}), inDir(dir))).Enroll(t.Context()); err != nil {
		t.Error(err)
	}
	if a := s.reg.last(t); a.TokenID == "" || a.Renewal != nil {
		t.Errorf("%+v", a)
	}
}

// The certificate is for one node: with it no other is renewed.
func TestRenewalIsOfTheSameNode(t *testing.T) {
	s := newSite(t, NewSecret(), newClock())
	cert := s.joined(t).held.Load().cert
	cfg := &tls.Config{InsecureSkipVerify: true, NextProtos: []string{ProtoJoin}, Certificates: []tls.Certificate{*cert}}
	for name, tc := range map[string]struct {
		req  request
		want Reason
	}{
		"another node ID": {request{CSR: csr(), Node: "web1", NodeID: serverID, Datacenter: dc}, ReasonBadRequest},
		"renamed":         {request{CSR: csr(), Node: "web2", NodeID: agentID, Datacenter: dc}, ""},
	} {
		rep, err := s.raw(cfg, &tc.req)
		if err != nil || tc.want != "" && (rep.Refused == nil || rep.Refused.Reason != tc.want) || tc.want == "" && rep.Refused != nil {
			t.Errorf("%s: %+v, %v", name, rep, err)
		}
	}
	cfg.Certificates = []tls.Certificate{*s.creds.held.Load().cert}
	asAgent := &request{CSR: csr(), Node: "s1", NodeID: serverID, Datacenter: dc}
	if rep := must(s.raw(cfg, asAgent)); rep.Certificate != nil {
		t.Errorf("a server became an agent: %+v", rep)
	}
	// What once was a server's learns nothing.
	s.clock.add(certLife + skew + time.Second)
	if rep := must(s.raw(cfg, asAgent)); rep.Refused == nil || rep.Refused.Reason != ReasonBadRequest || rep.GossipKeys != nil {
		t.Errorf("an expired server was told %+v", rep)
	}
}

// TestRenewalIsInTheSameDatacenter: datacenters that share a secret do not share what is
// revoked, so a certificate of the one is no right to one of the other.
func TestRenewalIsInTheSameDatacenter(t *testing.T) {
	s := newSite(t, NewSecret(), newClock())
	root := must(s.secret.root())
	key := must(identity.NewKey())
	leaf := must(root.issue(Peer{Role: RoleAgent, Node: "web1", NodeID: agentID, Datacenter: "dc2", ClusterID: root.clusterID}, key.Public(), s.clock.now()))
	for _, token := range []string{"", s.token(t, MintOptions{Now: s.clock.now().Add(-48 * time.Hour)}), s.token(t, MintOptions{})} {
		c := must(s.agent(token))
		if err := c.hold(key, leaf, root.cert); err != nil {
			t.Fatal(err)
		}
		_, err := c.Renew(t.Context())
		switch tok, _ := ParseToken(token); {
		case tok.Empty():
			wantReason(t, err, ReasonDatacenter)
		case s.secret.Check(tok, s.clock.now()) != nil:
			wantReason(t, err, ReasonTokenExpired)
		case err != nil:
			t.Error(err)
		default:
			if a := s.reg.last(t); a.TokenID != tok.ID || a.Renewal != nil {
				t.Errorf("%+v", a)
			}
		}
	}
}

// Clocks differ by two minutes either way, for newcomers, members and tokens.
func TestSkew(t *testing.T) {
	for _, off := range []time.Duration{-2 * time.Minute, 2 * time.Minute} {
		s := newSite(t, NewSecret(), newClock())
		skewed := func(c *AgentConfig) { c.Now = func() time.Time { return s.clock.now().Add(off) } }
		c := s.joined(t, skewed)
		if _, err := call(s.addr, c.Client(ProtoRPC, Peer{})); err != nil {
			t.Errorf("%s: %v", off, err)
		}
		// At the very end of the server's certificate.
		s.clock.add(certLife)
		for _, cl := range []time.Duration{-time.Minute, time.Minute, skew} {
			h := s.creds.held.Load()
			if _, err := h.trust.verify(h.joinedCerts(), s.clock.now().Add(cl), 2, false); err != nil {
				t.Errorf("%s after the end: %v", cl, err)
			}
		}
		h := s.creds.held.Load()
		if _, err := h.trust.verify(h.joinedCerts(), s.clock.now().Add(skew+time.Second), 2, false); err == nil {
			t.Error("a certificate has no end")
		}
		if _, err := h.trust.verify(h.joinedCerts(), h.cert.Leaf.NotBefore.Add(-skew-time.Second), 2, false); err == nil {
			t.Error("a certificate has no beginning")
		}
	}
}

func TestRestarts(t *testing.T) {
	s := newSite(t, NewSecret(), newClock())
	dir := t.TempDir()
	s.joined(t, inDir(dir))
	file := filepath.Join(dir, identityFile)
	if info := must(os.Stat(file)); info.Mode().Perm() != 0o600 {
		t.Errorf("%s", info.Mode())
	}
	if left := must(os.ReadDir(dir)); len(left) != 1 {
		t.Errorf("%v", left)
	}
	good := must(os.ReadFile(file))
	key, rest, _ := bytes.Cut(good, []byte("-----BEGIN CERT"))
	// Another node's files are not used; a token moves to another cluster.
	for name, change := range map[string]func(*AgentConfig){
		"another node ID":    func(c *AgentConfig) { c.NodeID = "bbbbbbbb-0000-4000-8000-000000000009" },
		"another datacenter": func(c *AgentConfig) { c.Datacenter = "dc9" },
		"another cluster":    func(c *AgentConfig) { c.Token = text(must(NewSecret().Mint(MintOptions{})).Text()) },
	} {
		c, err := s.agent("", inDir(dir), change)
		if err != nil || c.Ready() {
			t.Errorf("%s: %v, ready %v", name, err, err == nil && c.Ready())
		}
	}
	for name, token := range map[string]string{"the same cluster": s.token(t, MintOptions{}), "garbled": "x"} {
		if c, err := s.agent(token, inDir(dir)); err != nil || !c.Ready() {
			t.Errorf("a token of %s: %v", name, err)
		}
	}
	for name, b := range map[string][]byte{
		"empty": {}, "cut off": good[:len(good)/2], "cut in the root": good[:len(good)-60], "text": []byte("hello"),
		"two of one": append(bytes.Clone(good), good...), "no key": append([]byte("-----BEGIN CERT"), rest...),
		"other parts": append(bytes.Clone(key), "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"...),
	} {
		if err := os.WriteFile(file, b, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := s.agent("", inDir(dir)); err == nil || !strings.Contains(err.Error(), file) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := errors.Join(os.WriteFile(file, good, 0o600), os.Chmod(file, 0o644)); err != nil {
		t.Fatal(err)
	}
	if _, err := s.agent("", inDir(dir)); err == nil || !strings.Contains(err.Error(), "chmod 600") {
		t.Errorf("%v", err)
	}
}

func TestMovedToAnotherCluster(t *testing.T) {
	clk := newClock()
	a, b := newSite(t, NewSecret(), clk), newSite(t, NewSecret(), clk)
	dir := t.TempDir()
	a.joined(t, inDir(dir))
	c := b.joined(t, inDir(dir))
	if c.Self().ClusterID != b.secret.ClusterID() {
		t.Errorf("%v", c.Self())
	}
	if again := must(b.agent("", inDir(dir))); again.Self().ClusterID != b.secret.ClusterID() {
		t.Errorf("%v", again.Self())
	}
}

// A disk that is full costs nothing now: the node goes on with what it has in memory.
func TestCertificateThatCannotBeKept(t *testing.T) {
	s := newSite(t, NewSecret(), newClock())
	dir := filepath.Join(t.TempDir(), "sub")
	var log bytes.Buffer
	c := must(s.agent(s.token(t, MintOptions{}), inDir(dir), func(c *AgentConfig) { c.Logger = slog.New(slog.NewTextHandler(&log, nil)) }))
	if err := os.WriteFile(dir, nil, 0o600); err != nil { // where the folder should be
		t.Fatal(err)
	}
	if _, err := c.Enroll(t.Context()); err != nil || !c.Ready() {
		t.Errorf("%v", err)
	}
	if !strings.Contains(log.String(), "could not be kept") {
		t.Error(log.String())
	}
}

func TestBadAgents(t *testing.T) {
	for name, cfg := range map[string]AgentConfig{
		"no servers": {Node: "n", NodeID: "i", Datacenter: dc},
		"no name":    {NodeID: "i", Datacenter: dc, Servers: func() []string { return nil }},
		"no ID":      {Node: "n", Datacenter: dc, Servers: func() []string { return nil }},
		"no dc":      {Node: "n", NodeID: "i", Servers: func() []string { return nil }},
	} {
		if _, err := NewAgent(cfg); err == nil {
			t.Errorf("%s was accepted", name)
		}
	}
	if _, err := NewServer(ServerConfig{Node: "n", NodeID: "i", Datacenter: dc}); !errors.Is(err, ErrSecret) {
		t.Errorf("%v", err)
	}
	if _, err := NewGate(GateConfig{Secret: fixed()}); err == nil {
		t.Error("a gate without a registrar")
	}
	c := must(NewAgent(AgentConfig{Node: "n", NodeID: "i", Datacenter: dc, Servers: func() []string { return nil }}))
	if _, err := tls.Dial("tcp", "127.0.0.1:1", c.Client(ProtoRPC, Peer{})); err == nil {
		t.Error("a node without a certificate")
	}
}

// fabric joins agents to one gate by pipes, in virtual time.
type fabric struct {
	t     *testing.T
	gate  *Gate
	creds *Credentials
	down  atomic.Bool
	wg    sync.WaitGroup
}

func (f *fabric) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	if f.down.Load() {
		return nil, errors.New("no route to host")
	}
	near, far := net.Pipe()
	f.wg.Go(func() {
		c := tls.Server(far, f.creds.Server(ProtoJoin))
		if err := c.HandshakeContext(ctx); err != nil {
			far.Close()
			return
		}
		f.gate.answer(context.WithoutCancel(ctx), c)
	})
	return near, nil
}

// Certificates are renewed for ever at about half their life; an outage is sat out.
func TestRunRenews(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		secret := fixed()
		reg := &registrar{grant: Grant{GossipKeys: [][]byte{[]byte("k")}}}
		f := &fabric{
			t: t, creds: must(NewServer(ServerConfig{Secret: secret, Node: "s1", NodeID: serverID, Datacenter: dc})),
			gate: must(NewGate(GateConfig{Secret: secret, Datacenter: dc, Registrar: reg})),
		}
		var joins atomic.Int64
		agent := must(NewAgent(AgentConfig{
			Token: text(must(secret.Mint(MintOptions{})).Text()), Servers: func() []string { return []string{"x"} }, Dial: f.dial,
			Node: "web1", NodeID: agentID, Datacenter: dc, OnJoined: func(Joined) { joins.Add(1) },
		}))
		if _, err := agent.Enroll(ctx); err != nil {
			t.Fatal(err)
		}
		for _, c := range []*Credentials{f.creds, agent} {
			c.look = 10 * time.Minute // there are four months to go
			f.wg.Go(func() {
				if err := c.Run(ctx); err != nil {
					t.Error(err)
				}
			})
		}
		for range 90 {
			time.Sleep(24 * time.Hour)
			for _, c := range []*Credentials{f.creds, agent} {
				if left := time.Until(c.NotAfter()); left < 24*time.Hour {
					t.Fatalf("%s has %s left", c.Self(), left)
				}
			}
		}
		if n := joins.Load(); n < 50 || n > 80 { // every 28.8 to 43.2 h, of 2,160
			t.Errorf("%d renewals in 90 days", n)
		}
		// The servers are away for 20 days; then all is well within minutes.
		f.down.Store(true)
		time.Sleep(20 * 24 * time.Hour)
		if time.Now().Before(agent.NotAfter()) {
			t.Error("renewed by nobody")
		}
		f.down.Store(false)
		time.Sleep(8 * time.Minute)
		if left := time.Until(agent.NotAfter()); left < certLife-10*time.Minute {
			t.Errorf("%s left", left)
		}
		cancel()
		f.wg.Wait()
	})
}

// wall is a clock that is set.
type wall struct{ off atomic.Int64 }

func (w *wall) now() time.Time { return time.Now().Round(0).Add(time.Duration(w.off.Load())) }

func (w *wall) set(off time.Duration) { w.off.Store(int64(off)) }

// When the clocks of all hosts are set back by days, or forward, all soon have
// certificates of the time; also while an agent waits, for whichever reason.
func TestP21ClocksAreSet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		secret, clock, own := fixed(), &wall{}, &wall{}
		f := &fabric{
			t: t, creds: must(NewServer(ServerConfig{Secret: secret, Node: "s1", NodeID: serverID, Datacenter: dc, Now: clock.now})),
			gate: must(NewGate(GateConfig{Secret: secret, Datacenter: dc, Registrar: &registrar{}, Now: clock.now})),
		}
		var joins atomic.Int64
		agent := must(NewAgent(AgentConfig{
			Token: text(must(secret.Mint(MintOptions{})).Text()), Servers: func() []string { return []string{"x"} }, Dial: f.dial,
			Node: "web1", NodeID: agentID, Datacenter: dc, Now: func() time.Time { return own.now().Add(time.Duration(clock.off.Load())) }, OnJoined: func(Joined) { joins.Add(1) },
		}))
		if _, err := agent.Enroll(ctx); err != nil {
			t.Fatal(err)
		}
		for _, c := range []*Credentials{f.creds, agent} {
			f.wg.Go(func() { _ = c.Run(ctx) })
		}
		time.Sleep(2 * time.Second)
		for _, off := range []time.Duration{-48 * time.Hour, -49 * time.Hour, time.Hour, 240 * time.Hour, 0} {
			clock.set(off)
			time.Sleep(10 * time.Second)
			for _, c := range []*Credentials{f.creds, agent} {
				h := c.held.Load()
				if _, err := h.trust.verify(h.joinedCerts(), clock.now(), 2, false); err != nil {
					t.Errorf("%s after the clocks were set by %s: %v", c.Self(), off, err)
				}
			}
			time.Sleep(time.Minute)
		}
		before := joins.Load()
		time.Sleep(10 * time.Minute)
		if n := joins.Load() - before; n > 0 {
			t.Errorf("%d renewals more", n)
		}
		// The agent's clock alone is days ahead: it asks again and again, not in a loop.
		own.set(48 * time.Hour)
		time.Sleep(10 * time.Minute)
		if n := joins.Load() - before; n < 2 || n > 30 {
			t.Errorf("%d renewals in ten minutes", n)
		}
		cancel()
		f.wg.Wait()
	})
}

// After a restart a node asks at once, so that it learns what changed meanwhile.
func TestRunAsksAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		secret, dir := fixed(), t.TempDir()
		f := &fabric{
			t: t, creds: must(NewServer(ServerConfig{Secret: secret, Node: "s1", NodeID: serverID, Datacenter: dc})),
			gate: must(NewGate(GateConfig{Secret: secret, Datacenter: dc, Registrar: &registrar{}})),
		}
		cfg := AgentConfig{
			Dir: dir, Token: text(must(secret.Mint(MintOptions{})).Text()), Servers: func() []string { return []string{"x"} }, Dial: f.dial,
			Node: "web1", NodeID: agentID, Datacenter: dc,
		}
		if _, err := must(NewAgent(cfg)).Enroll(t.Context()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour)
		asked := make(chan Joined, 10)
		cfg.OnJoined = func(j Joined) { asked <- j }
		again := must(NewAgent(cfg))
		ctx, cancel := context.WithCancel(t.Context())
		f.wg.Go(func() { _ = again.Run(ctx) })
		begin := time.Now()
		<-asked
		if took := time.Since(begin); took > 2*time.Second {
			t.Errorf("it asked after %s", took)
		}
		time.Sleep(24 * time.Hour)
		if len(asked) != 0 {
			t.Error("it asked again")
		}
		cancel()
		f.wg.Wait()
	})
}

// A node that servers turn away without a word asks why, once in a while.
func TestDoubts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		secret := fixed()
		reg := &registrar{nodes: map[string]bool{}}
		f := &fabric{
			t: t, creds: must(NewServer(ServerConfig{Secret: secret, Node: "s1", NodeID: serverID, Datacenter: dc})),
			gate: must(NewGate(GateConfig{Secret: secret, Datacenter: dc, Registrar: reg})),
		}
		log := &lockedBuffer{}
		agent := must(NewAgent(AgentConfig{
			Token: text(must(secret.Mint(MintOptions{})).Text()), Servers: func() []string { return []string{"x"} }, Dial: f.dial,
			Node: "web1", NodeID: agentID, Datacenter: dc, Logger: slog.New(slog.NewTextHandler(log, nil)),
		}))
		ctx, cancel := context.WithCancel(t.Context())
		if agent.Ready() {
			t.Error("a certificate out of nothing")
		}
		if _, err := agent.Enroll(ctx); err != nil {
			t.Fatal(err)
		}
		f.wg.Go(func() { _ = agent.Run(ctx) })
		time.Sleep(2 * time.Second) // it has asked after its start, and may doubt at once all the same
		asked := func() int {
			reg.mu.Lock()
			defer reg.mu.Unlock()
			return len(reg.asked)
		}
		before := asked()
		near, far := net.Pipe()
		c := &doubted{Conn: near, doubt: agent.doubt}
		far.Close()
		for range 3 {
			_, _ = c.Read(make([]byte, 1))
		}
		time.Sleep(time.Second)
		if n := asked() - before; n != 1 {
			t.Errorf("asked %d times", n)
		}
		reg.with(func() { reg.nodes[agentID] = true })
		for range 100 { // a second
			agent.doubt()
			time.Sleep(10 * time.Millisecond)
		}
		if n := asked() - before; n != 1 {
			t.Errorf("asked %d times, and no doubt is new", n)
		}
		time.Sleep(doubtEvery)
		if out := log.String(); !strings.Contains(out, "node_revoked") {
			t.Errorf("the reason is not told: %s", out)
		}
		// A connection that was of use is no reason to doubt.
		near, far = net.Pipe()
		c = &doubted{Conn: near, doubt: func() { t.Error("doubted") }}
		f.wg.Go(func() {
			_, _ = far.Write([]byte("x"))
			far.Close()
		})
		for range 3 {
			_, _ = c.Read(make([]byte, 1))
		}
		cancel()
		f.wg.Wait()
	})
}
