package connect

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/weftmesh/weft/catalog/durable"
)

// newCredential joins a key and the chain issued for it, and holds both to what
// w expects: this key, this identity, a root that w trusts.
func newCredential(key crypto.Signer, der [][]byte, w *world, now time.Time) (*credential, error) {
	if len(der) == 0 {
		return nil, errors.New("the chain is empty")
	}
	chain := make([]*x509.Certificate, len(der))
	for i, b := range der {
		c, err := x509.ParseCertificate(b)
		if err != nil {
			return nil, fmt.Errorf("certificate %d of the chain: %w", i+1, err)
		}
		chain[i] = c
	}
	pub, ok := chain[0].PublicKey.(interface{ Equal(crypto.PublicKey) bool })
	if !ok || !pub.Equal(key.Public()) {
		return nil, errors.New("it is for another key")
	}
	id, err := w.bundle.VerifyPeer(chain, now)
	if err != nil {
		return nil, err
	}
	if id != w.id {
		return nil, fmt.Errorf("it names %s, not %s", id, w.id)
	}
	return &credential{
		tls:     &tls.Certificate{Certificate: der, PrivateKey: key, Leaf: chain[0]},
		chain:   chain,
		id:      id,
		roots:   slices.Clone(w.snap.Roots),
		renewAt: renewAt(chain[0]),
	}, nil
}

// renewAt is at 50 % ± 10 % of the life of a leaf, another moment for each.
func renewAt(leaf *x509.Certificate) time.Time {
	life := leaf.NotAfter.Sub(leaf.NotBefore)
	return leaf.NotBefore.Add(time.Duration(float64(life) * (0.4 + 0.2*rand.Float64())))
}

// save writes key and chain as one PEM file, so that they are never of two
// renewals; readable by the owner alone, replaced in one step.
func (c *credential) save(file string, key *ecdsa.PrivateKey) error {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	var buf bytes.Buffer
	_ = pem.Encode(&buf, &pem.Block{Type: "PRIVATE KEY", Bytes: der}) // a Buffer takes all
	for _, b := range c.tls.Certificate {
		_ = pem.Encode(&buf, &pem.Block{Type: "CERTIFICATE", Bytes: b})
	}
	return durable.Write(file, buf.Bytes())
}

// maxKeyFile bounds what is read of a key file.
const maxKeyFile = 256 << 10

// loadCredential reads what save wrote. A missing file gives neither.
func loadCredential(file string, w *world, now time.Time) (*credential, error) {
	var key *ecdsa.PrivateKey
	var der [][]byte
	found, err := durable.File{Path: file, Most: maxKeyFile, Private: true}.Read(func(b []byte) (err error) {
		key, der, err = parseCredential(b)
		return err
	})
	if err != nil || !found {
		return nil, err
	}
	return newCredential(key, der, w, now)
}

func parseCredential(b []byte) (key *ecdsa.PrivateKey, der [][]byte, err error) {
	for {
		var block *pem.Block
		block, b = pem.Decode(b)
		if block == nil {
			break
		}
		switch block.Type {
		case "PRIVATE KEY":
			k, err := x509.ParsePKCS8PrivateKey(block.Bytes)
			if err != nil {
				return nil, nil, errors.New("its private key cannot be read")
			}
			key, _ = k.(*ecdsa.PrivateKey)
		case "CERTIFICATE":
			der = append(der, block.Bytes)
		}
	}
	if key == nil {
		return nil, nil, errors.New("it holds no ECDSA private key")
	}
	return key, der, nil
}
