package identity

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"net/url"
	"testing"
	"time"
)

// now is the time of every test here that does not say otherwise.
var now = time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC)

// authority issues whatever a test asks for, right or wrong.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t testing.TB, domain string, change ...func(*x509.Certificate)) *authority {
	t.Helper()
	key := must(NewKey())
	tmpl := &x509.Certificate{
		SerialNumber:          big.NewInt(1),
		Subject:               pkix.Name{CommonName: "root of " + domain},
		URIs:                  []*url.URL{SigningID{domain}.URI()},
		NotBefore:             now.Add(-24 * time.Hour),
		NotAfter:              now.Add(240 * time.Hour),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
		BasicConstraintsValid: true,
		IsCA:                  true,
	}
	for _, f := range change {
		f(tmpl)
	}
	der := must(x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key))
	return &authority{must(x509.ParseCertificate(der)), key}
}

func (a *authority) pem() string { return string(EncodeCert(a.cert.Raw)) }

func (a *authority) sign(tmpl *x509.Certificate, pub crypto.PublicKey) *x509.Certificate {
	return must(x509.ParseCertificate(must(x509.CreateCertificate(rand.Reader, tmpl, a.cert, pub, a.key))))
}

func template(ids ...ID) *x509.Certificate {
	tmpl := &x509.Certificate{
		SerialNumber:          big.NewInt(42),
		NotBefore:             now.Add(-time.Hour),
		NotAfter:              now.Add(time.Hour),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true,
	}
	for _, id := range ids {
		tmpl.URIs = append(tmpl.URIs, id.URI())
	}
	return tmpl
}

// leaf issues a certificate for a service, after change had its way with it.
func (a *authority) leaf(t testing.TB, id ID, change ...func(*x509.Certificate)) *tls.Certificate {
	t.Helper()
	tmpl := template(id)
	for _, f := range change {
		f(tmpl)
	}
	key := must(NewKey())
	cert := a.sign(tmpl, key.Public())
	return &tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: key, Leaf: cert}
}

func (a *authority) bundle(t testing.TB, domain string) *Bundle {
	t.Helper()
	return must(NewBundle(domain, []string{a.pem()}))
}

// must is for what cannot fail in a test that is written right.
func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}
