package connect

import (
	"crypto/sha256"
	"crypto/x509"
	"runtime"
	"sync"
	"weak"
)

// sharedCerts are the certificates that peers of this process have shown, each once: a
// peer with many tunnels shows the same one in each, and a parsed one takes 3 KiB.
var sharedCerts certCache

type certCache struct {
	mu    sync.Mutex
	known map[[sha256.Size]byte]weak.Pointer[x509.Certificate]
}

// share has a chain, in place, use the certificates that are known already. That is what
// the connection holds, too. Who put them in has verified none of them: they are parsed
// DER and nothing more.
func (c *certCache) share(chain []*x509.Certificate) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.known == nil {
		c.known = map[[sha256.Size]byte]weak.Pointer[x509.Certificate]{}
	}
	for i, cert := range chain {
		key := sha256.Sum256(cert.Raw)
		if known := c.known[key].Value(); known != nil {
			chain[i] = known
			continue
		}
		p := weak.Make(cert)
		c.known[key] = p
		runtime.AddCleanup(cert, func(key [sha256.Size]byte) {
			c.mu.Lock()
			defer c.mu.Unlock()
			if c.known[key] == p {
				delete(c.known, key)
			}
		}, key)
	}
}
