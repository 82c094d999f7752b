package wire

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/weftmesh/weft/catalog"
)

var addGolden = flag.Bool("add-golden", false, "write the missing files of testdata/entries; those that exist are never written")

// TestGoldenEntries decodes log entries as earlier versions wrote them. These files
// are never changed: a log of any age must be readable. They are read back into
// what their .json says; keys that were added since may be in the value and not in
// the file.
func TestGoldenEntries(t *testing.T) {
	dir := filepath.Join("testdata", "entries")
	for _, ct := range commandTypes() {
		for seed := range uint64(3) {
			cmd, err := catalog.NewCommand(ct)
			if err != nil {
				t.Fatal(err)
			}
			name := fmt.Sprintf("v1-%02d-%d", ct, seed)
			file := filepath.Join(dir, name+".entry")
			if _, err := os.Stat(file); err != nil && *addGolden {
				newFiller(uint64(ct)*100 + seed).fill(cmd)
				writeGolden(t, filepath.Join(dir, name), cmd)
			}
			if seed == 0 {
				if _, err := os.Stat(file); err != nil {
					t.Errorf("command type %d has no entry in %s: run with -add-golden", ct, dir)
				}
			}
		}
	}
	files, err := filepath.Glob(filepath.Join(dir, "*.entry"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no corpus: %v", err)
	}
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		cmd, err := DecodeEntry(b)
		if err != nil {
			t.Errorf("%s: %v", file, err)
			continue
		}
		want, err := os.ReadFile(strings.TrimSuffix(file, ".entry") + ".json")
		if err != nil {
			t.Fatal(err)
		}
		var w, g any
		if err := errors.Join(json.Unmarshal(want, &w), json.Unmarshal([]byte(toJSON(t, cmd)), &g)); err != nil {
			t.Fatal(err)
		}
		if miss := missing("", w, g); miss != "" {
			t.Errorf("%s: %s", file, miss)
		}
	}
}

func writeGolden(t *testing.T, path string, cmd catalog.Command) {
	t.Helper()
	b, err := EncodeEntry(cmd)
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.MarshalIndent(cmd, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path+".entry", b, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path+".json", append(text, '\n'), 0o644); err != nil {
		t.Fatal(err)
	}
}

// missing names the first thing of want that got does not have equally.
func missing(at string, want, got any) string {
	switch w := want.(type) {
	case map[string]any:
		g, ok := got.(map[string]any)
		if !ok {
			return fmt.Sprintf("%s: want an object, got %v", at, got)
		}
		for k, v := range w {
			if _, there := g[k]; !there && nothing(v) {
				continue // left out, as the value of nothing
			}
			if m := missing(at+"/"+k, v, g[k]); m != "" {
				return m
			}
		}
	case []any:
		g, ok := got.([]any)
		if !ok || len(g) != len(w) {
			return fmt.Sprintf("%s: want %d elements, got %v", at, len(w), got)
		}
		for i, v := range w {
			if m := missing(fmt.Sprintf("%s/%d", at, i), v, g[i]); m != "" {
				return m
			}
		}
	default:
		if want != got {
			return fmt.Sprintf("%s: want %v, got %v", at, want, got)
		}
	}
	return ""
}

// nothing tells whether v is what a field holds that nobody set.
func nothing(v any) bool {
	switch v := v.(type) {
	case nil:
		return true
	case bool:
		return !v
	case float64:
		return v == 0
	case string:
		return v == ""
	case []any:
		return len(v) == 0
	default:
		return false
	}
}

func TestEntryEnvelope(t *testing.T) {
	good, err := EncodeEntry(&catalog.Deregister{Node: "n"})
	if err != nil {
		t.Fatal(err)
	}
	// What another version wrote is whole.
	with := func(change func([]byte) []byte) []byte {
		b := change(bytes.Clone(good))
		binary.BigEndian.PutUint32(b[entrySum:], checksum(b))
		return b
	}
	flipped := bytes.Clone(good)
	flipped[len(flipped)-1] ^= 1
	for name, c := range map[string]struct {
		entry []byte
		want  error
		text  string
	}{
		"good":                {good, nil, ""},
		"empty":               {nil, catalog.ErrInvalid, "cut short"},
		"cut in the header":   {good[:entryHeader-1], catalog.ErrInvalid, "cut short"},
		"cut":                 {good[:len(good)-1], ErrDamaged, "checksum"},
		"a flipped bit":       {flipped, ErrDamaged, "checksum"},
		"header only":         {with(func(b []byte) []byte { return b[:entryHeader] }), catalog.ErrInvalid, "type 3"},
		"newer format":        {with(func(b []byte) []byte { b[0] = 2; return b }), catalog.ErrInvalid, "newer version"},
		"unknown flag":        {with(func(b []byte) []byte { b[3] = 0x80; return b }), catalog.ErrInvalid, "newer version"},
		"unknown type":        {with(func(b []byte) []byte { b[1] = 0x70; return b }), catalog.ErrInvalid, "newer version"},
		"unknown, ignorable":  {with(func(b []byte) []byte { b[1], b[3] = 0x70, flagIgnorable; return b }), ErrIgnored, ""},
		"known and ignorable": {with(func(b []byte) []byte { b[3] = flagIgnorable; return b }), nil, ""},
		"trailing":            {with(func(b []byte) []byte { return append(b, 1) }), catalog.ErrInvalid, "1 bytes after"},
	} {
		_, err := DecodeEntry(c.entry)
		if !errors.Is(err, c.want) || (c.text != "" && !strings.Contains(err.Error(), c.text)) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Whichever bit of an entry changes, it is not taken for another one.
func TestEntryFlips(t *testing.T) {
	good, err := EncodeEntry(&catalog.Deregister{Node: "host1", ServiceID: "db"})
	if err != nil {
		t.Fatal(err)
	}
	for i := range len(good) * 8 {
		b := bytes.Clone(good)
		b[i/8] ^= 1 << (i % 8)
		if cmd, err := DecodeEntry(b); err == nil || errors.Is(err, ErrIgnored) {
			t.Errorf("bit %d: %v, %v", i, cmd, err)
		}
	}
}

func TestEntryTooLarge(t *testing.T) {
	_, err := EncodeEntry(&catalog.Deregister{Node: strings.Repeat("x", MaxEntry)})
	if !errors.Is(err, catalog.ErrTooLarge) {
		t.Fatal(err)
	}
	if _, err := EncodeEntry(nil); !errors.Is(err, catalog.ErrInvalid) {
		t.Fatal(err)
	}
}

func FuzzDecodeEntry(f *testing.F) {
	files, err := filepath.Glob(filepath.Join("testdata", "entries", "*.entry"))
	if err != nil {
		f.Fatal(err)
	}
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		_, _ = DecodeEntry(b)
		// The checksum would keep nearly all of these out.
		if b = bytes.Clone(b); len(b) >= entryHeader {
			binary.BigEndian.PutUint32(b[entrySum:], checksum(b))
		}
		cmd, err := DecodeEntry(b)
		if err != nil {
			return
		}
		_ = cmd.Validate() // what is decoded can be judged, whatever it holds
		again, err := EncodeEntry(cmd)
		if err != nil {
			if errors.Is(err, catalog.ErrTooLarge) {
				return
			}
			t.Fatal(err)
		}
		if _, err := DecodeEntry(again); err != nil {
			t.Fatal(err)
		}
	})
}
