package sidecar

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/catalog/durable"
	"github.com/weftmesh/weft/connect"
)

const (
	snapshotName = "snapshot.json"
	keyName      = "leaf.pem"
	// maxSnapshot bounds what is read back.
	maxSnapshot = 64 << 20
	// formatVersion is that of snapshot.json; other versions are not read.
	formatVersion = 1
)

func proxiesDir(dataDir string) string { return filepath.Join(dataDir, "proxies") }

// proxyDir is the directory of one proxy. IDs are free text, so they are escaped,
// and replaced by a digest where they are too long for a file name.
func proxyDir(dataDir, id string) string {
	name := url.PathEscape(id)
	if len(name) > 200 || name == "." || name == ".." {
		sum := sha256.Sum256([]byte(id))
		name = "id-" + hex.EncodeToString(sum[:])
	}
	return filepath.Join(proxiesDir(dataDir), name)
}

// snapshotFile is the last snapshot of a proxy, on disk.
type snapshotFile struct {
	dir   string
	path  string
	index uint64 // of the snapshot loaded
}

type snapshotDoc struct {
	Version  int
	Proxy    string
	Snapshot *connect.Snapshot
}

func newSnapshotFile(dataDir, id string) *snapshotFile {
	dir := proxyDir(dataDir, id)
	return &snapshotFile{dir: dir, path: filepath.Join(dir, snapshotName)}
}

// load reads the snapshot, nil when there is none.
func (f *snapshotFile) load() (*connect.Snapshot, error) {
	var doc snapshotDoc
	file := durable.File{Path: f.path, Most: maxSnapshot, Remedy: "until a server answers this proxy lets nobody in or out"}
	_, err := file.Read(func(b []byte) error {
		if err := json.Unmarshal(b, &doc); err != nil {
			return err
		}
		if doc.Version != formatVersion || doc.Snapshot == nil {
			return fmt.Errorf("format version %d, want %d", doc.Version, formatVersion)
		}
		f.index = doc.Snapshot.Index
		return nil
	})
	if err != nil {
		return nil, err
	}
	return doc.Snapshot, nil
}

// save replaces the file in one step: after a crash there is the old one or the new one.
func (f *snapshotFile) save(id string, snap *connect.Snapshot) error {
	b, err := json.Marshal(snapshotDoc{Version: formatVersion, Proxy: id, Snapshot: snap})
	if err != nil {
		return err
	}
	return durable.Write(f.path, b)
}

// saveAgain is how soon a snapshot is written again that could not be: until then
// the older one on disk is what a restart without servers would enforce.
const saveAgain = 5 * time.Second

// saveSlow is for how long what a proxy enforces is not reported because it is not on
// disk yet. A disk that takes longer is not waited for.
const saveSlow = time.Second

// keep writes each snapshot that src gives, until ctx ends and the last one is
// written. It is apart from the making of snapshots, so that a slow disk never
// holds back a deny; what waits for it, through kept, is the report that the deny is in
// force. Who was told so finds it in force after a kill -9 without servers, too.
func (f *snapshotFile) keep(ctx context.Context, id string, src *catalog.Latest[*connect.Snapshot], kept func(index uint64), log *slog.Logger) {
	var after uint64 // of the last one written
	failed := false
	for {
		snap, index, err := src.Next(ctx, after)
		if err != nil {
			if snap, index = src.Get(); index <= after {
				return
			}
		}
		slow := time.AfterFunc(saveSlow, func() { kept(index) })
		serr := f.save(id, snap)
		slow.Stop()
		kept(index)
		switch {
		case serr == nil:
			if failed {
				log.Info("the snapshot of a proxy is kept again", "file", f.path)
			}
			after, failed = index, false
			continue
		case !failed:
			failed = true
			log.Error("the snapshot of a proxy cannot be kept, will retry; a restart without servers would enforce the one before it, or none",
				"file", f.path, "err", serr)
		}
		if err != nil {
			return // this was the last try, after the end
		}
		sleep(ctx, saveAgain)
	}
}

// remove forgets the proxy: its key, its certificate and its snapshot.
func (f *snapshotFile) remove() error { return os.RemoveAll(f.dir) }

// sweep removes what is on disk of proxies that are not registered any more, for
// example because their configuration file went while the agent was down.
func sweep(dataDir string, registered map[string]*catalog.Service, log *slog.Logger) {
	if dataDir == "" {
		return
	}
	keep := map[string]bool{}
	for id := range registered {
		keep[filepath.Base(proxyDir(dataDir, id))] = true
	}
	entries, err := os.ReadDir(proxiesDir(dataDir))
	if err != nil {
		log.Warn("files of proxies cannot be listed", "file", proxiesDir(dataDir), "err", err)
		return
	}
	for _, e := range entries {
		if keep[e.Name()] {
			continue
		}
		if err := os.RemoveAll(filepath.Join(proxiesDir(dataDir), e.Name())); err != nil {
			log.Warn("files of a deregistered proxy stay", "file", e.Name(), "err", err)
		}
	}
}
