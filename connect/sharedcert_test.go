package connect

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"math/big"
	"runtime"
	"testing"
	"time"
)

// TestSharedCertificates: the same bytes become the same certificate, others do not, and
// one that nobody holds is forgotten.
func TestSharedCertificates(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der := make([][]byte, 2)
	for i := range der {
		c := &x509.Certificate{SerialNumber: big.NewInt(int64(i) + 1), NotAfter: time.Now().Add(time.Hour)}
		if der[i], err = x509.CreateCertificate(rand.Reader, c, c, key.Public(), key); err != nil {
			t.Fatal(err)
		}
	}
	parse := func(i int) []*x509.Certificate {
		c, err := x509.ParseCertificate(der[i])
		if err != nil {
			t.Fatal(err)
		}
		return []*x509.Certificate{c}
	}
	var cache certCache
	a, again, b := parse(0), parse(0), parse(1)
	for _, chain := range [][]*x509.Certificate{a, again, b} {
		cache.share(chain)
	}
	if a[0] != again[0] || a[0] == b[0] {
		t.Fatalf("%p and %p are the same certificate, %p is another", a[0], again[0], b[0])
	}
	known := func() int {
		cache.mu.Lock()
		defer cache.mu.Unlock()
		return len(cache.known)
	}
	if n := known(); n != 2 {
		t.Fatalf("%d are known", n)
	}
	runtime.KeepAlive([]any{a, again, b})
	for end := time.Now().Add(10 * time.Second); known() > 0; runtime.Gosched() {
		if time.Now().After(end) {
			t.Fatalf("%d that nobody holds are known", known())
		}
		runtime.GC()
	}
}
