package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestDebugArchive gathers from an agent without profiles, and is interrupted: what
// there is by then is in a whole archive, with what was left out and why.
func TestDebugArchive(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path == "/v1/agent/self":
			_, _ = io.WriteString(w, `{"Config":{"NodeName":"n1","Datacenter":"dc1"}}`)
		case r.URL.Path == "/v1/agent/monitor":
			_, _ = io.WriteString(w, "a line\n")
		case strings.HasPrefix(r.URL.Path, "/debug/pprof/"):
			http.Error(w, "profiles are off", http.StatusNotFound)
			cancel() // the last of the first round
		default:
			_, _ = io.WriteString(w, "of "+r.URL.Path)
		}
	}))
	defer srv.Close()
	name := filepath.Join(t.TempDir(), "case")
	var out, errs bytes.Buffer
	s := streams{in: strings.NewReader(""), out: &out, err: &errs, env: func(string) string { return "" }}
	if code := run(ctx, []string{"weft", "debug", "-http-addr", srv.URL, "-duration", "1m", "-interval", "5s", "-output", name}, s); code != exitOK {
		t.Fatalf("code %d: %s", code, errs.String())
	}
	if !strings.Contains(out.String(), "Saved debug archive: "+name+".tar.gz") {
		t.Errorf("it said %q", out.String())
	}
	files := untar(t, name+".tar.gz")
	for _, want := range []string{"agent.json", "host.json", "members.json", "index.json", "000/metrics.prom"} {
		if _, ok := files[want]; !ok {
			t.Errorf("%s is not in the archive: %v", want, files)
		}
	}
	if !strings.Contains(files["index.json"], `"Files"`) {
		t.Errorf("index %s", files["index.json"])
	}
	if info, err := os.Stat(name + ".tar.gz"); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the archive's mode: %v %v", info, err)
	}
}

func TestDebugRefusals(t *testing.T) {
	for _, args := range [][]string{{"-capture", "nope"}, {"-duration", "1s"}, {"-interval", "1s"}, {"-duration", "10s", "-interval", "1m"}} {
		if code, _, errs := call(nil, slices.Concat([]string{"debug"}, args)...); code != exitUsage {
			t.Errorf("%v: code %d, %s", args, code, errs)
		}
	}
}

func untar(t *testing.T, name string) map[string]string {
	t.Helper()
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	zip, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for r := tar.NewReader(zip); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(io.LimitReader(r, 1<<20))
		if err != nil {
			t.Fatal(err)
		}
		out[h.Name] = string(text)
	}
}
