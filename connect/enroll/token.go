package enroll

import (
	"bytes"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"
)

const (
	tokenPrefix = "weft-join-1-" //nolint:gosec // what a token begins with
	// A token is its ID, cluster, expiry and pin, the MAC over these, a checksum.
	tokenIDLen   = 8
	tokenBodyLen = tokenIDLen + 16 + 8 + 32
	tokenMACLen  = 32
	tokenLen     = tokenBodyLen + tokenMACLen + sumLen

	// DefaultTTL is how long a join token is good when nothing else is asked.
	DefaultTTL = 24 * time.Hour
	// MaxTTL is the longest life of a join token.
	MaxTTL = 366 * 24 * time.Hour
)

// Errors about tokens, wrapped with what to do.
var (
	ErrToken        = errors.New("join token")
	ErrTokenExpired = errors.New("expired")
	ErrTokenForeign = errors.New("not of this cluster")
)

// Token lets its bearer become an agent of one cluster until it expires. The zero
// Token is none. Its Text is confidential, everything else is not.
type Token struct {
	ID        string // lower-case hex
	ClusterID string
	Expires   time.Time // whole seconds
	Pin       [32]byte  // SHA-256 of the public key of the cluster's root
	mac       hidden
}

// MintOptions say which token to make.
type MintOptions struct {
	TTL time.Duration // DefaultTTL when 0
	Now time.Time     // time.Now when zero
}

// Mint makes a token. It needs no server.
func (s Secret) Mint(o MintOptions) (Token, error) {
	if o.TTL == 0 {
		o.TTL = DefaultTTL
	}
	if o.TTL < time.Minute || o.TTL > MaxTTL {
		return Token{}, fmt.Errorf("%w: a life of %s: between one minute and %d days are allowed", ErrToken, o.TTL, MaxTTL/(24*time.Hour))
	}
	if o.Now.IsZero() {
		o.Now = time.Now()
	}
	root, err := s.root()
	if err != nil {
		return Token{}, err
	}
	var id [tokenIDLen]byte
	_, _ = rand.Read(id[:])
	t := Token{
		ID: hex.EncodeToString(id[:]), ClusterID: s.ClusterID(),
		Expires: time.Unix(o.Now.Add(o.TTL).Unix(), 0).UTC(), Pin: pinOf(root.cert),
	}
	t.mac = hide(s.macOf(t))
	return t, nil
}

// Check tells whether this cluster made the token and it is still good. Whether it
// was revoked is the Registrar's to say.
func (s Secret) Check(t Token, now time.Time) error {
	if t.ClusterID != s.ClusterID() {
		return fmt.Errorf("%w %s: %w: it is of cluster %s, this is %s; make one here with weft join-token", ErrToken, t.ID, ErrTokenForeign, t.ClusterID, s.ClusterID())
	}
	if want := s.macOf(t); t.mac == nil || !hmac.Equal(want[:], t.mac()[:]) {
		return fmt.Errorf("%w %s: %w: its signature is not that of this cluster's secret; make another with weft join-token", ErrToken, t.ID, ErrTokenForeign)
	}
	if now.After(t.Expires.Add(skew)) {
		return fmt.Errorf("%w %s: %w at %s (the clock here says %s); make another with weft join-token", ErrToken, t.ID, ErrTokenExpired, stamp(t.Expires), stamp(now))
	}
	return nil
}

func (s Secret) macOf(t Token) (mac [tokenMACLen]byte) {
	h := hmac.New(sha256.New, s.tokenKey())
	h.Write([]byte(tokenPrefix))
	h.Write(t.body())
	h.Sum(mac[:0])
	return mac
}

// body is what the MAC covers. A token that did not come from Mint or ParseToken
// has no body, and so no MAC that could be right.
func (t Token) body() []byte {
	id, err := hex.DecodeString(t.ID)
	cluster, err2 := parseUUID(t.ClusterID)
	if err != nil || err2 != nil || len(id) != tokenIDLen {
		return nil
	}
	b := make([]byte, 0, tokenLen)
	b = append(b, id...)
	b = append(b, cluster...)
	b = binary.BigEndian.AppendUint64(b, uint64(t.Expires.Unix()))
	return append(b, t.Pin[:]...)
}

// Text is the token as it is handed to an agent.
func (t Token) Text() string {
	b := t.body()
	if b == nil || t.mac == nil {
		return ""
	}
	b = append(b, t.mac()[:]...)
	return tokenPrefix + base64.RawURLEncoding.EncodeToString(append(b, checksum(tokenPrefix, b)...))
}

// ParseToken reads what Text wrote, white space around it allowed. That the token
// is genuine only a server can tell. No error quotes the input.
func ParseToken(text string) (Token, error) {
	if len(text) > maxText {
		return Token{}, fmt.Errorf("%w: %d bytes are no token", ErrToken, len(text))
	}
	text = strings.TrimSpace(text)
	body, ok := strings.CutPrefix(text, tokenPrefix)
	switch {
	case text == "":
		return Token{}, fmt.Errorf("%w: it is empty; weft join-token makes one", ErrToken)
	case strings.HasPrefix(text, secretPrefix):
		return Token{}, fmt.Errorf("%w: this is the cluster secret, which belongs on servers only; make a token from it with weft join-token", ErrToken)
	case !ok:
		return Token{}, fmt.Errorf("%w: it does not begin with %s; weft join-token makes one", ErrToken, tokenPrefix)
	}
	enc := base64.RawURLEncoding.Strict()
	if want := enc.EncodedLen(tokenLen); len(body) != want {
		return Token{}, fmt.Errorf("%w: %d characters follow %s where %d belong: it was cut off or run together; copy it again", ErrToken, len(body), tokenPrefix, want)
	}
	b, err := enc.DecodeString(body)
	if err != nil || enc.EncodeToString(b) != body || !bytes.Equal(b[tokenLen-sumLen:], checksum(tokenPrefix, b[:tokenLen-sumLen])) {
		return Token{}, fmt.Errorf("%w: its checksum is wrong: a character was changed; copy it again", ErrToken)
	}
	t := Token{
		ID: hex.EncodeToString(b[:tokenIDLen]), ClusterID: formatUUID(b[tokenIDLen:][:16]),
		Expires: time.Unix(int64(binary.BigEndian.Uint64(b[tokenIDLen+16:])), 0).UTC(),
		Pin:     [32]byte(b[tokenIDLen+24:]), mac: hide([tokenMACLen]byte(b[tokenBodyLen:])),
	}
	return t, nil
}

// IsTokenID tells whether the text could be the ID of a token.
func IsTokenID(s string) bool {
	b, err := hex.DecodeString(s)
	return err == nil && len(b) == tokenIDLen
}

// Empty tells whether there is no token.
func (t Token) Empty() bool { return t.ID == "" }

// String names the token without giving it away.
func (t Token) String() string {
	if t.Empty() {
		return "no join token"
	}
	return "join token " + t.ID
}

// Format prints String whatever the verb.
func (t Token) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(t.String())) }

// LogValue implements slog.LogValuer.
func (t Token) LogValue() slog.Value { return slog.StringValue(t.String()) }

// MarshalText keeps the token out of JSON and the like.
func (t Token) MarshalText() ([]byte, error) { return []byte(t.String()), nil }

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }
