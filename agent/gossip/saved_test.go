package gossip

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
)

// FuzzSavedFiles reads the keyring, its stamp and the last members as a disk may have
// left them. A keyring that is taken is written and read again as it was.
func FuzzSavedFiles(f *testing.F) {
	for _, b := range []string{
		``, `null`, `[]`, `[""]`, `["AA=="]`, `["AAAAAAAAAAAAAAAAAAAAAA=="]`, `["AAAAAAAAAAAAAAAAAAAAAA==","AAAAAAAAAAAAAAAAAAAAAA=="]`, `{"Keys":[]}`,
		`["AAAAAAAAAAAAAAAAAAAAAA==",null]`, "\x00\xff",
	} {
		f.Add([]byte(b), []byte("1"), []byte(`{"Members":[{"Name":"b","Addr":"10.0.0.1:8301"},{"Addr":"x"},{}]}`))
	}
	f.Add([]byte(`[]`), []byte("-9223372036854775808"), []byte(`{"Members":null}`))
	f.Fuzz(func(t *testing.T, keys, stamp, members []byte) {
		dir := t.TempDir()
		ring, list := filepath.Join(dir, "ring"), filepath.Join(dir, "members")
		for path, b := range map[string][]byte{ring: keys, stampFile(ring): stamp, list: members} {
			if err := os.WriteFile(path, b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if p, err := openPeers(list); err == nil {
			p.addrs()
		}
		k, err := openKeyring(Config{NodeName: "a", KeyringFile: ring, Logger: slog.New(slog.DiscardHandler)})
		if err != nil || k == nil {
			return
		}
		if err := k.save(); err != nil {
			t.Fatal(err)
		}
		again, err := openKeyring(Config{NodeName: "a", KeyringFile: ring, Logger: slog.New(slog.DiscardHandler)})
		if err != nil || again == nil {
			t.Fatalf("what was saved cannot be read: %v", err)
		}
		if !bytes.Equal(again.ring.GetPrimaryKey(), k.ring.GetPrimaryKey()) {
			t.Fatal("another key is in use after a restart")
		}
	})
}
