package central

import (
	"context"
	"encoding/json"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/catalog/durable"
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
	var out []catalog.Entry
	_, err := durable.File{Path: f.path, Most: maxFile}.Read(func(b []byte) error {
		var doc entriesDoc
		if err := json.Unmarshal(b, &doc); err != nil {
			return err
		}
		if doc.Version != formatVersion {
			return fmt.Errorf("format version %d, want %d", doc.Version, formatVersion)
		}
		for _, raw := range doc.Entries {
			var e catalog.Entry
			if err := e.UnmarshalBinary(raw); err != nil {
				return err
			}
			if e.ConfigEntry != nil {
				out = append(out, e)
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
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
	return durable.Write(f.path, b)
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
