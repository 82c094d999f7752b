package enroll

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"errors"
	"io"
	"math/big"
	"net"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/weftmesh/weft/connect/identity"
)

// What a newcomer's token and words may be wrong with.
func TestJoinRefused(t *testing.T) {
	s := newSite(t, NewSecret(), newClock())
	revoked := must(s.secret.Mint(MintOptions{Now: s.clock.now()}))
	s.reg.tokens[revoked.ID] = true
	s.reg.nodes["cccccccc-0000-4000-8000-000000000001"] = true
	good := s.token(t, MintOptions{})
	for name, tc := range map[string]struct {
		token  string
		change func(*AgentConfig)
		want   Reason
	}{
		"expired":          {token: s.token(t, MintOptions{Now: s.clock.now().Add(-48 * time.Hour)}), want: ReasonTokenExpired},
		"revoked":          {token: revoked.Text(), want: ReasonTokenRevoked},
		"wrong datacenter": {token: good, change: func(c *AgentConfig) { c.Datacenter = "dc2" }, want: ReasonDatacenter},
		"revoked node":     {token: good, change: func(c *AgentConfig) { c.NodeID = "cccccccc-0000-4000-8000-000000000001" }, want: ReasonNodeRevoked},
	} {
		t.Run(name, func(t *testing.T) {
			c, err := s.agent(tc.token, func(cfg *AgentConfig) {
				if tc.change != nil {
					tc.change(cfg)
				}
			})
			if err != nil {
				t.Fatal(err)
			}
			_, err = c.Enroll(t.Context())
			wantReason(t, err, tc.want)
			if c.Ready() {
				t.Error("it has a certificate all the same")
			}
		})
	}
	for name, tc := range map[string]struct{ token, say string }{
		"truncated":         {good[:60], "cut off"},
		"none":              {"", "weft join-token"},
		"the secret":        {s.secret.Text(), "servers only"},
		"another cluster's": {must(NewSecret().Mint(MintOptions{Now: s.clock.now()})).Text(), "another cluster"},
	} {
		c := must(s.agent(tc.token))
		_, err := c.Enroll(t.Context())
		if err == nil || !strings.Contains(err.Error(), tc.say) {
			t.Errorf("%s: %v", name, err)
		}
	}
	s.reg.with(func() { s.reg.refuse = errors.New("the disk is on fire at /secret/path") })
	_, err := must(s.agent(good)).Enroll(t.Context())
	wantReason(t, err, ReasonUnavailable)
	if strings.Contains(err.Error(), "fire") {
		t.Errorf("a stranger is told %v", err)
	}
	if r := new(Refusal); !errors.As(err, &r) || r.Lasting() {
		t.Error("an unavailable server passes")
	}
}

// raw speaks weft-join/1 by hand.
func (s *site) raw(cfg *tls.Config, req any) (*reply, error) {
	if cfg == nil {
		cfg = &tls.Config{InsecureSkipVerify: true, NextProtos: []string{ProtoJoin}}
	}
	c, err := tls.Dial("tcp", s.addr, cfg)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	if b, ok := req.([]byte); ok {
		_, err = c.Write(b)
	} else {
		err = writeFrame(c, req, 1<<20)
	}
	if err != nil {
		return nil, err
	}
	var rep reply
	return &rep, readFrame(c, &rep, maxReply)
}

func csr() []byte { return must(newCSR(must(identity.NewKey()))) }

// What the client half would never send.
func TestGateRefusesOddRequests(t *testing.T) {
	s := newSite(t, NewSecret(), newClock())
	token := s.token(t, MintOptions{})
	good := request{Token: token, CSR: csr(), Node: "web1", NodeID: agentID, Datacenter: dc}
	ed := must(x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, must(rsaKey())))
	flipped := bytes.Clone(good.CSR)
	flipped[len(flipped)-1] ^= 1
	for name, tc := range map[string]struct {
		change func(*request)
		want   Reason
	}{
		"fine":              {func(*request) {}, ""},
		"no token":          {func(r *request) { r.Token = "" }, ReasonNeedToken},
		"truncated token":   {func(r *request) { r.Token = r.Token[:50] }, ReasonBadToken},
		"foreign token":     {func(r *request) { r.Token = must(NewSecret().Mint(MintOptions{Now: s.clock.now()})).Text() }, ReasonBadToken},
		"secret as token":   {func(r *request) { r.Token = s.secret.Text() }, ReasonBadToken},
		"no name":           {func(r *request) { r.Node = "" }, ReasonBadRequest},
		"name with newline": {func(r *request) { r.Node = "a\nlevel=ERROR" }, ReasonBadRequest},
		"long name":         {func(r *request) { r.Node = strings.Repeat("n", 129) }, ReasonBadRequest},
		"no node ID":        {func(r *request) { r.NodeID = "" }, ReasonBadRequest},
		"path as node ID":   {func(r *request) { r.NodeID = "../server" }, ReasonBadRequest},
		"no UUID":           {func(r *request) { r.NodeID = "not-a-uuid" }, ReasonBadRequest},
		"UUID in capitals":  {func(r *request) { r.NodeID = strings.ToUpper(agentID) }, ReasonBadRequest},
		"UUID in braces":    {func(r *request) { r.NodeID = "{" + agentID + "}" }, ReasonBadRequest},
		"no CSR":            {func(r *request) { r.CSR = nil }, ReasonBadRequest},
		"garbled CSR":       {func(r *request) { r.CSR = flipped }, ReasonBadRequest},
		"an RSA key":        {func(r *request) { r.CSR = ed }, ReasonBadRequest},
	} {
		req := good
		tc.change(&req)
		rep, err := s.raw(nil, &req)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		switch {
		case tc.want == "" && rep.Refused != nil:
			t.Errorf("%s: %v", name, rep.Refused)
		case tc.want != "" && (rep.Refused == nil || rep.Refused.Reason != tc.want || rep.Certificate != nil || rep.GossipKeys != nil):
			t.Errorf("%s: %+v, want %s", name, rep.Refused, tc.want)
		}
	}
	for name, b := range map[string][]byte{
		"huge":    {0xff, 0xff, 0xff, 0xff},
		"17 KiB":  binary.BigEndian.AppendUint32(nil, 17<<10),
		"empty":   {0, 0, 0, 0},
		"garbage": append(binary.BigEndian.AppendUint32(nil, 4), 0xc1, 0xc1, 0xc1, 0xc1),
		"trailer": append(binary.BigEndian.AppendUint32(nil, 2), 0x80, 0x80),
	} {
		if _, err := s.raw(nil, b); err == nil {
			t.Errorf("%s was answered", name)
		}
	}
}

// The name in a request for a certificate is never used: the server makes it.
func TestTheCertificateIsOfTheServersMaking(t *testing.T) {
	s := newSite(t, NewSecret(), newClock())
	key := must(identity.NewKey())
	wish := must(x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		Subject:  pkix.Name{CommonName: "s1"},
		DNSNames: []string{"server.dc1.consul"},
		URIs:     []*url.URL{identity.ServerNodeID{TrustDomain: trustDomain(s.secret.ClusterID()), Datacenter: dc, Node: serverID}.URI()},
	}, key))
	rep := must(s.raw(nil, &request{Token: s.token(t, MintOptions{}), CSR: wish, Node: "web1", NodeID: agentID, Datacenter: dc}))
	leaf := must(x509.ParseCertificate(rep.Certificate))
	p := must(peerIn(leaf))
	now := s.clock.now()
	if p.Role != RoleAgent || p.NodeID != agentID || leaf.Subject.CommonName != "web1" || len(leaf.DNSNames) != 0 || leaf.IsCA || len(leaf.URIs) != 1 {
		t.Errorf("%v, %v", p, leaf.Subject)
	}
	if !leaf.NotBefore.Equal(now.Add(-5*time.Minute)) || !leaf.NotAfter.Equal(now.Add(72*time.Hour)) {
		t.Errorf("%s to %s", leaf.NotBefore, leaf.NotAfter)
	}
}

// An agent is no server, whichever way it turns.
func TestAgentIsNoServer(t *testing.T) {
	s := newSite(t, NewSecret(), newClock())
	agent := s.joined(t)
	if _, err := call(s.addr, agent.Client(ProtoRPC, Peer{})); err != nil {
		t.Fatal(err)
	}
	if _, err := call(s.addr, agent.Client(ProtoRaft, Peer{})); err == nil {
		t.Error("an agent spoke Raft")
	}
	// It listens and poses as a server.
	fake := &site{secret: s.secret, clock: s.clock, reg: s.reg}
	fake.listen(t, agent.Server(ProtoRPC, ProtoRaft, ProtoJoin), must(NewGate(GateConfig{Secret: NewSecret(), Datacenter: dc, Registrar: s.reg})))
	for _, proto := range []string{ProtoRPC, ProtoRaft} {
		if _, err := call(fake.addr, s.creds.Client(proto, Peer{})); err == nil {
			t.Errorf("an agent was taken for a server by %s", proto)
		}
	}
	other := must(s.agent(s.token(t, MintOptions{}), func(c *AgentConfig) {
		c.NodeID = "bbbbbbbb-0000-4000-8000-000000000002"
		c.Servers = func() []string { return []string{fake.addr} }
	}))
	if _, err := other.Enroll(t.Context()); err == nil || other.Ready() {
		t.Errorf("a newcomer joined at an agent: %v", err)
	}
	// Its token gives no secret.
	if _, err := ParseSecret(s.token(t, MintOptions{})); err == nil {
		t.Error("a token was taken for a secret")
	}
}

// stranger makes a certificate as it likes.
func stranger(t *testing.T, key identityKey, by *x509.Certificate, byKey identityKey, change func(*x509.Certificate)) tls.Certificate {
	t.Helper()
	c := &x509.Certificate{
		SerialNumber: big.NewInt(7), Subject: pkix.Name{CommonName: "x"}, NotBefore: newClock().now().Add(-time.Hour), NotAfter: newClock().now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, BasicConstraintsValid: true,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}
	change(c)
	if by == nil {
		by = c
	}
	der := must(x509.CreateCertificate(rand.Reader, c, by, key.Public(), byKey))
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func TestStrangersAreRefused(t *testing.T) {
	s := newSite(t, NewSecret(), newClock())
	key := must(identity.NewKey())
	id := func(c *x509.Certificate) {
		c.URIs = []*url.URL{identity.ServerNodeID{TrustDomain: trustDomain(s.secret.ClusterID()), Datacenter: dc, Node: serverID}.URI()}
	}
	root := must(s.secret.root())
	agent := s.joined(t).held.Load().cert
	other := must(NewServer(ServerConfig{Secret: NewSecret(), Node: "s1", NodeID: serverID, Datacenter: dc, Now: s.clock.now})).held.Load().cert
	long := stranger(t, key, nil, key, id)
	for len(long.Certificate) < 180 {
		long.Certificate = append(long.Certificate, root.cert.Raw)
	}
	fat := stranger(t, key, nil, key, func(c *x509.Certificate) {
		id(c)
		c.Subject.Organization = []string{strings.Repeat("x", 100<<10)}
	})
	for name, cert := range map[string]*tls.Certificate{
		"none":               nil,
		"another cluster's":  other,
		"self-signed":        ptr(stranger(t, key, nil, key, id)),
		"signed by an agent": ptr(stranger(t, key, agent.Leaf, agent.PrivateKey.(identityKey), id)),
		"a service's": ptr(stranger(t, key, root.cert, root.key, func(c *x509.Certificate) {
			c.URIs = []*url.URL{identity.ServiceID{TrustDomain: trustDomain(s.secret.ClusterID()), Datacenter: dc, Service: "web"}.URI()}
		})),
		"no name":          ptr(stranger(t, key, root.cert, root.key, func(*x509.Certificate) {})),
		"two names":        ptr(stranger(t, key, root.cert, root.key, func(c *x509.Certificate) { id(c); id2 := c.URIs[0]; c.URIs = append(c.URIs, id2) })),
		"the root":         {Certificate: [][]byte{root.cert.Raw}, PrivateKey: root.key},
		"expired":          ptr(stranger(t, key, root.cert, root.key, func(c *x509.Certificate) { id(c); c.NotAfter = s.clock.now().Add(-10 * time.Minute) })),
		"of tomorrow":      ptr(stranger(t, key, root.cert, root.key, func(c *x509.Certificate) { id(c); c.NotBefore = s.clock.now().Add(10 * time.Minute) })),
		"for servers only": ptr(stranger(t, key, root.cert, root.key, func(c *x509.Certificate) { id(c); c.ExtKeyUsage = c.ExtKeyUsage[1:] })),
		"100 kB of chain":  &long,
		"100 kB of leaf":   &fat,
	} {
		for _, proto := range []string{ProtoRPC, ProtoRaft} {
			cfg := &tls.Config{InsecureSkipVerify: true, NextProtos: []string{proto}}
			if cert != nil {
				cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return cert, nil }
			}
			if _, err := call(s.addr, cfg); err == nil {
				t.Errorf("%s came in by %s", name, proto)
			}
		}
		switch name {
		case "none", "expired", "of tomorrow":
			continue // which is right for a newcomer, for one who was away, and after clocks were set back
		}
		cfg := &tls.Config{InsecureSkipVerify: true, NextProtos: []string{ProtoJoin}}
		cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return cert, nil }
		if rep, err := s.raw(cfg, &request{CSR: csr(), Node: "x", NodeID: serverID, Datacenter: dc}); err == nil && rep.Refused == nil {
			t.Errorf("%s got a certificate", name)
		}
	}
	for _, protos := range [][]string{nil, {"http/1.1"}, {"weft-raft/2"}} {
		if _, err := call(s.addr, &tls.Config{InsecureSkipVerify: true, NextProtos: protos}); err == nil {
			t.Errorf("protocols %q were served", protos)
		}
	}
	if _, err := call(s.addr, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{ProtoRPC}, MaxVersion: tls.VersionTLS12}); err == nil {
		t.Error("TLS 1.2 was served")
	}
}

func ptr[T any](v T) *T { return &v }

// A client that offers several protocols is held to what is demanded for the one
// that is chosen.
func TestOfferingJoinOpensNothingElse(t *testing.T) {
	s := newSite(t, NewSecret(), newClock())
	for _, protos := range [][]string{{ProtoJoin, ProtoRPC}, {ProtoRPC, ProtoJoin}, {ProtoJoin, ProtoRaft}} {
		if cs, err := call(s.addr, &tls.Config{InsecureSkipVerify: true, NextProtos: protos}); err == nil {
			t.Errorf("%q: %q without a certificate", protos, cs.NegotiatedProtocol)
		}
	}
}

// Somebody with another root, or with a copy of ours, answers at the address.
func TestManInTheMiddle(t *testing.T) {
	s := newSite(t, NewSecret(), newClock())
	evil := newSite(t, NewSecret(), s.clock)
	atEvil := func(c *AgentConfig) { c.Servers = func() []string { return []string{evil.addr} } }
	c := must(s.agent(s.token(t, MintOptions{}), atEvil))
	if _, err := c.Enroll(t.Context()); err == nil || !strings.Contains(err.Error(), "is not of cluster "+s.secret.ClusterID()) {
		t.Errorf("%v", err)
	}
	// It sends the true root behind its own leaf.
	cert := *evil.creds.held.Load().cert
	cert.Certificate = [][]byte{cert.Leaf.Raw, must(s.secret.root()).cert.Raw}
	fake := &site{secret: evil.secret, clock: s.clock, reg: evil.reg}
	fake.listen(t, &tls.Config{Certificates: []tls.Certificate{cert}, NextProtos: []string{ProtoJoin}}, must(NewGate(GateConfig{Secret: evil.secret, Datacenter: dc, Registrar: evil.reg})))
	c = must(s.agent(s.token(t, MintOptions{}), func(c *AgentConfig) { c.Servers = func() []string { return []string{fake.addr} } }))
	if _, err := c.Enroll(t.Context()); err == nil || c.Ready() {
		t.Errorf("%v", err)
	}
	// One who has joined already renews at nobody else either.
	dir := t.TempDir()
	s.joined(t, inDir(dir))
	s.clock.add(100 * time.Hour)
	c = must(s.agent("", inDir(dir), atEvil))
	if _, err := c.Enroll(t.Context()); err == nil {
		t.Error("it renewed at a stranger")
	}
	evil.reg.with(func() {
		if len(evil.reg.asked) != 0 {
			t.Errorf("the stranger's registrar was asked: %+v", evil.reg.asked)
		}
	})
}

// A server that answers nonsense gets nothing into use.
func TestOddAnswers(t *testing.T) {
	s := newSite(t, NewSecret(), newClock())
	root := must(s.secret.root())
	key := must(identity.NewKey())
	otherKey := must(root.issue(Peer{Role: RoleAgent, Node: "web1", NodeID: agentID, Datacenter: dc, ClusterID: s.secret.ClusterID()}, key.Public(), s.clock.now())).Raw
	asServer := must(root.issue(Peer{Role: RoleServer, Node: "web1", NodeID: agentID, Datacenter: dc, ClusterID: s.secret.ClusterID()}, key.Public(), s.clock.now())).Raw
	for name, b := range map[string][]byte{
		"nothing":       nil,
		"empty":         frameOf(&reply{}),
		"garbage":       {0, 0, 0, 1, 0xc1},
		"too much":      {0x7f, 0xff, 0xff, 0xff},
		"another's key": frameOf(&reply{Certificate: otherKey}),
		"a server's":    frameOf(&reply{Certificate: asServer}),
		"the root":      frameOf(&reply{Certificate: root.cert.Raw}),
		"a refusal":     frameOf(&reply{Refused: &Refusal{Reason: Reason(strings.Repeat("r", 9999)), Message: "\x1b[2J" + strings.Repeat("m", 9999)}, Certificate: otherKey}),
	} {
		addr := s.answering(t, b)
		c := must(s.agent(s.token(t, MintOptions{}), func(c *AgentConfig) { c.Servers = func() []string { return []string{addr} } }))
		_, err := c.Enroll(t.Context())
		if err == nil || c.Ready() {
			t.Errorf("%s was taken", name)
		}
		if err != nil && (len(err.Error()) > 2000 || strings.Contains(err.Error(), "\x1b")) {
			t.Errorf("%s: %q", name, err)
		}
	}
}

func frameOf(v any) []byte {
	var b bytes.Buffer
	if err := writeFrame(&b, v, maxReply); err != nil {
		panic(err)
	}
	return b.Bytes()
}

// answering is a server of the cluster that gives one fixed answer.
func (s *site) answering(t *testing.T, b []byte) string {
	t.Helper()
	ln := must(tls.Listen("tcp", "127.0.0.1:0", s.creds.Server(ProtoJoin)))
	var wg sync.WaitGroup
	wg.Go(func() {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(20 * time.Second))
		var req request
		if readFrame(c, &req, maxRequest) == nil {
			_, _ = c.Write(b)
		}
	})
	t.Cleanup(func() {
		_ = ln.Close()
		wg.Wait()
	})
	return ln.Addr().String()
}

// One who connects and says nothing, or stops in the middle, is left after a while.
func TestSilence(t *testing.T) {
	gate := must(NewGate(GateConfig{Secret: fixed(), Datacenter: dc, Registrar: &registrar{}}))
	for name, said := range map[string][]byte{"nothing": nil, "half a length": {0, 0}, "half a frame": {0, 0, 1, 0, 0x80}} {
		inBubble(t, name, func(t *testing.T) {
			near, far := net.Pipe()
			creds := must(NewServer(ServerConfig{Secret: fixed(), Node: "s1", NodeID: serverID, Datacenter: dc}))
			server := tls.Server(far, creds.Server(ProtoJoin))
			client := tls.Client(near, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{ProtoJoin}, Time: time.Now})
			var wg sync.WaitGroup
			wg.Go(func() {
				if err := server.HandshakeContext(t.Context()); err != nil {
					t.Error(err)
				}
				gate.answer(t.Context(), server)
			})
			if err := client.HandshakeContext(t.Context()); err != nil {
				t.Fatal(err)
			}
			begin := time.Now()
			if _, err := client.Write(said); err != nil {
				t.Fatal(err)
			}
			_, err := io.ReadAll(client)
			if took := time.Since(begin); err == nil && took > requestTimeout || took > 2*requestTimeout {
				t.Errorf("it was waited for %s, %v", took, err)
			}
			client.Close()
			wg.Wait()
		})
	}
}

func TestGateLimits(t *testing.T) {
	l := newLimits()
	addr := func(ip string) net.Addr { return &net.TCPAddr{IP: net.ParseIP(ip), Port: 1} }
	var leave []func()
	for range waitingPerSource {
		f, ok := l.enter(addr("10.0.0.1"))
		if !ok {
			t.Fatal("too early")
		}
		leave = append(leave, f)
	}
	if _, ok := l.enter(addr("10.0.0.1")); ok {
		t.Error("one source holds all places")
	}
	if f, ok := l.enter(addr("10.0.0.2")); !ok {
		t.Error("another source has no place")
	} else {
		f()
	}
	for _, f := range leave {
		f()
	}
	n := 0
	for l.allow(addr("10.0.0.3")) && n < 2*sourceAtOnce {
		n++
	}
	if n < sourceAtOnce || n > sourceAtOnce+50 {
		t.Errorf("%d at once", n)
	}
	if !l.allow(addr("10.0.0.4")) {
		t.Error("another source has to wait")
	}
	for i := range 3 * (maxIdleSources + waitingMost) {
		l.allow(&net.TCPAddr{IP: net.IPv4(11, byte(i>>16), byte(i>>8), byte(i))})
	}
	if len(l.sources) > maxIdleSources+waitingMost {
		t.Errorf("%d sources are remembered", len(l.sources))
	}
}

// However many strangers ask, a node that has a certificate renews it.
func TestStrangersDoNotHoldUpMembers(t *testing.T) {
	s := newSite(t, NewSecret(), newClock())
	member := must(s.agent(s.token(t, MintOptions{})))
	must(member.Enroll(t.Context()))
	gate := must(NewGate(GateConfig{Secret: s.secret, Datacenter: dc, Registrar: s.reg, Now: s.clock.now}))
	for i := range waitingMost {
		if _, ok := gate.limits.enter(&net.TCPAddr{IP: net.IPv4(10, 0, byte(i>>8), byte(i))}); !ok {
			t.Fatal("too early")
		}
	}
	crowded := &site{secret: s.secret, clock: s.clock, reg: s.reg}
	crowded.listen(t, s.creds.Server(ProtoJoin), gate)
	if _, err := must(crowded.agent(s.token(t, MintOptions{}))).Enroll(t.Context()); err == nil {
		t.Error("a stranger found a place where all were taken")
	}
	s.addr = crowded.addr
	if _, err := member.Renew(t.Context()); err != nil {
		t.Error("a member was kept from its renewal:", err)
	}
}

// A node that is told to wait asks again, and does.
func TestLimitedRequestsAreAnswered(t *testing.T) {
	s := newSite(t, NewSecret(), newClock())
	gate := must(NewGate(GateConfig{Secret: s.secret, Datacenter: dc, Registrar: s.reg, Now: s.clock.now}))
	for gate.limits.allow(&net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)}) {
	}
	tight := &site{secret: s.secret, clock: s.clock, reg: s.reg}
	tight.listen(t, s.creds.Server(ProtoJoin), gate)
	_, err := must(tight.agent(s.token(t, MintOptions{}))).Enroll(t.Context())
	// 50 more a second may be asked: one of a few attempts is over the limit.
	for range 200 {
		if err != nil {
			break
		}
		_, err = must(tight.agent(s.token(t, MintOptions{}))).Enroll(t.Context())
	}
	if err != nil {
		wantReason(t, err, ReasonLimited)
	}
}

// Several servers: one that is gone or does not answer costs an attempt, no more.
func TestOtherServersAreTried(t *testing.T) {
	s := newSite(t, NewSecret(), newClock())
	dead := must(net.Listen("tcp", "127.0.0.1:0"))
	dead.Close()
	down := newSite(t, s.secret, s.clock)
	down.reg.refuse = Refuse(ReasonUnavailable, "no leader")
	for range 4 { // in any order
		c := must(s.agent(s.token(t, MintOptions{}), func(c *AgentConfig) {
			c.Servers = func() []string { return []string{dead.Addr().String(), down.addr, s.addr} }
		}))
		if _, err := c.Enroll(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	c := must(s.agent(s.token(t, MintOptions{}), func(c *AgentConfig) { c.Servers = func() []string { return nil } }))
	if _, err := c.Enroll(t.Context()); err == nil || !strings.Contains(err.Error(), "retry_join") {
		t.Errorf("%v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := must(s.agent(s.token(t, MintOptions{}))).Enroll(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}
