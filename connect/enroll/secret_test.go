package enroll

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// fixed is a secret of which the derived values are written down.
func fixed() Secret {
	var key [secretLen]byte
	for i := range key {
		key[i] = byte(i)
	}
	return Secret{key: hide(key)}
}

// What is derived from a secret must never change: clusters live by it.
func TestDerivedValuesAreForEver(t *testing.T) {
	s := fixed()
	seal := s.SealKey()
	root := must(s.root())
	pin := pinOf(root.cert)
	sum := func(b []byte) string { h := sha256.Sum256(b); return hex.EncodeToString(h[:8]) }
	got := strings.Join([]string{
		s.Text(), s.ClusterID(), sum(s.GossipKey()), sum(seal[:]), sum(s.tokenKey()), sum(pin[:]), sum(root.cert.Raw),
	}, "\n")
	const want = `weft-secret-1-aaaqeayeaudaocajbifqydiob4ibceqtcqkrmfyydenbwha5dyp3tsuex4
71686353-fbcd-8b5c-880e-b68601add68d
54a4c3f72f06ccd5
f94a02eee49b5fa0
f0b05d9e38e7ed40
1b4911623c00ff22
33d8030567e62032`
	if got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	if other := must(s.root()); !bytes.Equal(other.cert.Raw, root.cert.Raw) {
		t.Error("two servers make two roots of one secret")
	}
	keys := map[string]string{}
	for name, k := range map[string][]byte{"gossip": s.GossipKey(), "seal": seal[:], "token": s.tokenKey(), "root": s.derive("root key", 32)} {
		if other, ok := keys[string(k)]; ok {
			t.Errorf("%s and %s have one key", name, other)
		}
		keys[string(k)] = name
	}
}

func TestSecretText(t *testing.T) {
	s := NewSecret()
	for _, text := range []string{s.Text(), " " + s.Text() + "\r\n"} {
		got, err := ParseSecret(text)
		if err != nil || got.Text() != s.Text() {
			t.Fatalf("%v", err)
		}
	}
	if NewSecret().ClusterID() == s.ClusterID() {
		t.Error("two secrets, one cluster")
	}
	good := s.Text()
	token := must(s.Mint(MintOptions{})).Text()
	for name, tc := range map[string]struct{ text, say string }{
		"empty":        {"", "weft secret new"},
		"space":        {" \n", "weft secret new"},
		"a token":      {token, "join token"},
		"cut off":      {good[:len(good)-3], "cut off"},
		"run together": {good + good, "cut off or run together"},
		"other text":   {"hunter2", "begin with"},
		"upper case":   {strings.ToUpper(good), "begin with"},
		"upper body":   {secretPrefix + strings.ToUpper(good[len(secretPrefix):]), "checksum"},
		"line break":   {good[:30] + "\n" + good[30:], "cut off or run together"},
		"much":         {strings.Repeat("a", 1<<20), "bytes"},
	} {
		_, err := ParseSecret(tc.text)
		if !errors.Is(err, ErrSecret) || !strings.Contains(err.Error(), tc.say) {
			t.Errorf("%s: %v", name, err)
		}
		if tc.text != "" && err != nil && strings.Contains(err.Error(), good[len(secretPrefix):][:8]) {
			t.Errorf("%s: the error tells: %v", name, err)
		}
	}
	for i := len(secretPrefix); i < len(good); i++ {
		b := []byte(good)
		b[i] = 'a' + (b[i]-'a'+1)%26
		if _, err := ParseSecret(string(b)); err == nil {
			t.Fatalf("character %d may be any", i)
		}
	}
}

// Nothing that prints may print a secret or a token.
func TestNothingTells(t *testing.T) {
	s := NewSecret()
	tok := must(s.Mint(MintOptions{}))
	var log bytes.Buffer
	for _, h := range []slog.Handler{slog.NewTextHandler(&log, nil), slog.NewJSONHandler(&log, nil)} {
		slog.New(h).Info("x", "secret", s, "token", tok, "pointer", &s, "all", []any{s, tok, &tok}, "in", struct {
			S Secret
			T Token
		}{s, tok})
	}
	var out []string
	for _, v := range []any{s, &s, tok, &tok, []any{s, tok}, map[string]any{"s": s, "t": tok}, struct {
		s Secret
		t Token
		S Secret
		T *Token
	}{s, tok, s, &tok}, ServerConfig{Secret: s}, GateConfig{Secret: s}} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%b"} {
			out = append(out, fmt.Sprintf(verb, v))
		}
		b, err := json.Marshal(v)
		if err == nil {
			out = append(out, string(b))
		}
	}
	out = append(out, log.String(), fmt.Sprint(s), fmt.Sprint(tok), fmt.Sprintln(&s, &tok))
	all := strings.Join(out, "\n")
	decimal := strings.Trim(fmt.Sprint(s.key()[:6]), "[]")
	decimalMAC := strings.Trim(fmt.Sprint(tok.mac()[:6]), "[]")
	for name, secret := range map[string]string{
		"text": s.Text()[len(secretPrefix):][:12], "hex": hex.EncodeToString(s.key()[:6]), "HEX": strings.ToUpper(hex.EncodeToString(s.key()[:6])), "decimal": decimal,
		"token": tok.Text()[len(tok.Text())-20:], "mac": hex.EncodeToString(tok.mac()[:6]), "decimal mac": decimalMAC,
	} {
		if i := strings.Index(all, secret); i >= 0 {
			t.Errorf("%s is told: %s", name, all[max(0, i-100):i+20])
		}
	}
	if !strings.Contains(all, tok.ID) || !strings.Contains(all, s.ClusterID()) {
		t.Error("logs should say which token and cluster")
	}
	if (Secret{}).String() == "" || (Token{}).String() == "" || (Secret{}).Text() != "" || (Token{}).Text() != "" {
		t.Error("nothing is nothing")
	}
}

func TestToken(t *testing.T) {
	s := NewSecret()
	now := time.Date(2026, 11, 22, 1, 2, 3, 999, time.UTC)
	tok := must(s.Mint(MintOptions{Now: now, TTL: time.Hour}))
	got, err := ParseToken("\n" + tok.Text() + " ")
	if err != nil || got.Text() != tok.Text() || got.ID != tok.ID || got.ClusterID != s.ClusterID() || !got.Expires.Equal(now.Add(time.Hour).Truncate(time.Second)) || got.Pin != pinOf(must(s.root()).cert) {
		t.Fatalf("%+v, %v", got, err)
	}
	if err := s.Check(got, now.Add(time.Hour+skew/2)); err != nil {
		t.Errorf("within the skew of clocks: %v", err)
	}
	if err := s.Check(got, now.Add(time.Hour+skew+time.Second)); !errors.Is(err, ErrTokenExpired) || !strings.Contains(err.Error(), "weft join-token") {
		t.Errorf("expired: %v", err)
	}
	if err := NewSecret().Check(got, now); !errors.Is(err, ErrTokenForeign) {
		t.Errorf("another cluster: %v", err)
	}
	for name, forge := range map[string]func(*Token){
		"later end": func(t *Token) { t.Expires = t.Expires.Add(time.Hour) },
		"other ID":  func(t *Token) { t.ID = "0000000000000000" },
		"other pin": func(t *Token) { t.Pin[0] ^= 1 },
		"no MAC":    func(t *Token) { t.mac = nil },
		"zero MAC":  func(t *Token) { t.mac = hide([tokenMACLen]byte{}) },
		"bad ID":    func(t *Token) { t.ID = "x" },
	} {
		forged := got
		forge(&forged)
		if err := s.Check(forged, now); !errors.Is(err, ErrTokenForeign) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := (Secret{}).Mint(MintOptions{}); err == nil {
		t.Error("a token of no secret")
	}
	for _, ttl := range []time.Duration{-1, time.Second, MaxTTL + 1} {
		if _, err := s.Mint(MintOptions{TTL: ttl}); !errors.Is(err, ErrToken) {
			t.Errorf("TTL %s: %v", ttl, err)
		}
	}
}

func TestTokenText(t *testing.T) {
	s := NewSecret()
	good := must(s.Mint(MintOptions{})).Text()
	for name, tc := range map[string]struct{ text, say string }{
		"empty":        {"", "weft join-token"},
		"a secret":     {s.Text(), "servers only"},
		"cut off":      {good[:len(good)-1], "cut off"},
		"cut at start": {good[5:], "begin with"},
		"run together": {good + good, "run together"},
		"other text":   {"hunter2", "begin with"},
		"no base64":    {good[:40] + "!" + good[41:], "checksum"},
		"line break":   {good[:40] + "\n" + good[40:], "run together"},
		"much":         {strings.Repeat("a", 1<<20), "bytes"},
	} {
		_, err := ParseToken(tc.text)
		if !errors.Is(err, ErrToken) || !strings.Contains(err.Error(), tc.say) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for i := len(tokenPrefix); i < len(good); i++ {
		b := []byte(good)
		if b[i]++; b[i] == 'z'+1 {
			b[i] = 'a'
		}
		if _, err := ParseToken(string(b)); err == nil {
			t.Fatalf("character %d may be any", i)
		}
	}
}

func TestFiles(t *testing.T) {
	s := NewSecret()
	tok := must(s.Mint(MintOptions{}))
	dir := t.TempDir()
	file := filepath.Join(dir, "sub", "secret")
	if err := WriteSecret(file, s); err != nil {
		t.Fatal(err)
	}
	if info := must(os.Stat(file)); info.Mode().Perm() != 0o600 {
		t.Errorf("%s", info.Mode())
	}
	if got, err := ReadSecret(file); err != nil || got.Text() != s.Text() {
		t.Errorf("%v", err)
	}
	if err := WriteSecret(file, NewSecret()); !errors.Is(err, fs.ErrExist) {
		t.Errorf("overwritten: %v", err)
	}
	if _, err := ReadSecret(filepath.Join(dir, "none")); !errors.Is(err, fs.ErrNotExist) || !errors.Is(err, ErrSecret) {
		t.Errorf("%v", err)
	}
	if _, err := ReadSecret(writeFile(t, tok.Text(), 0o600)); !errors.Is(err, ErrSecret) {
		t.Errorf("a token as a secret: %v", err)
	}
	if got, err := ReadToken(writeFile(t, tok.Text()+"\n", 0o400)); err != nil || got.ID != tok.ID {
		t.Errorf("%v", err)
	}
	for _, mode := range []os.FileMode{0o640, 0o604, 0o660, 0o644} {
		open := writeFile(t, tok.Text(), mode)
		if _, err := ReadToken(open); err == nil || !strings.Contains(err.Error(), "chmod 600 "+open) {
			t.Errorf("mode %s: %v", mode, err)
		}
	}
	if _, err := ReadToken(dir); err == nil {
		t.Error("a directory is no token")
	}
	if _, err := ReadToken(writeFile(t, strings.Repeat(" ", maxText+1), 0o600)); err == nil {
		t.Error("a large file is no token")
	}
	// systemd grants a credential by an ACL: its mask shows as the group's bits.
	cred := writeFile(t, tok.Text(), 0o440)
	t.Setenv("CREDENTIALS_DIRECTORY", filepath.Dir(cred))
	if _, err := ReadToken(cred); err != nil {
		t.Error(err)
	}
	if err := os.Chmod(cred, 0o444); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadToken(cred); err == nil {
		t.Error("a credential that all may read")
	}
}

func FuzzParseSecret(f *testing.F) {
	f.Add(fixed().Text())
	f.Add(secretPrefix)
	f.Add(tokenPrefix)
	f.Fuzz(func(t *testing.T, text string) {
		s, err := ParseSecret(text)
		if err != nil {
			if !errors.Is(err, ErrSecret) || !s.Empty() {
				t.Fatal(err)
			}
			return
		}
		if s.Text() != strings.TrimSpace(text) {
			t.Fatal("a secret has two spellings")
		}
	})
}

func FuzzParseToken(f *testing.F) {
	f.Add(must(fixed().Mint(MintOptions{Now: time.Unix(1, 0)})).Text())
	f.Add(tokenPrefix)
	f.Add(secretPrefix)
	f.Fuzz(func(t *testing.T, text string) {
		tok, err := ParseToken(text)
		if err != nil {
			if !errors.Is(err, ErrToken) || !tok.Empty() {
				t.Fatal(err)
			}
			return
		}
		if tok.Text() != strings.TrimSpace(text) {
			t.Fatalf("a token has two spellings: %s", tok.Text())
		}
		if fixed().Check(tok, time.Unix(0, 0)) == nil && tok.ClusterID != fixed().ClusterID() {
			t.Fatal("a token of another cluster is good")
		}
	})
}

func FuzzFrame(f *testing.F) {
	for _, v := range []any{
		&request{Token: "t", CSR: []byte{1}, Node: "n", NodeID: "i", Datacenter: "d", Version: "v"},
		&reply{Refused: &Refusal{Reason: "r", Message: "m"}},
		&reply{Certificate: []byte{1}, GossipKeys: [][]byte{{1}, nil}, Servers: []string{"a"}},
	} {
		var b bytes.Buffer
		if err := writeFrame(&b, v, maxReply); err != nil {
			f.Fatal(err)
		}
		f.Add(b.Bytes())
	}
	f.Add([]byte{0, 0, 0, 5, 0xdf, 0xff, 0xff, 0xff, 0xff})
	f.Add([]byte{0, 0, 0, 5, 0xc6, 0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, b []byte) {
		var req request
		var rep reply
		if err := readFrame(bytes.NewReader(b), &req, maxRequest); err == nil {
			var again bytes.Buffer
			if err := writeFrame(&again, &req, 2*maxRequest); err != nil {
				t.Fatal(err)
			}
		}
		if err := readFrame(bytes.NewReader(b), &rep, maxReply); err == nil && rep.Refused != nil {
			if r := rep.Refused.cleaned(); len([]rune(r.Message)) > maxRefusalText {
				t.Fatal("a long refusal")
			}
		}
	})
}
