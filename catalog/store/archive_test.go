package store

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"testing"
	"time"

	"github.com/weftmesh/weft/catalog"
)

func archiveOf(t *testing.T, s *Store) []byte {
	t.Helper()
	var b bytes.Buffer
	meta := ArchiveMeta{Term: 3, Configuration: ArchivePeers{Servers: []ArchivePeer{{ID: "a", Address: "1.2.3.4:8300"}}}}
	if err := s.Backup().WriteArchive(&b, meta, time.UnixMilli(5)); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestArchiveRoundTrip(t *testing.T) {
	s := sample(t)
	var state bytes.Buffer
	meta, err := ReadArchive(bytes.NewReader(archiveOf(t, s)), &state)
	if err != nil {
		t.Fatal(err)
	}
	if meta.ID != "3-5-5" || meta.Index != s.Index() || meta.Size != int64(state.Len()) || meta.Version != 1 ||
		len(meta.Configuration.Servers) != 1 {
		t.Errorf("%+v", meta)
	}
	if index, err := Verify(bytes.NewReader(state.Bytes())); err != nil || index != s.Index() {
		t.Errorf("%d %v", index, err)
	}
	tables := map[string]int{}
	var sizes int64
	if err := Records(bytes.NewReader(state.Bytes()), func(r Record) error {
		tables[r.Table]++
		sizes += r.Size
		_, err := r.Decode()
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if tables[tableNodes.name] != 1 || tables[tableServices.name] != 1 || tables[tableRoots.name] != 1 || sizes >= meta.Size {
		t.Errorf("%v, %d of %d bytes", tables, sizes, meta.Size)
	}
	enough := errors.New("enough")
	if err := Records(bytes.NewReader(state.Bytes()), func(Record) error { return enough }); !errors.Is(err, enough) {
		t.Error(err)
	}
}

// TestArchiveRefusesEveryDamage flips and cuts an archive everywhere.
func TestArchiveRefusesEveryDamage(t *testing.T) {
	whole := archiveOf(t, sample(t))
	var want bytes.Buffer
	if _, err := ReadArchive(bytes.NewReader(whole), &want); err != nil {
		t.Fatal(err)
	}
	for at := range whole {
		if at >= 3 && at <= 9 {
			continue // the flags, time and system in the head of gzip say nothing
		}
		bad := bytes.Clone(whole)
		bad[at] ^= 0x41
		var got bytes.Buffer
		_, err := ReadArchive(bytes.NewReader(bad), &got)
		if err == nil && bytes.Equal(got.Bytes(), want.Bytes()) {
			continue // bits between the last block and the next byte mean nothing (RFC 1951, section 3.2.4)
		}
		if !errors.Is(err, catalog.ErrInvalid) {
			t.Fatalf("byte %d changed: %v", at, err)
		}
	}
	for n := range len(whole) {
		if _, err := ReadArchive(bytes.NewReader(whole[:n]), io.Discard); !errors.Is(err, catalog.ErrInvalid) {
			t.Fatalf("cut at %d: %v", n, err)
		}
	}
}

func TestArchiveRefusesStrangers(t *testing.T) {
	pack := func(files ...string) []byte {
		var b bytes.Buffer
		z := gzip.NewWriter(&b)
		w := tar.NewWriter(z)
		for _, name := range files {
			if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o600, Size: 1}); err != nil {
				t.Fatal(err)
			}
			if _, err := w.Write([]byte("x")); err != nil {
				t.Fatal(err)
			}
		}
		if err := errors.Join(w.Close(), z.Close()); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}
	for name, b := range map[string][]byte{
		"empty":     nil,
		"no gzip":   []byte("garbage"),
		"nothing":   pack(),
		"stranger":  pack("../../etc/passwd"),
		"twice":     pack(archiveState, archiveState),
		"no sums":   pack(archiveMeta, archiveState),
		"bad sums":  pack(archiveMeta, archiveState, archiveSums),
		"only sums": pack(archiveSums),
	} {
		if _, err := ReadArchive(bytes.NewReader(b), io.Discard); !errors.Is(err, catalog.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzReadArchive(f *testing.F) {
	s, err := New(Config{})
	if err != nil {
		f.Fatal(err)
	}
	var b bytes.Buffer
	if err := s.Backup().WriteArchive(&b, ArchiveMeta{}, time.UnixMilli(1)); err != nil {
		f.Fatal(err)
	}
	f.Add(b.Bytes())
	f.Add([]byte("garbage"))
	f.Fuzz(func(t *testing.T, b []byte) {
		var state bytes.Buffer
		if _, err := ReadArchive(bytes.NewReader(b), &state); err != nil {
			return
		}
		_ = Records(&state, func(Record) error { return nil }) // may be refused, never panics
	})
}
