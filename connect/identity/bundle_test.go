package identity

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"strings"
	"testing"
	"time"
)

func web() ServiceID { return ServiceID{td, "dc1", "web"} }

func TestVerifyPeerRefuses(t *testing.T) {
	root := newAuthority(t, td)
	foreign := newAuthority(t, td)
	constrained := newAuthority(t, td, func(c *x509.Certificate) {
		c.PermittedURIDomains = []string{"other.consul"}
		c.PermittedDNSDomainsCritical = true
	})
	staleRoot := newAuthority(t, td, func(c *x509.Certificate) { c.NotAfter = now.Add(-time.Minute) })
	bundle := must(NewBundle(td, []string{root.pem(), constrained.pem() + staleRoot.pem()}))

	for name, tc := range map[string]struct {
		by     *authority
		id     ID
		change func(*x509.Certificate)
		want   Reason
	}{
		"good":                {by: root},
		"unknown authority":   {by: foreign, want: ReasonUnknownAuthority},
		"other trust domain":  {by: root, id: ServiceID{"other.consul", "dc1", "web"}, want: ReasonTrustDomain},
		"sub trust domain":    {by: root, id: ServiceID{"x." + td, "dc1", "web"}, want: ReasonTrustDomain},
		"expired":             {by: root, change: func(c *x509.Certificate) { c.NotAfter = now.Add(-time.Second) }, want: ReasonExpired},
		"not yet valid":       {by: root, change: func(c *x509.Certificate) { c.NotBefore = now.Add(time.Second) }, want: ReasonNotYetValid},
		"expired root":        {by: staleRoot, want: ReasonExpired},
		"name constraint":     {by: constrained, want: ReasonConstraint},
		"two URIs":            {by: root, change: func(c *x509.Certificate) { c.URIs = append(c.URIs, web().URI()) }, want: ReasonBadIdentity},
		"no URI":              {by: root, change: func(c *x509.Certificate) { c.URIs, c.DNSNames = nil, []string{"web"} }, want: ReasonBadIdentity},
		"agent":               {by: root, id: AgentID{td, "dc1", "n"}, want: ReasonBadIdentity},
		"signing ID":          {by: root, id: SigningID{td}, want: ReasonBadIdentity},
		"CA leaf":             {by: root, change: func(c *x509.Certificate) { c.IsCA = true }, want: ReasonNotALeaf},
		"may sign":            {by: root, change: func(c *x509.Certificate) { c.KeyUsage |= x509.KeyUsageCertSign }, want: ReasonNotALeaf},
		"no usage":            {by: root, change: func(c *x509.Certificate) { c.ExtKeyUsage = nil }, want: ReasonUsage},
		"any usage":           {by: root, change: func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageAny} }, want: ReasonUsage},
		"only server usage":   {by: root, change: func(c *x509.Certificate) { c.ExtKeyUsage = c.ExtKeyUsage[1:] }, want: ReasonUsage},
		"only client usage":   {by: root, change: func(c *x509.Certificate) { c.ExtKeyUsage = c.ExtKeyUsage[:1] }, want: ReasonUsage},
		"a DNS name besides":  {by: root, change: func(c *x509.Certificate) { c.DNSNames = []string{"web.example"} }},
		"upper-case scheme":   {by: root, change: rawSAN("SPIFFE" + strings.TrimPrefix(web().String(), "spiffe")), want: ReasonBadIdentity},
		"empty fragment":      {by: root, change: rawSAN(web().String() + "#"), want: ReasonBadIdentity},
		"second URI, foreign": {by: root, change: rawSAN(web().String(), "https://example.com/"), want: ReasonBadIdentity},
		"raw, good":           {by: root, change: rawSAN(web().String())},
	} {
		t.Run(name, func(t *testing.T) {
			id := tc.id
			if id == nil {
				id = web()
			}
			var change []func(*x509.Certificate)
			if tc.change != nil {
				change = append(change, tc.change)
			}
			leaf := tc.by.leaf(t, id, change...).Leaf
			got, err := bundle.VerifyPeer([]*x509.Certificate{leaf}, now)
			if ReasonOf(err) != tc.want {
				t.Fatalf("got %v, %v, want reason %q", got, err, tc.want)
			}
			var v *VerifyError
			if tc.want == "" && got != web() {
				t.Errorf("got %v", got)
			} else if tc.want != "" && !errors.As(err, &v) {
				t.Errorf("%T is no VerifyError", err)
			}
		})
	}
}

// rawSAN writes URIs byte for byte, past what net/url would do to them.
func rawSAN(uris ...string) func(*x509.Certificate) {
	return func(c *x509.Certificate) {
		var names []asn1.RawValue
		for _, u := range uris {
			names = append(names, asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 6, Bytes: []byte(u)})
		}
		c.URIs = nil
		c.ExtraExtensions = []pkix.Extension{{Id: oidSubjectAltName, Critical: true, Value: must(asn1.Marshal(names))}}
	}
}

func TestVerifyNothing(t *testing.T) {
	root := newAuthority(t, td)
	leaf := root.leaf(t, web()).Leaf
	var none *Bundle
	if _, err := none.VerifyPeer([]*x509.Certificate{leaf}, now); ReasonOf(err) != ReasonNoBundle {
		t.Errorf("no bundle: %v", err)
	}
	if _, err := root.bundle(t, td).VerifyPeer(nil, now); ReasonOf(err) != ReasonNoCertificate {
		t.Errorf("no certificate: %v", err)
	}
	long := make([]*x509.Certificate, maxChain+1)
	for i := range long {
		long[i] = leaf
	}
	if _, err := root.bundle(t, td).VerifyPeer(long, now); ReasonOf(err) != ReasonUnknownAuthority {
		t.Errorf("long chain: %v", err)
	}
	_, err := root.bundle(t, td).VerifyPeer([]*x509.Certificate{leaf}, now.Add(-2*time.Hour))
	if err == nil || !strings.Contains(err.Error(), "clock skew") || !strings.Contains(err.Error(), web().String()) {
		t.Errorf("the error has to name the peer and the clocks: %v", err)
	}
}

func TestNewBundle(t *testing.T) {
	a, b := newAuthority(t, td), newAuthority(t, td)
	leaf := string(EncodeCert(a.leaf(t, web()).Leaf.Raw))
	key := string(must(EncodeKey(a.key)))
	for name, roots := range map[string][]string{
		"none": nil, "empty text": {""}, "no PEM": {"x"}, "a leaf": {leaf}, "a key": {key},
		"cut off": {a.pem()[:200]}, "cut off after a whole one": {a.pem() + b.pem()[:200]},
	} {
		if got, err := NewBundle(td, roots); err == nil {
			t.Errorf("%s: %v", name, got)
		}
	}
	for _, domain := range []string{"", "A", "a b", "a.", "a:1"} {
		if _, err := NewBundle(domain, []string{a.pem()}); err == nil {
			t.Errorf("trust domain %q was accepted", domain)
		}
	}
	x := must(NewBundle(td, []string{a.pem(), b.pem()}))
	y := must(NewBundle(td, []string{b.pem() + a.pem(), a.pem()}))
	if x.Fingerprint() != y.Fingerprint() || len(y.Roots()) != 2 || x.TrustDomain() != td {
		t.Errorf("%v and %v should be the same", x, y)
	}
	if z := a.bundle(t, td); z.Fingerprint() == x.Fingerprint() || z.String() == x.String() {
		t.Errorf("%v and %v should differ", x, z)
	}
	if z := must(NewBundle("other.consul", []string{a.pem(), b.pem()})); z.Fingerprint() == x.Fingerprint() {
		t.Errorf("%v and %v should differ", x, z)
	}
}

// FuzzVerify feeds what a stranger may show.
func FuzzVerify(f *testing.F) {
	root := newAuthority(f, td)
	bundle := root.bundle(f, td)
	good := root.leaf(f, web()).Leaf.Raw
	f.Add(good)
	f.Add(root.cert.Raw)
	f.Fuzz(func(t *testing.T, der []byte) {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return
		}
		id, err := bundle.VerifyPeer([]*x509.Certificate{cert, root.cert}, now)
		if err == nil && id != web() {
			t.Fatalf("accepted %v", id)
		}
	})
}

func BenchmarkVerifyPeer(b *testing.B) {
	root := newAuthority(b, td)
	bundle := root.bundle(b, td)
	certs := []*x509.Certificate{root.leaf(b, web()).Leaf}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := bundle.VerifyClient(certs, now); err != nil {
			b.Fatal(err)
		}
	}
}
