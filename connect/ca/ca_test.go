package ca

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/connect/identity"
)

const (
	clusterID = "11111111-2222-3333-4444-555555555555"
	domain    = clusterID + ".consul"
)

var (
	now  = time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC)
	seal = must(NewSealer([32]byte{1, 2, 3}))
)

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func raw(config map[string]any) catalog.CAConfig {
	return catalog.CAConfig{ClusterID: clusterID, Provider: Provider, Config: config}
}

func config(kv ...any) Config {
	m := map[string]any{}
	for i := 0; i < len(kv); i += 2 {
		m[kv[i].(string)] = kv[i+1]
	}
	return must(ParseConfig(raw(m)))
}

func authority(t testing.TB, cfg Config) (*catalog.Root, *Authority) {
	t.Helper()
	root, err := NewRoot(cfg, seal, now)
	if err != nil {
		t.Fatal(err)
	}
	a, err := Open(root, cfg, seal)
	if err != nil {
		t.Fatal(err)
	}
	return root, a
}

func service(name string) identity.ServiceID {
	return identity.ServiceID{TrustDomain: domain, Datacenter: "dc1", Service: name}
}

func opts() SignOptions { return SignOptions{Now: now, Datacenter: "dc1"} }

func verify(leaf *catalog.Leaf, at time.Time, roots ...*catalog.Root) error {
	var pems []string
	for _, r := range roots {
		pems = append(pems, r.RootCert)
	}
	chain, err := identity.ParseChain([]byte(leaf.CertPEM))
	if err != nil {
		return err
	}
	bundle, err := identity.NewBundle(domain, pems)
	if err != nil {
		return err
	}
	_, err = bundle.VerifyPeer(chain.Certificates(), at)
	return err
}

func leafOf(t testing.TB, a *Authority) *catalog.Leaf {
	t.Helper()
	csr := must(identity.NewCSR(must(identity.NewKey()), service("web")))
	leaf, err := a.Sign(csr, opts())
	if err != nil {
		t.Fatal(err)
	}
	return leaf
}

func TestRootFields(t *testing.T) {
	root, _ := authority(t, config())
	cert := must(identity.ParseCert([]byte(root.RootCert)))
	if root.ID != Fingerprint(cert) || !regexp.MustCompile(`^([0-9a-f]{2}:){19}[0-9a-f]{2}$`).MatchString(root.ID) {
		t.Errorf("ID %q", root.ID)
	}
	if root.Name != "Consul CA Primary Cert" || !root.Active || root.PrivateKeyType != "ec" || root.PrivateKeyBits != 256 ||
		root.ExternalTrustDomain != clusterID || root.IntermediateCerts != nil || root.LeafTTL != 72*time.Hour {
		t.Errorf("%+v", root)
	}
	if root.SerialNumber == 0 || root.SerialNumber != cert.SerialNumber.Uint64() || root.SigningKeyID != identity.HexColon(cert.SubjectKeyId) {
		t.Errorf("serial %d, signing key %s", root.SerialNumber, root.SigningKeyID)
	}
	if ok, _ := regexp.MatchString(`^CN=pri-[0-9a-z]+\.consul\.ca\.11111111\.consul$`, cert.Subject.String()); !ok || cert.Issuer.String() != cert.Subject.String() {
		t.Errorf("subject %s, issuer %s", cert.Subject, cert.Issuer)
	}
	if cert.SignatureAlgorithm != x509.ECDSAWithSHA256 || !cert.IsCA || cert.Version != 3 || len(cert.AuthorityKeyId) == 0 ||
		cert.KeyUsage != x509.KeyUsageDigitalSignature|x509.KeyUsageCertSign|x509.KeyUsageCRLSign {
		t.Errorf("%+v", cert)
	}
	if len(cert.URIs) != 1 || cert.URIs[0].String() != "spiffe://"+domain {
		t.Errorf("URIs %v", cert.URIs)
	}
	if h := cert.NotAfter.Sub(cert.NotBefore).Round(time.Hour); h != 87600*time.Hour {
		t.Errorf("valid for %s", h)
	}
	if !slices.Equal(cert.PermittedURIDomains, []string{domain}) || !cert.PermittedDNSDomainsCritical {
		t.Errorf("name constraints %v, critical %t", cert.PermittedURIDomains, cert.PermittedDNSDomainsCritical)
	}
	if strings.Contains(string(root.SealedKey), "PRIVATE") || len(root.SealedKey) == 0 {
		t.Error("the key is not sealed")
	}
	for _, other := range []string{"not-hex!", "", "A.B"} {
		c := config()
		c.ClusterID = other
		if _, err := NewRoot(c, seal, now); err == nil {
			t.Errorf("cluster ID %q was accepted", other)
		}
	}
	c := config()
	c.ClusterID = "mine"
	r := must(NewRoot(c, seal, now))
	if ok, _ := regexp.MatchString(`^CN=pri-[0-9a-z]+\.consul\.ca\.[0-9a-f]{8}\.consul$`, must(identity.ParseCert([]byte(r.RootCert))).Subject.String()); !ok {
		t.Error("the common name of a cluster whose ID is no UUID")
	}
}

// The root's name constraint holds in Go's own verifier, whatever the rest of the
// checks would say.
func TestRootIsConstrained(t *testing.T) {
	root, a := authority(t, config())
	pool := x509.NewCertPool()
	pool.AddCert(a.cert)
	for id, ok := range map[identity.ID]bool{
		service("web"): true,
		identity.ServiceID{TrustDomain: "other.consul", Datacenter: "dc1", Service: "web"}: false,
	} {
		cert := must(a.issue(id, must(identity.NewKey()).Public(), now))
		_, err := cert.Verify(x509.VerifyOptions{Roots: pool, CurrentTime: now})
		if (err == nil) != ok {
			t.Errorf("%s under %s: %v", id, root.ID, err)
		}
		var invalid x509.CertificateInvalidError
		if !ok && (!errors.As(err, &invalid) || invalid.Reason != x509.CANotAuthorizedForThisName) {
			t.Errorf("%s: %v is not about the name", id, err)
		}
	}
}

func TestLeafFields(t *testing.T) {
	root, a := authority(t, config())
	key := must(identity.NewKey())
	leaf := must(a.Sign(must(identity.NewCSR(key, service("web"))), opts()))
	cert := must(identity.ParseCert([]byte(leaf.CertPEM)))
	if err := verify(leaf, now, root); err != nil {
		t.Error(err)
	}
	if leaf.Service != "web" || leaf.ServiceURI != service("web").String() || leaf.Agent != "" || leaf.AgentURI != "" ||
		!leaf.ValidAfter.Equal(cert.NotBefore) || !leaf.ValidBefore.Equal(cert.NotAfter) || leaf.SerialNumber != identity.Serial(cert.SerialNumber) {
		t.Errorf("%+v", leaf)
	}
	if ok, _ := regexp.MatchString(`^([0-9a-f]{2}:){15}[0-9a-f]{2}$`, leaf.SerialNumber); !ok {
		t.Errorf("serial %s", leaf.SerialNumber)
	}
	if cert.Subject.String() != "" || cert.IsCA || !cert.BasicConstraintsValid || cert.SignatureAlgorithm != x509.ECDSAWithSHA256 ||
		len(cert.SubjectKeyId) == 0 || !slices.Equal(cert.AuthorityKeyId, a.cert.SubjectKeyId) {
		t.Errorf("%+v", cert)
	}
	if cert.KeyUsage != x509.KeyUsageDigitalSignature|x509.KeyUsageKeyEncipherment|x509.KeyUsageDataEncipherment|x509.KeyUsageKeyAgreement ||
		!slices.Equal(cert.ExtKeyUsage, []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}) {
		t.Errorf("usage %v, %v", cert.KeyUsage, cert.ExtKeyUsage)
	}
	if !identity.SameKey(cert.PublicKey, key.Public()) {
		t.Error("another key")
	}
	if d := now.Sub(cert.NotBefore); d != 5*time.Minute {
		t.Errorf("backdated by %s", d)
	}
	if d := cert.NotAfter.Sub(now); d != 72*time.Hour {
		t.Errorf("lives for %s", d)
	}
	for _, e := range cert.Extensions {
		if e.Id.String() == "2.5.29.17" && !e.Critical {
			t.Error("the only name is not critical")
		}
	}
	agent := identity.AgentID{TrustDomain: domain, Datacenter: "dc1", Node: "n1"}
	leaf, err := a.Sign(must(identity.NewCSRFor(key, agent)), opts())
	if err != nil || leaf.Agent != "n1" || leaf.AgentURI != agent.String() || leaf.Service != "" {
		t.Errorf("agent: %+v, %v", leaf, err)
	}
}

// What a request carries beside its key and its one URI does not get through.
func TestP27SignTakesNothingElse(t *testing.T) {
	root, a := authority(t, config())
	key := must(identity.NewKey())
	basic := must(asn1.Marshal(struct{ IsCA bool }{true}))
	csr := must(x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		Subject:        pkix.Name{CommonName: "db", Organization: []string{"admins"}},
		URIs:           []*url.URL{service("web").URI()},
		DNSNames:       []string{"db.service.consul"},
		IPAddresses:    []net.IP{net.IPv4(127, 0, 0, 1)},
		EmailAddresses: []string{"root@example.com"},
		ExtraExtensions: []pkix.Extension{
			{Id: asn1.ObjectIdentifier{2, 5, 29, 19}, Critical: true, Value: basic},
			{Id: asn1.ObjectIdentifier{2, 5, 29, 15}, Critical: true, Value: []byte{3, 2, 2, 4}}, // keyCertSign
			{Id: asn1.ObjectIdentifier{1, 2, 3, 4}, Value: []byte{5, 0}},
		},
	}, key))
	leaf, err := a.Sign(csr, opts())
	if err != nil {
		t.Fatal(err)
	}
	if err := verify(leaf, now, root); err != nil {
		t.Error(err)
	}
	cert := must(identity.ParseCert([]byte(leaf.CertPEM)))
	plain := must(identity.ParseCert([]byte(must(a.Sign(must(identity.NewCSR(key, service("web"))), opts())).CertPEM)))
	if cert.IsCA || len(cert.DNSNames)+len(cert.IPAddresses)+len(cert.EmailAddresses) > 0 || cert.Subject.String() != "" || len(cert.URIs) != 1 {
		t.Errorf("%+v", cert)
	}
	if len(cert.Extensions) != len(plain.Extensions) || cert.KeyUsage != plain.KeyUsage {
		t.Errorf("extensions %v, want as in %v", cert.Extensions, plain.Extensions)
	}
}

func TestSignRefuses(t *testing.T) {
	_, a := authority(t, config())
	key := must(identity.NewKey())
	ask := func(key crypto.Signer, uris ...string) []byte {
		req := &x509.CertificateRequest{}
		for _, u := range uris {
			req.URIs = append(req.URIs, must(url.Parse(u)))
		}
		return must(x509.CreateCertificateRequest(rand.Reader, req, key))
	}
	web := service("web").String()
	_, ed, _ := ed25519.GenerateKey(rand.Reader)
	tampered := ask(key, web)
	tampered[len(tampered)-1] ^= 1
	other := ask(must(identity.NewKey()), web)
	for name, csr := range map[string][]byte{
		"nothing":            nil,
		"garbage":            []byte("garbage"),
		"PEM":                identity.EncodeCSR(ask(key, web)),
		"trailing":           append(ask(key, web), 0),
		"huge":               make([]byte, maxCSR+1),
		"no name":            ask(key),
		"two names":          ask(key, web, service("db").String()),
		"twice the same":     ask(key, web, web),
		"no SPIFFE ID":       ask(key, "https://example.com/web"),
		"foreign domain":     ask(key, strings.Replace(web, domain, "other.consul", 1)),
		"sub domain":         ask(key, strings.Replace(web, domain, "x."+domain, 1)),
		"foreign datacenter": ask(key, strings.Replace(web, "dc1", "dc2", 1)),
		"the servers":        ask(key, "spiffe://"+domain+"/agent/server/dc/dc1"),
		"a gateway":          ask(key, "spiffe://"+domain+"/gateway/mesh/dc/dc1"),
		"the authority":      ask(key, "spiffe://"+domain),
		"a namespace":        ask(key, strings.Replace(web, "default", "other", 1)),
		"an encoded slash":   ask(key, web+"%2Fx"),
		"bad signature":      tampered,
		"Ed25519":            ask(ed, web),
		"P-224":              ask(must(ecdsa.GenerateKey(elliptic.P224(), rand.Reader)), web),
		"P-521":              ask(must(ecdsa.GenerateKey(elliptic.P521(), rand.Reader)), web),
		"RSA 1024":           ask(must(rsa.GenerateKey(rand.Reader, 1024)), web),
		"another's key":      slices.Concat(ask(key, web)[:len(ask(key, web))/2], other[len(other)/2:]),
	} {
		if leaf, err := a.Sign(csr, opts()); err == nil {
			t.Errorf("%s: signed %+v", name, leaf)
		} else if !errors.Is(err, catalog.ErrInvalid) && !errors.Is(err, catalog.ErrTooLarge) {
			t.Errorf("%s: %v is neither ErrInvalid nor ErrTooLarge", name, err)
		}
	}
	for name, key := range map[string]crypto.Signer{
		"P-384": must(ecdsa.GenerateKey(elliptic.P384(), rand.Reader)), "RSA 2048": must(rsa.GenerateKey(rand.Reader, 2048)),
	} {
		if _, err := a.Sign(ask(key, web), opts()); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestLeafNeverOutlivesRoot(t *testing.T) {
	root, a := authority(t, config())
	csr := must(identity.NewCSR(must(identity.NewKey()), service("web")))
	o := opts()
	o.Now = root.NotAfter.Add(-time.Hour)
	leaf := must(a.Sign(csr, o))
	if !leaf.ValidBefore.Equal(root.NotAfter) || !a.NotAfter().Equal(root.NotAfter) {
		t.Errorf("until %s, root until %s", leaf.ValidBefore, root.NotAfter)
	}
	o.Now = root.NotAfter.Add(time.Hour)
	if _, err := a.Sign(csr, o); err == nil || !strings.Contains(err.Error(), "rotate") {
		t.Errorf("signed by an expired root: %v", err)
	}
}

func TestShortLeaves(t *testing.T) {
	cfg := must(ParseConfigFloor(raw(map[string]any{"leaf_cert_ttl": "1m"}), time.Second))
	root, a := authority(t, cfg)
	leaf := leafOf(t, a)
	if err := verify(leaf, now, root); err != nil {
		t.Error(err)
	}
	if at := identity.RenewAt(leaf.ValidAfter, leaf.ValidBefore, 0); !at.After(now) {
		t.Errorf("to be renewed at %s, before it was issued at %s", at, now)
	}
}

func TestOpen(t *testing.T) {
	cfg := config()
	root, a := authority(t, cfg)
	if a.RootID() != root.ID || a.TrustDomain() != domain {
		t.Errorf("%s, %s", a.RootID(), a.TrustDomain())
	}
	other := must(NewRoot(cfg, seal, now))
	change := func(f func(r *catalog.Root)) *catalog.Root { r := *root; f(&r); return &r }
	for name, tc := range map[string]struct {
		root *catalog.Root
		cfg  Config
		seal Sealer
	}{
		"none":            {nil, cfg, seal},
		"another cluster": {root, Config{ClusterID: "x"}, seal},
		"another seal":    {root, cfg, must(NewSealer([32]byte{9}))},
		"another's key":   {change(func(r *catalog.Root) { r.SealedKey = other.SealedKey }), cfg, seal},
		"another's cert":  {change(func(r *catalog.Root) { r.RootCert = other.RootCert }), cfg, seal},
		"no cert":         {change(func(r *catalog.Root) { r.RootCert = "x" }), cfg, seal},
		"no key":          {change(func(r *catalog.Root) { r.SealedKey = nil }), cfg, seal},
		"damaged key":     {change(func(r *catalog.Root) { r.SealedKey = root.SealedKey[:20] }), cfg, seal},
		"unknown format":  {change(func(r *catalog.Root) { r.SealedKey = []byte{9, 9} }), cfg, seal},
	} {
		if _, err := Open(tc.root, tc.cfg, tc.seal); err == nil {
			t.Errorf("%s: opened", name)
		}
	}
	if _, err := NewSealer([32]byte{}); err == nil {
		t.Error("a seal key of zeros was accepted")
	}
}

// ownRoot makes what an operator might bring along.
func ownRoot(key crypto.Signer, change ...func(*x509.Certificate)) (cert, keyPEM string) {
	tmpl := &x509.Certificate{
		SerialNumber: new(big.Int).Lsh(big.NewInt(3), 120),
		Subject:      pkix.Name{CommonName: "Our own CA"},
		NotBefore:    now.Add(-time.Hour), NotAfter: now.Add(10000 * time.Hour),
		KeyUsage: x509.KeyUsageCertSign, BasicConstraintsValid: true, IsCA: true,
	}
	for _, f := range change {
		f(tmpl)
	}
	der := must(x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key))
	return string(identity.EncodeCert(der)), string(must(identity.EncodeKey(key)))
}

func TestOwnRoot(t *testing.T) {
	ec := must(ecdsa.GenerateKey(elliptic.P384(), rand.Reader))
	name := func(uri string) func(*x509.Certificate) {
		return func(c *x509.Certificate) { c.URIs = append(c.URIs, must(url.Parse(uri))) }
	}
	for what, tc := range map[string]struct {
		change func(*x509.Certificate)
		want   string // of the error; "" means accepted
	}{
		"plain":                {change: func(*x509.Certificate) {}},
		"of our trust domain":  {change: name("spiffe://" + domain)},
		"constrained to it":    {change: func(c *x509.Certificate) { c.PermittedURIDomains = []string{domain} }},
		"of another one":       {change: name("spiffe://other.consul"), want: "this cluster is"},
		"constrained to other": {change: func(c *x509.Certificate) { c.PermittedURIDomains = []string{"other.consul"} }, want: "trust domain"},
		"for mail only":        {change: func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageEmailProtection} }, want: "trust domain"},
		"two URIs":             {change: func(c *x509.Certificate) { name("spiffe://a.consul")(c); name("spiffe://b.consul")(c) }, want: "more than one"},
		"expired":              {change: func(c *x509.Certificate) { c.NotAfter = now.Add(-time.Minute) }, want: "not now"},
		"not yet valid":        {change: func(c *x509.Certificate) { c.NotBefore = now.Add(time.Minute) }, want: "not now"},
		"may not sign":         {change: func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageDigitalSignature }, want: "may not sign"},
	} {
		cert, key := ownRoot(ec, tc.change)
		cfg, err := ParseConfig(raw(map[string]any{"root_cert": cert, "private_key": key}))
		if err != nil {
			t.Errorf("%s: %v", what, err)
			continue
		}
		root, err := NewRoot(cfg, seal, now)
		if (err == nil) != (tc.want == "") || (err != nil && !strings.Contains(err.Error(), tc.want)) {
			t.Errorf("%s: %v, want %q", what, err, tc.want)
			continue
		}
		if err != nil {
			continue
		}
		if root.PrivateKeyType != "ec" || root.PrivateKeyBits != 384 || root.RootCert != cert {
			t.Errorf("%s: %+v", what, root)
		}
		if err := verify(leafOf(t, must(Open(root, cfg, seal))), now, root); err != nil {
			t.Errorf("%s: %v", what, err)
		}
		// Stored without its key, the configuration still stands for this root,
		// and for no other.
		stored := must(ParseConfig(Strip(raw(map[string]any{"root_cert": cert, "private_key": key}))))
		if NeedsNewRoot(root, stored, now) {
			t.Errorf("%s: the stored configuration asks for another root", what)
		}
		if _, err := NewRoot(stored, seal, now); err == nil {
			t.Errorf("%s: a root without a key", what)
		}
	}
	cert, _ := ownRoot(ec, name("spiffe://"+domain))
	if got := ClusterIDOf(must(identity.ParseCert([]byte(cert)))); got != clusterID {
		t.Errorf("cluster ID %q", got)
	}
	for _, uri := range []string{"spiffe://example.org", "spiffe://" + domain + "/agent/server/dc/dc1", "https://x/"} {
		cert, _ := ownRoot(ec, name(uri))
		if got := ClusterIDOf(must(identity.ParseCert([]byte(cert)))); got != "" {
			t.Errorf("%s: cluster ID %q", uri, got)
		}
	}
	if ClusterIDOf(nil) != "" {
		t.Error("nil")
	}
	// A key without a certificate: the root is made with it.
	_, key := ownRoot(ec)
	root := must(NewRoot(config("private_key", key), seal, now))
	if !identity.SameKey(must(identity.ParseCert([]byte(root.RootCert))).PublicKey, ec.Public()) {
		t.Error("the root has another key")
	}
}

func FuzzSign(f *testing.F) {
	root, a := authority(f, config())
	f.Add(must(identity.NewCSR(must(identity.NewKey()), service("web"))))
	f.Add(must(identity.NewCSRFor(must(identity.NewKey()), identity.AgentID{TrustDomain: domain, Datacenter: "dc1", Node: "n"})))
	f.Add(must(identity.NewCSR(must(rsa.GenerateKey(rand.Reader, 2048)), service("a b"))))
	f.Fuzz(func(t *testing.T, der []byte) {
		leaf, err := a.Sign(der, opts())
		if err != nil {
			if !errors.Is(err, catalog.ErrInvalid) && !errors.Is(err, catalog.ErrTooLarge) {
				t.Fatal(err)
			}
			return
		}
		cert := must(identity.ParseCert([]byte(leaf.CertPEM)))
		if id, err := identity.IDOf(cert); err != nil || id.String() != leaf.ServiceURI+leaf.AgentURI {
			t.Fatalf("%v, %v, want %s%s", id, err, leaf.ServiceURI, leaf.AgentURI)
		}
		if cert.IsCA || cert.Subject.String() != "" || len(cert.DNSNames) > 0 {
			t.Fatalf("%+v", cert)
		}
		if leaf.Service != "" {
			if err := verify(leaf, now, root); err != nil {
				t.Fatal(err)
			}
		}
	})
}

func BenchmarkSign(b *testing.B) {
	for _, cfg := range []Config{config(), config("private_key_type", "rsa")} {
		b.Run(fmt.Sprintf("%s-%d", cfg.KeyType, or(cfg.KeyBits, 256)), func(b *testing.B) {
			_, a := authority(b, cfg)
			csr := must(identity.NewCSR(must(identity.NewKey()), service("web")))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := a.Sign(csr, opts()); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
