package identity

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

func clock() time.Time { return now }

func options(cert *tls.Certificate, bundle *Bundle) Options {
	return Options{
		Certificate: func() *tls.Certificate { return cert },
		Bundle:      func() *Bundle { return bundle },
		Now:         clock,
	}
}

// result is how one connection went: what each end says of the handshake, and
// whether a byte came through and back. A client of TLS 1.3 is done before the
// server has judged it, so its error may be that of the first read.
type result struct {
	client, server           error
	clientState, serverState tls.ConnectionState
}

// connect runs one connection over loopback. wrap may spoil the client's bytes.
func connect(t *testing.T, server, client *tls.Config, wrap func(net.Conn) net.Conn) result {
	t.Helper()
	return over(t, server, func(raw net.Conn, r *result) {
		if wrap != nil {
			raw = wrap(raw)
		}
		c := tls.Client(raw, client)
		defer func() { _ = c.Close() }()
		if _, r.client = c.Write([]byte("x")); r.client == nil {
			_, r.client = io.ReadFull(c, make([]byte, 1))
		}
		r.clientState = c.ConnectionState()
	})
}

// over accepts one connection with a config and lets dial speak on the other end.
func over(t *testing.T, server *tls.Config, dial func(net.Conn, *result)) result {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ln.Close() }()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	var r result
	done := make(chan struct{})
	go func() {
		defer close(done)
		raw, err := ln.Accept()
		if err != nil {
			r.server = err
			return
		}
		s := tls.Server(raw, server)
		defer func() { _ = s.Close() }()
		if r.server = s.HandshakeContext(ctx); r.server == nil {
			_, _ = io.CopyN(s, s, 1)
		}
		r.serverState = s.ConnectionState()
	}()
	raw, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	_ = raw.SetDeadline(time.Now().Add(10 * time.Second))
	dial(raw, &r)
	_ = raw.Close()
	<-done
	return r
}

func db() ServiceID { return ServiceID{td, "dc1", "db"} }

func TestHandshake(t *testing.T) {
	root := newAuthority(t, td)
	bundle := root.bundle(t, td)
	so, co := options(root.leaf(t, db()), bundle), options(root.leaf(t, web()), bundle)
	so.NextProtos, co.NextProtos = []string{"weft-tunnel/1"}, []string{"weft-tunnel/1"}
	r := connect(t, ServerConfig(so), ClientConfig(co, db()), nil)
	if r.client != nil || r.server != nil {
		t.Fatalf("client: %v, server: %v", r.client, r.server)
	}
	if id, err := PeerID(r.serverState); err != nil || id != web() {
		t.Errorf("the server sees %v, %v", id, err)
	}
	if id, err := PeerID(r.clientState); err != nil || id != db() {
		t.Errorf("the client sees %v, %v", id, err)
	}
	if v := r.serverState.Version; v != tls.VersionTLS13 {
		t.Errorf("version %s", tls.VersionName(v))
	}
	if c := r.serverState.CurveID; c != tls.X25519MLKEM768 {
		t.Errorf("key exchange %v is not post-quantum", c)
	}
	if n := r.serverState.ServerName; n != "db.default.dc1.internal."+td {
		t.Errorf("server name %q", n)
	}
	if p := r.serverState.NegotiatedProtocol; p != "weft-tunnel/1" {
		t.Errorf("protocol %q", p)
	}
	if _, err := PeerID(tls.ConnectionState{}); err == nil {
		t.Error("an unfinished handshake has no peer")
	}
}

// Everything that a client can show, and what the server says of it.
func TestServerRefuses(t *testing.T) {
	root, foreign := newAuthority(t, td), newAuthority(t, "other.consul")
	bundle := root.bundle(t, td)
	serverOptions := options(root.leaf(t, db()), bundle)
	for name, tc := range map[string]struct {
		cert *tls.Certificate
		want Reason
	}{
		"good":                         {cert: root.leaf(t, web())},
		"no certificate":               {want: ReasonNoCertificate},
		"foreign trust domain":         {cert: foreign.leaf(t, ServiceID{"other.consul", "dc1", "web"}), want: ReasonTrustDomain},
		"our domain, foreign root":     {cert: foreign.leaf(t, web()), want: ReasonUnknownAuthority},
		"foreign domain, our root":     {cert: root.leaf(t, ServiceID{"other.consul", "dc1", "web"}), want: ReasonTrustDomain},
		"expired":                      {cert: root.leaf(t, web(), func(c *x509.Certificate) { c.NotAfter = now.Add(-time.Minute) }), want: ReasonExpired},
		"not yet valid":                {cert: root.leaf(t, web(), func(c *x509.Certificate) { c.NotBefore = now.Add(time.Minute) }), want: ReasonNotYetValid},
		"two URIs":                     {cert: root.leaf(t, web(), func(c *x509.Certificate) { c.URIs = append(c.URIs, db().URI()) }), want: ReasonBadIdentity},
		"CA:TRUE":                      {cert: root.leaf(t, web(), func(c *x509.Certificate) { c.IsCA = true }), want: ReasonNotALeaf},
		"server usage only":            {cert: root.leaf(t, web(), func(c *x509.Certificate) { c.ExtKeyUsage = c.ExtKeyUsage[1:] }), want: ReasonUsage},
		"an agent":                     {cert: root.leaf(t, AgentID{td, "dc1", "n1"}), want: ReasonBadIdentity},
		"the root itself, with no key": {cert: &tls.Certificate{Certificate: [][]byte{root.cert.Raw}, PrivateKey: must(NewKey())}, want: ReasonByPeer},
	} {
		for frag, wrap := range map[string]func(net.Conn) net.Conn{"": nil, ", bytes": oneByteWrites, ", records": smallRecords} {
			t.Run(name+frag, func(t *testing.T) {
				client := bare(tc.cert)
				r := connect(t, ServerConfig(serverOptions), client, wrap)
				if tc.want == "" {
					if r.client != nil || r.server != nil {
						t.Errorf("client: %v, server: %v", r.client, r.server)
					}
					return
				}
				if tc.want == ReasonByPeer { // the client's own stack already refuses to lie
					if r.server == nil || r.client == nil {
						t.Error("accepted")
					}
					return
				}
				if r.client == nil || ReasonOf(r.server) != tc.want {
					t.Errorf("client: %v, server: %v, want %q", r.client, r.server, tc.want)
				}
			})
		}
	}
}

// bare is a client that trusts anybody and shows what it is told to.
func bare(cert *tls.Certificate) *tls.Config {
	return &tls.Config{
		InsecureSkipVerify: true, //nolint:gosec // the server is under test
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			if cert == nil {
				return &tls.Certificate{}, nil
			}
			return cert, nil
		},
	}
}

// Everything that a server can show, and what the client says of it.
func TestClientRefuses(t *testing.T) {
	root, foreign := newAuthority(t, td), newAuthority(t, "other.consul")
	bundle := root.bundle(t, td)
	for name, tc := range map[string]struct {
		cert *tls.Certificate
		want Reason
		ask  ServiceID
	}{
		"good":                     {cert: root.leaf(t, db()), ask: db()},
		"another service":          {cert: root.leaf(t, web()), ask: db(), want: ReasonWrongService},
		"another datacenter":       {cert: root.leaf(t, ServiceID{td, "dc2", "db"}), ask: db(), want: ReasonWrongService},
		"other case":               {cert: root.leaf(t, ServiceID{td, "dc1", "DB"}), ask: db(), want: ReasonWrongService},
		"nobody asked for":         {cert: root.leaf(t, db()), want: ReasonWrongService},
		"foreign trust domain":     {cert: foreign.leaf(t, ServiceID{"other.consul", "dc1", "db"}), ask: db(), want: ReasonTrustDomain},
		"foreign one asked for":    {cert: foreign.leaf(t, ServiceID{"other.consul", "dc1", "db"}), ask: ServiceID{"other.consul", "dc1", "db"}, want: ReasonTrustDomain},
		"our domain, foreign root": {cert: foreign.leaf(t, db()), ask: db(), want: ReasonUnknownAuthority},
		"expired":                  {cert: root.leaf(t, db(), func(c *x509.Certificate) { c.NotAfter = now.Add(-time.Minute) }), ask: db(), want: ReasonExpired},
		"not yet valid":            {cert: root.leaf(t, db(), func(c *x509.Certificate) { c.NotBefore = now.Add(time.Minute) }), ask: db(), want: ReasonNotYetValid},
		"two URIs":                 {cert: root.leaf(t, db(), func(c *x509.Certificate) { c.URIs = append(c.URIs, web().URI()) }), ask: db(), want: ReasonBadIdentity},
		"CA:TRUE":                  {cert: root.leaf(t, db(), func(c *x509.Certificate) { c.IsCA = true }), ask: db(), want: ReasonNotALeaf},
		"client usage only":        {cert: root.leaf(t, db(), func(c *x509.Certificate) { c.ExtKeyUsage = c.ExtKeyUsage[:1] }), ask: db(), want: ReasonUsage},
		"the servers":              {cert: root.leaf(t, ServerID{td, "dc1"}), ask: db(), want: ReasonBadIdentity},
	} {
		t.Run(name, func(t *testing.T) {
			server := &tls.Config{Certificates: []tls.Certificate{*tc.cert}, ClientAuth: tls.RequireAnyClientCert}
			r := connect(t, server, ClientConfig(options(root.leaf(t, web()), bundle), tc.ask), nil)
			if ReasonOf(r.client) != tc.want {
				t.Errorf("client: %v, want %q", r.client, tc.want)
			}
			if tc.want != "" && !says(r.server, ReasonByPeer) {
				t.Errorf("the server says %q: %v", ReasonOf(r.server), r.server)
			}
		})
	}
}

// says compares reasons. A refusal by the peer may also be seen as a closed
// connection: its alert is lost when it had not read everything, and crypto/tls
// sends none when a client finds no certificate to show.
func says(err error, want Reason) bool {
	got := ReasonOf(err)
	return got == want || (want == ReasonByPeer && got == ReasonClosed)
}

func TestNothingToShowOrTrust(t *testing.T) {
	root := newAuthority(t, td)
	bundle := root.bundle(t, td)
	full := options(root.leaf(t, db()), bundle)
	for name, tc := range map[string]struct {
		server, client Options
		sWant, cWant   Reason
	}{
		"server without certificate": {server: options(nil, bundle), client: full, sWant: ReasonNoOwnCert, cWant: ReasonByPeer},
		"client without certificate": {server: full, client: options(nil, bundle), sWant: ReasonByPeer, cWant: ReasonNoOwnCert},
		"server without bundle":      {server: options(root.leaf(t, db()), nil), client: full, sWant: ReasonNoBundle, cWant: ReasonByPeer},
		"client without bundle":      {server: full, client: options(root.leaf(t, db()), nil), sWant: ReasonByPeer, cWant: ReasonNoBundle},
		"no options":                 {client: full, sWant: ReasonNoOwnCert, cWant: ReasonByPeer},
	} {
		t.Run(name, func(t *testing.T) {
			r := connect(t, ServerConfig(tc.server), ClientConfig(tc.client, db()), nil)
			if !says(r.server, tc.sWant) || !says(r.client, tc.cWant) {
				t.Errorf("server %q: %v\nclient %q: %v", ReasonOf(r.server), r.server, ReasonOf(r.client), r.client)
			}
		})
	}
}

// The name that a client asks for and the service it reaches must agree.
func TestServerName(t *testing.T) {
	root := newAuthority(t, td)
	bundle := root.bundle(t, td)
	server := ServerConfig(options(root.leaf(t, db()), bundle))
	for name, want := range map[string]Reason{
		"": "", "db.example.com": "", "db": "", "127.0.0.1": "",
		"db.default.dc1.internal." + td:        "",
		"DB.default.DC1.internal." + td:        "",
		"db.default.dc1.internal." + td + ".":  "", // crypto/tls drops the dot
		"v2.db.default.dc1.internal." + td:     "",
		"web.default.dc1.internal." + td:       ReasonWrongService,
		"db.default.dc2.internal." + td:        ReasonWrongService,
		"xdb.default.dc1.internal." + td:       ReasonWrongService,
		"db.other.dc1.internal." + td:          ReasonWrongService,
		"db.default.dc1.internal.x.consul":     "",
		"web.default.dc1.INTERNAL." + td:       ReasonWrongService,
		"db.default.dc1.internal.x." + td:      "",
		"web.default.dc1.internal." + td + ".": ReasonWrongService,
	} {
		client := bare(root.leaf(t, web()))
		client.ServerName = name
		if r := connect(t, server, client, nil); ReasonOf(r.server) != want || (want == "") != (r.client == nil) {
			t.Errorf("%q: server: %v, client: %v, want %q", name, r.server, r.client, want)
		}
	}
	odd := ServiceID{td, "dc1", "a b"}
	r := connect(t, ServerConfig(options(root.leaf(t, odd), bundle)), ClientConfig(options(root.leaf(t, web()), bundle), odd), nil)
	if r.client != nil || r.server != nil || r.serverState.ServerName != "" {
		t.Errorf("a name that no host can have: client: %v, server: %v, SNI %q", r.client, r.server, r.serverState.ServerName)
	}
}

func TestP27OldVersionsAndPlaintext(t *testing.T) {
	root := newAuthority(t, td)
	o := options(root.leaf(t, db()), root.bundle(t, td))
	old := bare(root.leaf(t, web()))
	old.MaxVersion = tls.VersionTLS12
	if r := connect(t, ServerConfig(o), old, nil); ReasonOf(r.server) != ReasonProtocol || !says(r.client, ReasonByPeer) {
		t.Errorf("TLS 1.2: server: %v, client: %v", r.server, r.client)
	}
	o.MinVersion = tls.VersionTLS10 // raised to 1.2
	if r := connect(t, ServerConfig(o), old, nil); r.server != nil || r.client != nil {
		t.Errorf("TLS 1.2, allowed: server: %v, client: %v", r.server, r.client)
	}
	none := bare(nil)
	none.MaxVersion = tls.VersionTLS12
	if r := connect(t, ServerConfig(o), none, nil); ReasonOf(r.server) != ReasonNoCertificate || r.client == nil {
		t.Errorf("TLS 1.2, no certificate: server: %v, client: %v", r.server, r.client)
	}
	old.MaxVersion = tls.VersionTLS11
	old.MinVersion = tls.VersionTLS10
	if r := connect(t, ServerConfig(o), old, nil); ReasonOf(r.server) != ReasonProtocol {
		t.Errorf("TLS 1.1: server: %v, client: %v", r.server, r.client)
	}
	alpn := bare(root.leaf(t, web()))
	alpn.NextProtos = []string{"h2"}
	o.NextProtos = []string{"weft-tunnel/1"}
	if r := connect(t, ServerConfig(o), alpn, nil); ReasonOf(r.server) != ReasonProtocol {
		t.Errorf("ALPN: server: %v, client: %v", r.server, r.client)
	}
	var answer []byte
	r := over(t, ServerConfig(o), func(raw net.Conn, r *result) {
		_, r.client = raw.Write([]byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n"))
		answer, _ = io.ReadAll(raw)
	})
	if ReasonOf(r.server) != ReasonNotTLS {
		t.Errorf("plaintext: %v", r.server)
	}
	if strings.Contains(string(answer), "HTTP") {
		t.Errorf("plaintext was answered: %q", answer)
	}
	r = over(t, ServerConfig(o), func(raw net.Conn, _ *result) { _ = raw.Close() })
	if ReasonOf(r.server) != ReasonClosed {
		t.Errorf("closed: %v", r.server)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	a, b := net.Pipe()
	defer func() { _, _ = a.Close(), b.Close() }()
	if err := tls.Server(a, ServerConfig(o)).HandshakeContext(ctx); ReasonOf(err) != ReasonTimeout {
		t.Errorf("silence: %v", err)
	}
	if ReasonOf(nil) != "" || ReasonOf(io.ErrShortWrite) != ReasonOther {
		t.Error("ReasonOf")
	}
}

// A session is never resumed, not even by a client that keeps tickets, and so the
// roots of now are asked every time.
func TestP27NoResumption(t *testing.T) {
	root, next := newAuthority(t, td), newAuthority(t, td)
	var bundle atomic.Pointer[Bundle]
	bundle.Store(root.bundle(t, td))
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		bundle.Store(root.bundle(t, td))
		o := options(root.leaf(t, db()), nil)
		o.Bundle, o.MinVersion = bundle.Load, tls.VersionTLS12
		server := ServerConfig(o)
		client := bare(root.leaf(t, web()))
		client.MaxVersion, client.ServerName = version, "db"
		client.ClientSessionCache = tls.NewLRUClientSessionCache(8)
		for range 2 {
			r := connect(t, server, client, nil)
			if r.client != nil || r.server != nil {
				t.Fatalf("client: %v, server: %v", r.client, r.server)
			}
			if r.clientState.DidResume || r.serverState.DidResume {
				t.Errorf("%s: resumed", tls.VersionName(version))
			}
		}
		bundle.Store(next.bundle(t, td))
		if r := connect(t, server, client, nil); ReasonOf(r.server) != ReasonUnknownAuthority {
			t.Errorf("%s: after the bundle changed: %v", tls.VersionName(version), r.server)
		}
	}
	// Our own client against a server that does hand out tickets.
	cert := root.leaf(t, db())
	foreign := &tls.Config{Certificates: []tls.Certificate{*cert}, ClientAuth: tls.RequestClientCert}
	client := ClientConfig(options(root.leaf(t, web()), root.bundle(t, td)), db())
	for range 2 {
		if r := connect(t, foreign, client, nil); r.client != nil || r.clientState.DidResume {
			t.Errorf("%v, resumed %t", r.client, r.clientState.DidResume)
		}
	}
	// And should a session be resumed all the same, both ends refuse.
	for _, c := range []*tls.Config{client, ServerConfig(options(cert, root.bundle(t, td)))} {
		cs := tls.ConnectionState{DidResume: true, PeerCertificates: []*x509.Certificate{cert.Leaf}}
		if err := c.VerifyConnection(cs); ReasonOf(err) != ReasonResumed {
			t.Errorf("resumed: %v", err)
		}
	}
}

// Certificates and roots are asked for on each handshake: one config, many leaves.
func TestRotationNeedsNoNewConfig(t *testing.T) {
	old, next := newAuthority(t, td), newAuthority(t, td)
	var cert atomic.Pointer[tls.Certificate]
	var bundle atomic.Pointer[Bundle]
	cert.Store(old.leaf(t, db()))
	bundle.Store(old.bundle(t, td))
	o := Options{Certificate: cert.Load, Bundle: bundle.Load, Now: clock}
	server, client := ServerConfig(o), ClientConfig(o, db())
	for _, a := range []*authority{old, next, old} {
		cert.Store(a.leaf(t, db()))
		bundle.Store(a.bundle(t, td))
		r := connect(t, server, client, nil)
		if r.client != nil || r.server != nil {
			t.Fatalf("client: %v, server: %v", r.client, r.server)
		}
		if !r.clientState.PeerCertificates[0].Equal(cert.Load().Leaf) {
			t.Error("an old leaf was shown")
		}
	}
	bundle.Store(must(NewBundle(td, []string{old.pem(), next.pem()})))
	for _, a := range []*authority{old, next} {
		cert.Store(a.leaf(t, db()))
		if r := connect(t, server, client, nil); r.client != nil || r.server != nil {
			t.Errorf("with both roots: client: %v, server: %v", r.client, r.server)
		}
	}
}

// oneByteWrites sends every byte in a segment of its own.
func oneByteWrites(c net.Conn) net.Conn { return &splitter{Conn: c} }

type splitter struct{ net.Conn }

func (s *splitter) Write(p []byte) (int, error) {
	for i := range p {
		if _, err := s.Conn.Write(p[i : i+1]); err != nil {
			return i, err
		}
	}
	return len(p), nil
}

// smallRecords breaks the ClientHello into many TLS records.
func smallRecords(c net.Conn) net.Conn { return &fragmenter{Conn: c} }

type fragmenter struct {
	net.Conn
	done bool
}

func (f *fragmenter) Write(p []byte) (int, error) {
	const header, piece = 5, 7
	if f.done || len(p) < header || p[0] != 22 {
		return f.Conn.Write(p)
	}
	f.done = true
	var out []byte
	for body := p[header:]; len(body) > 0; {
		n := min(piece, len(body))
		out = append(out, 22, p[1], p[2], 0, byte(n))
		out = append(out, body[:n]...)
		body = body[n:]
	}
	if _, err := f.Conn.Write(out); err != nil {
		return 0, err
	}
	return len(p), nil
}

func BenchmarkHandshake(b *testing.B) {
	root := newAuthority(b, td)
	o := options(root.leaf(b, db()), root.bundle(b, td))
	server, client := ServerConfig(o), ClientConfig(o, db())
	b.ReportAllocs()
	for b.Loop() {
		x, y := net.Pipe()
		done := make(chan error, 1)
		go func() { done <- tls.Server(x, server).Handshake() }()
		if err := tls.Client(y, client).Handshake(); err != nil {
			b.Fatal(err)
		}
		if err := <-done; err != nil {
			b.Fatal(err)
		}
		_, _ = x.Close(), y.Close()
	}
}
