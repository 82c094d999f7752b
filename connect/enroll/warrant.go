package enroll

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
)

// A warrant proves of a message, wherever it came by, that a server sent it. TLS proves
// the other end of a connection, and what gossip carries is on none.

// ErrNoWarrant is what a node without a server's certificate gets that would sign.
var ErrNoWarrant = errors.New("only a server can sign for the cluster")

const (
	warrantPrefix = "weft-warrant/1\x00"
	maxWarrant    = 4 << 10
)

// Sign makes a proof that this server said b.
func (c *Credentials) Sign(b []byte) ([]byte, error) {
	h := c.held.Load()
	if c.self.Role != RoleServer || h == nil {
		return nil, ErrNoWarrant
	}
	key, ok := h.cert.PrivateKey.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("a %T cannot sign", h.cert.PrivateKey)
	}
	sum := warranted(b)
	sig, err := key.Sign(rand.Reader, sum[:], crypto.SHA256)
	if err != nil {
		return nil, err
	}
	leaf := h.cert.Leaf.Raw
	out := binary.BigEndian.AppendUint16(nil, uint16(len(leaf))) //nolint:gosec // a certificate of our own is far shorter
	return append(append(out, leaf...), sig...), nil
}

// Verify tells whether a server of this cluster and datacenter said b.
func (c *Credentials) Verify(b, proof []byte) error {
	h := c.held.Load()
	switch {
	case h == nil:
		return errors.New("this node has not joined its cluster yet, and knows none of its servers")
	case len(proof) == 0:
		return errors.New("it is not signed by a server")
	case len(proof) > maxWarrant || len(proof) < 2:
		return fmt.Errorf("a signature of %d bytes", len(proof))
	}
	n := int(binary.BigEndian.Uint16(proof))
	if proof = proof[2:]; n > len(proof) {
		return errors.New("the signature is cut short")
	}
	leaf, err := x509.ParseCertificate(proof[:n])
	if err != nil {
		return fmt.Errorf("the certificate of who signed: %w", err)
	}
	p, err := h.trust.verify([]*x509.Certificate{leaf}, c.now(), x509.ExtKeyUsageClientAuth, false)
	switch {
	case err != nil:
		return fmt.Errorf("the certificate of who signed: %w", err)
	case p.Role != RoleServer:
		return fmt.Errorf("it is signed by %s, which is no server", p)
	case p.Datacenter != c.self.Datacenter:
		return fmt.Errorf("it is signed by %s, and this is datacenter %q", p, c.self.Datacenter)
	}
	key, ok := leaf.PublicKey.(*ecdsa.PublicKey)
	if sum := warranted(b); !ok || !ecdsa.VerifyASN1(key, sum[:], proof[n:]) {
		return fmt.Errorf("the signature of %s is wrong", p)
	}
	return nil
}

// warranted is what is signed: never what a TLS handshake signs with the same key.
func warranted(b []byte) [sha256.Size]byte {
	return sha256.Sum256(append([]byte(warrantPrefix), b...))
}
