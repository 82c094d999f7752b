package enroll

import (
	"bytes"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base32"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"strings"
)

const (
	secretPrefix = "weft-secret-1-" //nolint:gosec // what a secret begins with
	secretLen    = 32
	sumLen       = 4
	maxText      = 4 << 10 // of a secret, a token and the files that hold them
)

// ErrSecret is wrapped by every error about a text that is no cluster secret.
var ErrSecret = errors.New("cluster secret")

// Secret is what the servers of one cluster share. The zero Secret is none. It prints
// as nothing that could be used.
type Secret struct{ key hidden }

// hidden is 32 bytes behind a function: fmt, which reaches unexported fields past any
// String method, prints its address.
type hidden func() *[32]byte

func hide(b [32]byte) hidden { return func() *[32]byte { return &b } }

// NewSecret draws a secret, and with it a cluster.
func NewSecret() Secret {
	var key [secretLen]byte
	_, _ = rand.Read(key[:]) // never fails
	return Secret{key: hide(key)}
}

var base32Lower = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// Text is the secret as it stands in a file. Whoever reads it can be a server.
func (s Secret) Text() string {
	if s.Empty() {
		return ""
	}
	return secretPrefix + base32Lower.EncodeToString(append(bytes.Clone(s.key()[:]), checksum(secretPrefix, s.key()[:])...))
}

// checksum finds typing errors and texts cut short; it protects nothing.
func checksum(prefix string, b []byte) []byte {
	sum := sha256.Sum256(append([]byte(prefix), b...))
	return sum[:sumLen]
}

// ParseSecret reads what Text wrote, white space around it allowed. No error quotes
// the input.
func ParseSecret(text string) (Secret, error) {
	if len(text) > maxText {
		return Secret{}, fmt.Errorf("%w: %d bytes are no secret", ErrSecret, len(text))
	}
	text = strings.TrimSpace(text)
	body, ok := strings.CutPrefix(text, secretPrefix)
	switch {
	case text == "":
		return Secret{}, fmt.Errorf("%w: it is empty; weft secret new makes one", ErrSecret)
	case strings.HasPrefix(text, tokenPrefix):
		return Secret{}, fmt.Errorf("%w: this is a join token, which makes an agent; a server needs the secret that weft secret new printed", ErrSecret)
	case !ok:
		return Secret{}, fmt.Errorf("%w: it does not begin with %s; weft secret new makes one", ErrSecret, secretPrefix)
	}
	if want := base32Lower.EncodedLen(secretLen + sumLen); len(body) != want {
		return Secret{}, fmt.Errorf("%w: %d characters follow %s where %d belong: it was cut off or run together; copy it again", ErrSecret, len(body), secretPrefix, want)
	}
	raw, err := base32Lower.DecodeString(body)
	if err != nil || base32Lower.EncodeToString(raw) != body || !bytes.Equal(raw[secretLen:], checksum(secretPrefix, raw[:secretLen])) {
		return Secret{}, fmt.Errorf("%w: its checksum is wrong: a character was changed; copy it again", ErrSecret)
	}
	return Secret{key: hide([secretLen]byte(raw))}, nil
}

// Empty tells whether there is no secret.
func (s Secret) Empty() bool { return s.key == nil }

// derive makes the key of one purpose. Purposes never share a label.
func (s Secret) derive(label string, n int) []byte {
	if s.Empty() {
		panic("enroll: a key was asked of an empty cluster secret")
	}
	b, err := hkdf.Key(sha256.New, s.key()[:], nil, "weft/1 "+label, n)
	if err != nil {
		panic("enroll: " + err.Error()) // n is a small constant
	}
	return b
}

// ClusterID names the cluster, as a UUID. It is no secret.
func (s Secret) ClusterID() string {
	b := s.derive("cluster id", 16)
	b[6] = b[6]&0x0f | 0x80 // version 8: of our own making
	b[8] = b[8]&0x3f | 0x80
	return formatUUID(b)
}

// GossipKey is the first key of gossip, which the keyring may replace.
func (s Secret) GossipKey() []byte { return s.derive("gossip key", 32) }

// SealKey is what the keys of the mesh's authority are sealed with.
func (s Secret) SealKey() [32]byte { return [32]byte(s.derive("authority seal", 32)) }

func (s Secret) tokenKey() []byte { return s.derive("join token", 32) }

// String says which cluster the secret is of.
func (s Secret) String() string {
	if s.Empty() {
		return "no cluster secret"
	}
	return "cluster secret of " + s.ClusterID()
}

// Format prints String whatever the verb.
func (s Secret) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(s.String())) }

// LogValue implements slog.LogValuer.
func (s Secret) LogValue() slog.Value { return slog.StringValue(s.String()) }

// MarshalText keeps the secret out of JSON and the like.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

func formatUUID(b []byte) string {
	h := hex.EncodeToString(b)
	return h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:]
}

func parseUUID(s string) ([]byte, error) {
	b, err := hex.DecodeString(strings.ReplaceAll(s, "-", ""))
	if err != nil || len(b) != 16 || formatUUID(b) != s {
		return nil, fmt.Errorf("%q is no UUID in lower case", clip(s))
	}
	return b, nil
}

// clip bounds foreign text that goes into an error.
func clip(s string) string {
	const most = 128
	if len(s) > most {
		return s[:most] + "…"
	}
	return s
}
