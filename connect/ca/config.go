package ca

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math"
	"strings"
	"time"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/connect/identity"
)

// Provider is the name of the built-in authority in a CAConfig.
const Provider = "consul"

// Bounds and defaults of lifetimes, as Consul has them.
const (
	MinLeafTTL             = time.Hour
	MaxLeafTTL             = 8760 * time.Hour
	defaultLeafTTL         = 72 * time.Hour
	defaultIntermediateTTL = 8760 * time.Hour
	defaultRootTTL         = 87600 * time.Hour
)

// Key types.
const (
	KeyEC  = "ec"
	KeyRSA = "rsa"
)

// Config is a CAConfig that was understood and checked. The zero value is not
// usable: see ParseConfig.
type Config struct {
	ClusterID       string // names the trust domain; may be empty until a root is made
	LeafTTL         time.Duration
	IntermediateTTL time.Duration // of cross-signed certificates
	RootTTL         time.Duration
	// KeyType and KeyBits are those of a root that is generated; KeyBits is 0 when
	// neither was configured, and then any existing root will do.
	KeyType string
	KeyBits int
	// RootCert is the operator's own root, nil for a generated one.
	RootCert *x509.Certificate
	// CSRMaxPerSecond and CSRMaxConcurrent bound signing; see NewLimiter. 0: unset.
	CSRMaxPerSecond  float64
	CSRMaxConcurrent int
	// Force lets a root take over that the old one cannot cross-sign.
	Force bool

	key crypto.Signer // of RootCert, or of the root to be generated
}

// ConfigError is why a configuration is refused. It is a catalog.ErrInvalid.
type ConfigError struct{ msg string }

// Error speaks in Consul's words, where it has any.
func (e *ConfigError) Error() string { return e.msg }

// Unwrap implements errors.Unwrap.
func (e *ConfigError) Unwrap() error { return catalog.ErrInvalid }

// UnknownProviderError is a configuration for an authority that we do not have.
type UnknownProviderError struct{ Provider string }

// Error speaks in Consul's words.
func (e *UnknownProviderError) Error() string {
	return fmt.Sprintf("unknown CA provider %q", e.Provider)
}

// Unwrap implements errors.Unwrap.
func (e *UnknownProviderError) Unwrap() error { return catalog.ErrInvalid }

func refuse(format string, args ...any) error { return &ConfigError{fmt.Sprintf(format, args...)} }

// DefaultConfig is what a cluster has that was configured nothing, without its
// cluster ID.
func DefaultConfig() catalog.CAConfig {
	return catalog.CAConfig{Provider: Provider, Config: map[string]any{
		"LeafCertTTL": "72h", "IntermediateCertTTL": "8760h", "RootCertTTL": "87600h",
	}}
}

// settings are the keys of CAConfig.Config.
type settings struct {
	LeafCertTTL, IntermediateCertTTL, RootCertTTL time.Duration

	PrivateKeyType string
	PrivateKeyBits int
	PrivateKey     string
	RootCert       string
	// RotationPeriod stands in configurations of old; Consul reads it and does nothing.
	RotationPeriod   any
	CSRMaxPerSecond  float64
	CSRMaxConcurrent int
}

// ParseConfig reads and checks a configuration. Keys may be in CamelCase or
// snake_case, durations are strings; unknown keys are refused.
func ParseConfig(c catalog.CAConfig) (Config, error) { return ParseConfigFloor(c, MinLeafTTL) }

// ParseConfigFloor is ParseConfig with another lower bound for the life of leaves,
// for tests that want to see them end.
func ParseConfigFloor(c catalog.CAConfig, floor time.Duration) (Config, error) {
	if c.Provider != Provider {
		return Config{}, &UnknownProviderError{c.Provider}
	}
	var s settings
	if err := catalog.Decode(c.Config, &s); err != nil {
		var unknown *catalog.UnknownKeyError
		if errors.As(err, &unknown) {
			return Config{}, refuse("unknown key %q in the configuration of the CA", unknown.Key())
		}
		return Config{}, &ConfigError{strings.TrimPrefix(err.Error(), catalog.ErrInvalid.Error()+": ")}
	}
	out := Config{
		ClusterID: c.ClusterID, Force: c.ForceWithoutCrossSigning,
		CSRMaxPerSecond: s.CSRMaxPerSecond, CSRMaxConcurrent: s.CSRMaxConcurrent,
	}
	if err := out.setTTLs(s, floor); err != nil {
		return Config{}, err
	}
	if !(s.CSRMaxPerSecond >= 0) || math.IsInf(s.CSRMaxPerSecond, 0) || s.CSRMaxConcurrent < 0 {
		return Config{}, refuse("CSRMaxPerSecond and CSRMaxConcurrent cannot be negative")
	}
	if err := out.setKey(s); err != nil {
		return Config{}, err
	}
	return out, nil
}

func (c *Config) setTTLs(s settings, floor time.Duration) error {
	c.LeafTTL = or(s.LeafCertTTL, defaultLeafTTL)
	if c.LeafTTL < floor {
		return refuse("leaf cert TTL must be greater or equal than %s", floor)
	}
	if c.LeafTTL > MaxLeafTTL {
		return refuse("leaf cert TTL must be less than %s", MaxLeafTTL)
	}
	c.IntermediateTTL = or(s.IntermediateCertTTL, max(defaultIntermediateTTL, 3*c.LeafTTL))
	if c.IntermediateTTL < 3*c.LeafTTL {
		return refuse("intermediate cert TTL must be greater or equal than 3 * LeafCertTTL (>=%s)", 3*c.LeafTTL)
	}
	c.RootTTL = or(s.RootCertTTL, max(defaultRootTTL, c.IntermediateTTL))
	if c.RootTTL < c.IntermediateTTL {
		return refuse("root cert TTL must be greater or equal than the intermediate cert TTL (>=%s)", c.IntermediateTTL)
	}
	return nil
}

func (c *Config) setKey(s settings) error {
	if s.PrivateKey != "" {
		key, err := identity.ParseKey([]byte(s.PrivateKey))
		if err != nil {
			return refuse("PrivateKey: %s", strings.TrimPrefix(err.Error(), "private key: "))
		}
		if _, _, err := keyKind(key.Public()); err != nil {
			return refuse("PrivateKey: %s", err)
		}
		c.key = key
	}
	if s.RootCert != "" {
		cert, err := identity.ParseCert([]byte(s.RootCert))
		if err != nil {
			return refuse("RootCert: %s", strings.TrimPrefix(err.Error(), "certificate: "))
		}
		if !cert.BasicConstraintsValid || !cert.IsCA {
			return refuse("RootCert: the certificate is not that of an authority (basic constraints: CA)")
		}
		if c.key != nil && !identity.SameKey(c.key.Public(), cert.PublicKey) {
			return refuse("PrivateKey is not the key of RootCert")
		}
		c.RootCert = cert
	}
	return c.setKind(s)
}

// setKind checks the type and size of keys. Beside a key or a certificate they say
// nothing, but must not contradict it.
func (c *Config) setKind(s settings) error {
	var have crypto.PublicKey
	switch {
	case c.RootCert != nil:
		have = c.RootCert.PublicKey
	case c.key != nil:
		have = c.key.Public()
	}
	if have != nil {
		typ, bits, err := keyKind(have)
		if err != nil {
			return refuse("RootCert: %s", err)
		}
		if (s.PrivateKeyType != "" && s.PrivateKeyType != typ) || (s.PrivateKeyBits != 0 && s.PrivateKeyBits != bits) {
			return refuse("PrivateKeyType and PrivateKeyBits say %s %d, the key that is given is %s %d",
				or(s.PrivateKeyType, typ), or(s.PrivateKeyBits, bits), typ, bits)
		}
		c.KeyType, c.KeyBits = typ, bits
		return nil
	}
	if s.PrivateKeyType == "" && s.PrivateKeyBits == 0 {
		c.KeyType = KeyEC
		return nil
	}
	switch c.KeyType = or(s.PrivateKeyType, KeyEC); c.KeyType {
	case KeyEC:
		c.KeyBits = or(s.PrivateKeyBits, 256)
		if curve(c.KeyBits) == nil {
			return refuse("EC key length must be one of (224, 256, 384, 521) bits")
		}
	case KeyRSA:
		c.KeyBits = or(s.PrivateKeyBits, 2048)
		if c.KeyBits != 2048 && c.KeyBits != 4096 {
			return refuse("RSA key length must be 2048 or 4096 bits")
		}
	default:
		return refuse("private key type must be either 'ec' or 'rsa'")
	}
	return nil
}

// Strip removes the private key from a configuration, which is then fit to be
// stored and shown: the key lives on sealed in its Root. RootCert stays, and alone
// it is good for as long as that root is the active one.
func Strip(c catalog.CAConfig) catalog.CAConfig {
	c.Config = maps.Clone(c.Config)
	maps.DeleteFunc(c.Config, func(k string, _ any) bool {
		return strings.EqualFold(strings.ReplaceAll(k, "_", ""), "PrivateKey")
	})
	return c
}

// ClusterIDOf reads the cluster ID from the SPIFFE ID that a root carries, so that
// a new cluster can go on under the root, and the names, of an older one. It is ""
// when the root carries none.
func ClusterIDOf(root *x509.Certificate) string {
	if root == nil {
		return ""
	}
	id, err := identity.IDOf(root)
	if err != nil {
		return ""
	}
	if _, ok := id.(identity.SigningID); !ok {
		return ""
	}
	cluster, ok := strings.CutSuffix(id.Domain(), ".consul")
	if !ok {
		return ""
	}
	return cluster
}

// String hides the key.
func (c Config) String() string {
	return fmt.Sprintf("leaf_cert_ttl=%s intermediate_cert_ttl=%s root_cert_ttl=%s key=%s/%d own_root=%t",
		c.LeafTTL, c.IntermediateTTL, c.RootTTL, c.KeyType, c.KeyBits, c.RootCert != nil)
}

// GoString hides the key.
func (c Config) GoString() string { return "ca.Config{" + c.String() + "}" }

// LogValue hides the key.
func (c Config) LogValue() slog.Value { return slog.StringValue(c.String()) }

// keyKind is the type and size of a key that an authority can have.
func keyKind(pub crypto.PublicKey) (typ string, bits int, err error) {
	switch k := pub.(type) {
	case *ecdsa.PublicKey:
		if bits = k.Curve.Params().BitSize; curve(bits) == nil {
			return "", 0, fmt.Errorf("an EC key of %d bits cannot be used", bits)
		}
		return KeyEC, bits, nil
	case *rsa.PublicKey:
		if bits = k.N.BitLen(); bits < 2048 || bits > 8192 {
			return "", 0, fmt.Errorf("an RSA key of %d bits cannot be used: 2048 to 8192", bits)
		}
		return KeyRSA, bits, nil
	}
	return "", 0, fmt.Errorf("a %T cannot be used: EC or RSA only", pub)
}

func or[T comparable](v, otherwise T) T {
	var zero T
	if v == zero {
		return otherwise
	}
	return v
}
