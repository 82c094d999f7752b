package identity

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"math"
	"math/big"
	"strings"
	"testing"
	"time"
)

func TestKeyRoundTrip(t *testing.T) {
	_, ed, _ := ed25519.GenerateKey(rand.Reader)
	for name, key := range map[string]crypto.Signer{
		"EC PRIVATE KEY":  must(ecdsa.GenerateKey(elliptic.P384(), rand.Reader)),
		"RSA PRIVATE KEY": must(rsa.GenerateKey(rand.Reader, 2048)),
		"PRIVATE KEY":     ed,
	} {
		text := must(EncodeKey(key))
		if b, _ := pem.Decode(text); b.Type != name {
			t.Errorf("%s is written as %s", name, b.Type)
		}
		got, err := ParseKey(text)
		if err != nil || !SameKey(got.Public(), key.Public()) {
			t.Errorf("%s: %v", name, err)
		}
		pkcs8 := encode(pemPKCS8, must(x509.MarshalPKCS8PrivateKey(key)))
		if got, err := ParseKey(pkcs8); err != nil || !SameKey(got.Public(), key.Public()) {
			t.Errorf("%s as PKCS #8: %v", name, err)
		}
	}
	key := must(EncodeKey(must(NewKey())))
	params := encode("EC PARAMETERS", []byte{6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 7})
	if _, err := ParseKey(append(params, key...)); err != nil {
		t.Errorf("as openssl ecparam writes it: %v", err)
	}
	secret := strings.Split(string(key), "\n")[1]
	for name, text := range map[string]string{
		"nothing": "", "two": string(key) + string(key), "cut off": string(key)[:100],
		"text after it": string(key) + secret, "other type": strings.ReplaceAll(string(key), "EC PRIVATE", "RSA PRIVATE"),
		"a certificate": newAuthority(t, td).pem(), "huge": strings.Repeat("x", maxPEM+1),
	} {
		if _, err := ParseKey([]byte(text)); err == nil {
			t.Errorf("%s was accepted", name)
		} else if strings.Contains(err.Error(), secret) {
			t.Errorf("%s: the key is in the error", name)
		}
	}
}

func TestCSR(t *testing.T) {
	key := must(NewKey())
	der := must(NewCSR(key, web()))
	got := must(DecodeCSR(EncodeCSR(der)))
	req := must(x509.ParseCertificateRequest(got))
	if err := req.CheckSignature(); err != nil {
		t.Error(err)
	}
	if id, err := IDOfCSR(req); err != nil || id != web() {
		t.Errorf("%v, %v", id, err)
	}
	if len(req.URIs) != 1 || len(req.DNSNames) != 0 || req.Subject.String() != "" || len(req.Extensions) != 1 {
		t.Errorf("more than one name in it: %+v", req)
	}
	odd := ServiceID{td, "dc1", "a b;ü%2f*"}
	if id, err := IDOfCSR(must(x509.ParseCertificateRequest(must(NewCSR(key, odd))))); err != nil || id != odd {
		t.Errorf("%v, %v", id, err)
	}
	if _, err := NewCSR(key, ServiceID{td, "dc1", "a/b"}); err == nil {
		t.Error("a name with a slash was accepted")
	}
	for _, text := range []string{"", "x", newAuthority(t, td).pem(), string(EncodeCSR(der)) + string(EncodeCSR(der))} {
		if _, err := DecodeCSR([]byte(text)); err == nil {
			t.Errorf("%.30q was accepted", text)
		}
	}
}

func TestChain(t *testing.T) {
	root := newAuthority(t, td)
	leaf := root.leaf(t, web())
	text := string(EncodeCert(leaf.Leaf.Raw)) + root.pem()
	c, err := ParseChain([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	if string(c.PEM()) != text || len(c.DER) != 2 || !c.Leaf().Equal(leaf.Leaf) || c.Empty() {
		t.Error("the chain did not come back the same")
	}
	if id, err := c.ID(); err != nil || id != web() {
		t.Errorf("%v, %v", id, err)
	}
	if c.Expired(now) || !c.Expired(now.Add(2*time.Hour)) {
		t.Error("expiry")
	}
	if _, err := root.bundle(t, td).VerifyPeer(c.Certificates(), now); err != nil {
		t.Error(err)
	}
	if cert, err := c.Certificate(leaf.PrivateKey.(crypto.Signer)); err != nil || cert.Leaf != c.Leaf() {
		t.Error(err)
	}
	if _, err := c.Certificate(root.key); err == nil {
		t.Error("a foreign key was accepted")
	}
	if _, err := c.Certificate(nil); err == nil {
		t.Error("no key was accepted")
	}
	if got, want := c.RenewAt(0.5), now; !got.Equal(want) {
		t.Errorf("RenewAt = %s, want %s", got, want)
	}
	var none Chain
	if _, err := none.ID(); err == nil || !none.Empty() || none.Leaf() != nil || !none.Expired(now) || !none.RenewAt(0).IsZero() {
		t.Error("the empty chain")
	}
	if _, err := none.Certificate(root.key); err == nil {
		t.Error("the empty chain has no certificate")
	}
	if _, err := ParseChain([]byte(strings.Repeat(root.pem(), maxChain+1))); err == nil {
		t.Error("a chain too long was accepted")
	}
}

func TestRenewAt(t *testing.T) {
	end := now.Add(72 * time.Hour)
	for jitter, want := range map[float64]time.Duration{
		0: 28*time.Hour + 48*time.Minute, 0.5: 36 * time.Hour, 1: 43*time.Hour + 12*time.Minute,
		-1: 28*time.Hour + 48*time.Minute, 7: 43*time.Hour + 12*time.Minute, math.NaN(): 28*time.Hour + 48*time.Minute,
	} {
		got := RenewAt(now, end, jitter).Sub(now)
		if d := got - want; d < -time.Second || d > time.Second {
			t.Errorf("jitter %v: %s, want %s", jitter, got, want)
		}
	}
	if got := RenewAt(now, now.Add(-time.Hour), 0.5); !got.Equal(now) {
		t.Errorf("a life of less than nothing: %s", got)
	}
}

func TestSerial(t *testing.T) {
	for n, want := range map[int64]string{0: "00", 1: "01", 0xabcd: "ab:cd"} {
		if got := Serial(big.NewInt(n)); got != want {
			t.Errorf("%d: %s", n, got)
		}
	}
	if Serial(nil) != "00" {
		t.Error("nil")
	}
}

func FuzzPEM(f *testing.F) {
	f.Add([]byte(newAuthority(f, td).pem()))
	f.Add(must(EncodeKey(must(NewKey()))))
	f.Fuzz(func(_ *testing.T, text []byte) {
		_, _ = ParseKey(text)
		_, _ = ParseChain(text)
		_, _ = DecodeCSR(text)
		_, _ = NewBundle(td, []string{string(text)})
	})
}
