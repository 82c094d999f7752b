package sidecar

import (
	"log/slog"
	"os"
	"testing"
)

// FuzzSavedSnapshot seeds a proxy from a snapshot that a disk damaged.
func FuzzSavedSnapshot(f *testing.F) {
	for _, b := range []string{
		``, `{}`, `null`, `[]`, `{"Version":1}`, `{"Version":1,"Snapshot":null}`, `{"Version":1,"Snapshot":{}}`, "\x00\xff",
		`{"Version":1,"Snapshot":{"Service":"web","Datacenter":"dc1","TrustDomain":"x","Roots":[null],"Intentions":[null],"Upstreams":[{}]}}`,
		`{"Version":1,"Proxy":"p","Snapshot":{"Service":"web","Datacenter":"dc1","TrustDomain":"x","Roots":[{"ID":"a"}],"Default":"maybe","RevokedSerials":[""],"Upstreams":[{"Name":"db","Instances":[null,{}]}]}}`,
	} {
		f.Add([]byte(b))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		file := newSnapshotFile(t.TempDir(), "p")
		if err := os.MkdirAll(file.dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file.path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		s := &sidecar{
			cfg: Config{Datacenter: "dc1"}, id: "p", service: "web", file: file, log: slog.New(slog.DiscardHandler),
			in: inputs{world: newWorld()},
		}
		s.seed()
		if s.roots && (s.in.policy.trustDomain == "" || len(s.in.policy.roots) == 0) {
			t.Fatal("trust without a root")
		}
	})
}
