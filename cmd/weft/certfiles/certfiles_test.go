package certfiles

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net"
	"strings"
	"testing"
)

func TestSignedCertificatesVerify(t *testing.T) {
	ca, err := NewAuthority(Authority{CommonName: "a", Days: 10, Constraints: []string{"consul", "localhost"}})
	if err != nil {
		t.Fatal(err)
	}
	p, err := Sign(ca, Leaf{CommonName: "server.dc1.consul", Days: 5, DNSNames: []string{"server.dc1.consul"}, IPs: []net.IP{net.IPv4(127, 0, 0, 1)}, Server: true})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tls.X509KeyPair(p.Cert, p.Key); err != nil {
		t.Error(err)
	}
	block, _ := pem.Decode(p.Cert)
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca.Cert)
	if _, err := cert.Verify(x509.VerifyOptions{Roots: roots, DNSName: "server.dc1.consul"}); err != nil {
		t.Error(err)
	}
	if _, err := cert.Verify(x509.VerifyOptions{Roots: roots, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err == nil {
		t.Error("a server's certificate passes as a client's")
	}
	if s := fmt.Sprint(p); strings.Contains(s, "PRIVATE") {
		t.Error("the key is printed: ", s)
	}
}

func TestSignRefuses(t *testing.T) {
	ca, err := NewAuthority(Authority{CommonName: "a", Days: 10, Constraints: []string{"consul"}})
	if err != nil {
		t.Fatal(err)
	}
	other, err := NewAuthority(Authority{CommonName: "b", Days: 10})
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := Sign(ca, Leaf{Days: 1, DNSNames: []string{"a.consul"}, Client: true})
	if err != nil {
		t.Fatal(err)
	}
	ok := Leaf{Days: 1, Client: true}
	for words, c := range map[string]struct {
		ca   Pair
		leaf Leaf
	}{
		"a day at least":              {ca, Leaf{}},
		"ends on":                     {ca, Leaf{Days: 20, Client: true}},
		"may not sign this":           {ca, Leaf{Days: 1, DNSNames: []string{"example.com"}, Client: true}},
		"is not that of":              {Pair{ca.Cert, other.Key}, ok},
		"it may not sign others":      {leaf, ok},
		"holds no PEM certificate":    {Pair{[]byte("x"), ca.Key}, ok},
		"holds no PEM key":            {Pair{ca.Cert, []byte("x")}, ok},
		"of no kind that can be read": {Pair{ca.Cert, ca.Cert}, ok},
	} {
		if _, err := Sign(c.ca, c.leaf); err == nil || !strings.Contains(err.Error(), words) {
			t.Errorf("%v, want %q", err, words)
		}
	}
	if _, err := NewAuthority(Authority{}); err == nil {
		t.Error("an authority for no day")
	}
}
