package ca

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1" //nolint:gosec // a fingerprint that names a root, in Consul's format; it proves nothing
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"errors"
	"fmt"
	"math/big"
	"net/url"
	"strings"
	"time"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/connect/identity"
)

// rootName is what Consul calls every root.
const rootName = "Consul CA Primary Cert"

// backdate is how long before now a certificate begins to be valid, for the sake
// of hosts whose clocks are behind. Short-lived leaves of tests are backdated less,
// as half of a certificate's life has to lie ahead.
const backdate = 5 * time.Minute

// rootBackdate is the same for authorities. A mesh that began on hosts whose clocks were
// hours or days ahead must not stand still until the time comes once they are right.
const rootBackdate = 72 * time.Hour

// NewRoot makes the root that cfg asks for: generated, or the operator's own. It is
// active, and its key is sealed.
func NewRoot(cfg Config, seal Sealer, now time.Time) (*catalog.Root, error) {
	domain := catalog.TrustDomain(cfg.ClusterID)
	if cfg.ClusterID == "" {
		return nil, errors.New("CA root: there is no cluster ID to name the trust domain")
	}
	if err := (identity.SigningID{TrustDomain: domain}).Validate(); err != nil {
		return nil, fmt.Errorf("CA root: cluster ID: %w: %w", catalog.ErrInvalid, err)
	}
	key, cert := cfg.key, cfg.RootCert
	var err error
	switch {
	case cert != nil && key == nil:
		return nil, refuse("RootCert is not the active root: its PrivateKey has to be given too")
	case cert != nil:
		if err := checkOwn(cert, domain, now); err != nil {
			return nil, err
		}
	default:
		if key == nil {
			if key, err = generate(cfg.KeyType, or(cfg.KeyBits, 256)); err != nil {
				return nil, fmt.Errorf("CA root: %w", err)
			}
		}
		if cert, err = selfSign(key, cfg, now); err != nil {
			return nil, fmt.Errorf("CA root: %w", err)
		}
	}
	a := &Authority{cfg: cfg, cert: cert, key: key, domain: domain}
	if err := a.try([]string{string(identity.EncodeCert(cert.Raw))}, now); err != nil {
		return nil, refuse("the root cannot issue certificates of trust domain %q that peers accept: %v", domain, err)
	}
	return describe(a, seal)
}

// checkOwn is what an operator's own root must fulfil beyond what ParseConfig
// checked, and what a trial cannot tell.
func checkOwn(cert *x509.Certificate, domain string, now time.Time) error {
	if now.Before(cert.NotBefore) || now.After(cert.NotAfter) {
		return refuse("RootCert is valid from %s to %s, which is not now", cert.NotBefore.UTC().Format(time.RFC3339), cert.NotAfter.UTC().Format(time.RFC3339))
	}
	if cert.KeyUsage != 0 && cert.KeyUsage&x509.KeyUsageCertSign == 0 {
		return refuse("RootCert may not sign certificates (key usage)")
	}
	id, err := identity.IDOf(cert)
	switch {
	case errors.Is(err, identity.ErrNoURI): // names no trust domain, so it can serve ours
	case err != nil:
		return refuse("RootCert: %s", err)
	case id != identity.ID(identity.SigningID{TrustDomain: domain}):
		return refuse("RootCert is of %s, this cluster is %q", id, domain)
	}
	return nil
}

// describe seals the key and fills in the catalog's noun.
func describe(a *Authority, seal Sealer) (*catalog.Root, error) {
	typ, bits, err := keyKind(a.cert.PublicKey)
	if err != nil {
		return nil, fmt.Errorf("CA root: %w", err)
	}
	r := &catalog.Root{
		ID:                  Fingerprint(a.cert),
		Name:                rootName,
		SerialNumber:        a.cert.SerialNumber.Uint64(),
		SigningKeyID:        identity.HexColon(a.cert.SubjectKeyId),
		ExternalTrustDomain: a.cfg.ClusterID,
		NotBefore:           a.cert.NotBefore,
		NotAfter:            a.cert.NotAfter,
		RootCert:            string(identity.EncodeCert(a.cert.Raw)),
		Active:              true,
		PrivateKeyType:      typ,
		PrivateKeyBits:      bits,
		LeafTTL:             a.cfg.LeafTTL,
	}
	der, err := x509.MarshalPKCS8PrivateKey(a.key)
	if err != nil {
		return nil, fmt.Errorf("CA root: %w", err)
	}
	defer clear(der)
	if r.SealedKey, err = seal.Seal(der, aad(r.ExternalTrustDomain, r.ID)); err != nil {
		return nil, fmt.Errorf("CA root: %w", err)
	}
	return r, nil
}

func selfSign(key crypto.Signer, cfg Config, now time.Time) (*x509.Certificate, error) {
	domain := catalog.TrustDomain(cfg.ClusterID)
	skid, err := keyID(key.Public())
	if err != nil {
		return nil, err
	}
	// 63 bits, since the API shows the number as an integer.
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<63-1))
	if err != nil {
		return nil, err
	}
	begin := now.Add(-min(rootBackdate, cfg.RootTTL/12))
	tmpl := &x509.Certificate{
		SerialNumber:          serial.Add(serial, big.NewInt(1)),
		Subject:               pkix.Name{CommonName: commonName(cfg.ClusterID)},
		URIs:                  []*url.URL{identity.SigningID{TrustDomain: domain}.URI()},
		NotBefore:             begin,
		NotAfter:              begin.Add(cfg.RootTTL),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign | x509.KeyUsageDigitalSignature,
		BasicConstraintsValid: true,
		IsCA:                  true,
		SubjectKeyId:          skid,
		AuthorityKeyId:        skid,
		// Whoever gets hold of this key can name nobody outside the trust domain.
		PermittedURIDomains:         []string{domain},
		PermittedDNSDomainsCritical: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

// commonName is "pri-<random>.consul.ca.<start of the cluster ID>.consul".
func commonName(clusterID string) string {
	short := strings.ToLower(strings.ReplaceAll(clusterID, "-", ""))
	if len(short) < 8 || strings.Trim(short[:8], "0123456789abcdef") != "" {
		sum := sha256.Sum256([]byte(clusterID))
		short = hex.EncodeToString(sum[:])
	}
	return fmt.Sprintf("pri-%s.consul.ca.%s.consul", strings.ToLower(rand.Text()[:8]), short[:8])
}

// Fingerprint names a root: SHA-1 of its DER, hex with colons.
func Fingerprint(cert *x509.Certificate) string {
	sum := sha1.Sum(cert.Raw) //nolint:gosec // see the import
	return identity.HexColon(sum[:])
}

// keyID is the subject key identifier of RFC 7093, section 2, method 1.
func keyID(pub crypto.PublicKey) ([]byte, error) {
	der, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return nil, err
	}
	var spki struct {
		Algorithm pkix.AlgorithmIdentifier
		Key       asn1.BitString
	}
	if _, err := asn1.Unmarshal(der, &spki); err != nil {
		return nil, err
	}
	sum := sha256.Sum256(spki.Key.Bytes)
	return sum[:20], nil
}

func generate(typ string, bits int) (crypto.Signer, error) {
	if typ == KeyRSA {
		return rsa.GenerateKey(rand.Reader, bits)
	}
	c := curve(bits)
	if c == nil {
		return nil, fmt.Errorf("no elliptic curve has %d bits", bits)
	}
	return ecdsa.GenerateKey(c, rand.Reader)
}

func curve(bits int) elliptic.Curve {
	switch bits {
	case 224:
		return elliptic.P224()
	case 256:
		return elliptic.P256()
	case 384:
		return elliptic.P384()
	case 521:
		return elliptic.P521()
	}
	return nil
}
