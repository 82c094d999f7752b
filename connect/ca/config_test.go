package ca

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/connect/identity"
)

func TestParseConfig(t *testing.T) {
	c := must(ParseConfig(raw(nil)))
	if c.LeafTTL != 72*time.Hour || c.IntermediateTTL != 8760*time.Hour || c.RootTTL != 87600*time.Hour || c.KeyType != "ec" || c.KeyBits != 0 || c.ClusterID != clusterID {
		t.Errorf("defaults: %+v", c)
	}
	d := DefaultConfig()
	if e := must(ParseConfig(d)); e.LeafTTL != c.LeafTTL || e.IntermediateTTL != c.IntermediateTTL || e.RootTTL != c.RootTTL {
		t.Errorf("DefaultConfig: %+v", e)
	}
	for _, m := range []map[string]any{
		{"LeafCertTTL": "24h", "IntermediateCertTTL": "100h", "RootCertTTL": "1000h", "CSRMaxPerSecond": float64(100), "CSRMaxConcurrent": json.Number("3"), "PrivateKeyType": "rsa", "PrivateKeyBits": 4096},
		{"leaf_cert_ttl": "24h", "intermediate_cert_ttl": "100h", "root_cert_ttl": "1000h", "csr_max_per_second": 100, "csr_max_concurrent": 3.0, "private_key_type": "rsa", "private_key_bits": json.Number("4096")},
	} {
		c, err := ParseConfig(raw(m))
		if err != nil || c.LeafTTL != 24*time.Hour || c.IntermediateTTL != 100*time.Hour || c.RootTTL != 1000*time.Hour ||
			c.CSRMaxPerSecond != 100 || c.CSRMaxConcurrent != 3 || c.KeyType != "rsa" || c.KeyBits != 4096 {
			t.Errorf("%v: %+v, %v", m, c, err)
		}
	}
	// The longest leaf pulls the defaults of the others along.
	if c := config("LeafCertTTL", "8760h"); c.IntermediateTTL != 3*8760*time.Hour {
		t.Errorf("%s", c)
	}
	if c := config("PrivateKeyType", "rsa"); c.KeyBits != 2048 {
		t.Errorf("%s", c)
	}
}

func TestParseConfigRefuses(t *testing.T) {
	for provider, want := range map[string]string{"nope": `unknown CA provider "nope"`, "": `unknown CA provider ""`} {
		_, err := ParseConfig(catalog.CAConfig{Provider: provider})
		if err == nil || err.Error() != want || !errors.Is(err, catalog.ErrInvalid) {
			t.Errorf("provider %q: %v", provider, err)
		}
	}
	own := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	cert, key := ownRoot(own)
	_, otherKey := ownRoot(must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader)))
	_, weakKey := ownRoot(must(rsa.GenerateKey(rand.Reader, 1024)))
	_, edPriv, _ := ed25519.GenerateKey(rand.Reader)
	_, edKey := ownRoot(edPriv)
	leaf := string(identity.EncodeCert(must(must(Open(must(NewRoot(config(), seal, now)), config(), seal)).issue(service("web"), own.Public(), now)).Raw))
	for _, tc := range []struct {
		config map[string]any
		want   string
	}{
		{map[string]any{"LeafCertTTL": "1m"}, "leaf cert TTL must be greater or equal than 1h0m0s"},
		{map[string]any{"LeafCertTTL": "-1h"}, "leaf cert TTL must be greater or equal than 1h0m0s"},
		{map[string]any{"LeafCertTTL": "9000h"}, "leaf cert TTL must be less than 8760h0m0s"},
		{map[string]any{"LeafCertTTL": "soon"}, "invalid duration"},
		{map[string]any{"LeafCertTTL": true}, "LeafCertTTL"},
		{map[string]any{"IntermediateCertTTL": "100h"}, "intermediate cert TTL must be greater or equal than 3 * LeafCertTTL (>=216h0m0s)"},
		{map[string]any{"RootCertTTL": "8000h"}, "root cert TTL must be"},
		{map[string]any{"LeafTTL": "2h"}, `unknown key "LeafTTL"`},
		{map[string]any{"PrivateKeyType": "dsa"}, "private key type must be either 'ec' or 'rsa'"},
		{map[string]any{"PrivateKeyBits": 255}, "EC key length must be one of (224, 256, 384, 521) bits"},
		{map[string]any{"PrivateKeyType": "rsa", "PrivateKeyBits": 1024}, "RSA key length must be 2048 or 4096 bits"},
		{map[string]any{"CSRMaxPerSecond": -1.0}, "negative"},
		{map[string]any{"CSRMaxConcurrent": -1}, "negative"},
		{map[string]any{"PrivateKey": "x"}, "PrivateKey"},
		{map[string]any{"PrivateKey": weakKey}, "1024 bits"},
		{map[string]any{"PrivateKey": edKey}, "EC or RSA only"},
		{map[string]any{"RootCert": "x"}, "RootCert"},
		{map[string]any{"RootCert": leaf}, "not that of an authority"},
		{map[string]any{"RootCert": cert, "PrivateKey": otherKey}, "not the key of RootCert"},
		{map[string]any{"RootCert": cert, "PrivateKey": key, "PrivateKeyType": "rsa"}, "say rsa 256, the key that is given is ec 256"},
		{map[string]any{"PrivateKey": key, "PrivateKeyBits": 384}, "say ec 384"},
	} {
		_, err := ParseConfig(raw(tc.config))
		if err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%.80v: %v, want %q", tc.config, err, tc.want)
			continue
		}
		if !errors.Is(err, catalog.ErrInvalid) {
			t.Errorf("%v is no ErrInvalid", err)
		}
		if strings.Contains(err.Error(), "PRIVATE KEY") {
			t.Errorf("a key in the error: %v", err)
		}
	}
}

func TestConfigHidesItsKey(t *testing.T) {
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	cert, text := ownRoot(key)
	in := raw(map[string]any{"RootCert": cert, "private_key": text, "LeafCertTTL": "2h"})
	c := must(ParseConfig(in))
	var b strings.Builder
	slog.New(slog.NewJSONHandler(&b, nil)).Info("x", "rule", c)
	slog.New(slog.NewTextHandler(&b, nil)).Info("x", "rule", c)
	fmt.Fprintf(&b, "%v %+v %#v %s %v", c, c, c, c, &c)
	d, _ := json.Marshal(c)
	secret := must(key.ECDH()).Bytes()
	all := b.String() + string(d)
	for _, s := range []string{fmt.Sprintf("%x", secret), fmt.Sprintf("%d", secret), "PRIVATE", fmt.Sprint(key)} {
		if strings.Contains(all, s) {
			t.Errorf("the key shows in %s", all)
		}
	}
	out := Strip(in)
	if _, left := out.Config["private_key"]; left || out.Config["LeafCertTTL"] != "2h" || out.Config["RootCert"] != cert {
		t.Errorf("%v", out.Config)
	}
	if in.Config["private_key"] != text {
		t.Error("Strip changed what it was given")
	}
	if got := Strip(catalog.CAConfig{}); got.Config != nil {
		t.Errorf("%v", got)
	}
}
