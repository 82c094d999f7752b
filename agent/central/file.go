package central

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/weftmesh/weft/catalog"
)

const (
	// maxFile bounds what is read back.
	maxFile = 64 << 20
	// formatVersion is that of the file; other versions are not read.
	formatVersion = 1
)

// entriesFile keeps entries over a restart.
type entriesFile struct{ path string }

type entriesDoc struct {
	Version int
	Entries []json.RawMessage
}

func newEntriesFile(dataDir string) *entriesFile {
	return &entriesFile{filepath.Join(dataDir, "central.json")}
}

// load reads the entries, none when there is no file.
func (f *entriesFile) load() ([]catalog.Entry, error) {
	info, err := os.Stat(f.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if info.Size() > maxFile {
		return nil, fmt.Errorf("%d bytes, at most %d are read: %w", info.Size(), maxFile, catalog.ErrTooLarge)
	}
	b, err := os.ReadFile(f.path)
	if err != nil {
		return nil, err
	}
	var doc entriesDoc
	if err := json.Unmarshal(b, &doc); err != nil {
		return nil, err
	}
	if doc.Version != formatVersion {
		return nil, fmt.Errorf("format version %d, want %d", doc.Version, formatVersion)
	}
	out := make([]catalog.Entry, 0, len(doc.Entries))
	for _, raw := range doc.Entries {
		var e catalog.Entry
		if err := e.UnmarshalBinary(raw); err != nil {
			return nil, err
		}
		if e.ConfigEntry != nil {
			out = append(out, e)
		}
	}
	return out, nil
}

// save replaces the file in one step: after a crash there is the old one or the new one.
func (f *entriesFile) save(entries []catalog.Entry) error {
	doc := entriesDoc{Version: formatVersion}
	for _, e := range entries {
		raw, err := e.MarshalBinary()
		if err != nil {
			return err
		}
		doc.Entries = append(doc.Entries, raw)
	}
	b, err := json.Marshal(doc)
	if err != nil {
		return err
	}
	tmp, err := os.CreateTemp(filepath.Dir(f.path), filepath.Base(f.path)+".*.tmp") // made with mode 0600
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(tmp.Name()) }() // fails after the rename, as it should
	_, err = tmp.Write(b)
	if err == nil {
		err = tmp.Sync()
	}
	if err := errors.Join(err, tmp.Close()); err != nil {
		return err
	}
	return os.Rename(tmp.Name(), f.path)
}

// keep writes what is known whenever it changes, until ctx ends.
func (m *Merger) keep(ctx context.Context) {
	failed := false
	for {
		m.mu.Lock()
		news := m.news
		var known []catalog.Entry
		for _, e := range m.entries {
			if e != nil {
				known = append(known, catalog.Entry{ConfigEntry: e})
			}
		}
		any := len(m.told) > 0
		m.mu.Unlock()
		if any {
			slices.SortFunc(known, func(a, b catalog.Entry) int {
				return strings.Compare(a.EntryKind()+"/"+a.EntryName(), b.EntryKind()+"/"+b.EntryName())
			})
			err := m.file.save(known)
			if err != nil && !failed {
				m.log.Error("central configuration cannot be kept; a restart without servers would configure proxies without", "file", m.file.path, "err", err)
			}
			failed = err != nil
		}
		select {
		case <-ctx.Done():
			return
		case <-news:
		}
	}
}
