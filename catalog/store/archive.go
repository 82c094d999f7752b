package store

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/catalog/wire"
)

// An archive is a backup on its way out of the cluster: a gzipped tar file with
// meta.json, state.bin and SHA256SUMS, as Consul's snapshots are.
const (
	archiveMeta  = "meta.json"
	archiveState = "state.bin"
	archiveSums  = "SHA256SUMS"
)

// Bounds of an archive: a small one must not unpack into more than fits a disk.
const (
	maxArchiveText  = 1 << 20
	maxArchiveState = 16 << 30
)

// ArchiveMeta describes a backup. Its fields are those of Raft.
type ArchiveMeta struct {
	Version            int
	ID                 string
	Index              uint64
	Term               uint64
	Configuration      ArchivePeers
	ConfigurationIndex uint64
	Size               int64
}

// ArchivePeers are the servers at the time of the backup.
type ArchivePeers struct{ Servers []ArchivePeer }

// ArchivePeer is one of them. Suffrage is 0 for a voter.
type ArchivePeer struct {
	Suffrage int
	ID       string
	Address  string
}

// WriteArchive writes b with what meta says of it; Version, ID, Index and Size are
// filled in. The backup is written twice: the first time it is only measured, as a
// tar file begins with the size.
func (b *Backup) WriteArchive(w io.Writer, meta ArchiveMeta, now time.Time) error {
	var size counter
	if err := b.Write(&size); err != nil {
		return err
	}
	meta.Version, meta.Index, meta.Size = 1, b.Index(), int64(size)
	meta.ID = fmt.Sprintf("%d-%d-%d", meta.Term, meta.Index, now.UnixMilli())
	text, err := json.Marshal(meta)
	if err != nil {
		return fmt.Errorf("archive: %w", err)
	}
	z := gzip.NewWriter(w)
	t := tar.NewWriter(z)
	sum := sha256.New()
	add := func(name string, size int64, write func(io.Writer) error) error {
		head := &tar.Header{Name: name, Mode: 0o600, Size: size, ModTime: now, Format: tar.FormatPAX}
		if err := t.WriteHeader(head); err != nil {
			return fmt.Errorf("archive: %s: %w", name, err)
		}
		return write(t)
	}
	plain := func(b []byte) func(io.Writer) error {
		return func(w io.Writer) error { _, err := w.Write(b); return err }
	}
	if err := add(archiveMeta, int64(len(text)), plain(text)); err != nil {
		return err
	}
	if err := add(archiveState, meta.Size, func(w io.Writer) error { return b.Write(io.MultiWriter(w, sum)) }); err != nil {
		return err
	}
	metaSum := sha256.Sum256(text)
	sums := fmt.Appendf(nil, "%x  %s\n%x  %s\n", metaSum, archiveMeta, sum.Sum(nil), archiveState)
	if err := add(archiveSums, int64(len(sums)), plain(sums)); err != nil {
		return err
	}
	return errors.Join(t.Close(), z.Close())
}

type counter int64

// Write implements io.Writer.
func (c *counter) Write(b []byte) (int, error) {
	*c += counter(len(b))
	return len(b), nil
}

// ReadArchive copies the state of an archive to state and gives its description,
// after it has checked both against their sums. What went to state means nothing
// when there is an error.
func ReadArchive(r io.Reader, state io.Writer) (*ArchiveMeta, error) {
	z, err := gzip.NewReader(bufio.NewReader(r))
	if err != nil {
		return nil, badArchive("it is not compressed with gzip: %w", err)
	}
	t := tar.NewReader(z)
	var text, sums []byte
	found := map[string]string{}
	for {
		head, err := t.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, badArchive("%w", err)
		}
		if _, twice := found[head.Name]; twice {
			return nil, badArchive("%s is in it twice", head.Name)
		}
		sum := sha256.New()
		var n int64
		var part bytes.Buffer
		switch head.Name {
		case archiveMeta, archiveSums:
			n, err = io.Copy(io.MultiWriter(&part, sum), io.LimitReader(t, maxArchiveText+1))
			if n > maxArchiveText {
				return nil, badArchive("%s is longer than %d bytes", head.Name, maxArchiveText)
			}
		case archiveState:
			n, err = io.Copy(io.MultiWriter(state, sum), io.LimitReader(t, maxArchiveState+1))
			if n > maxArchiveState {
				return nil, badArchive("the state is longer than %d bytes", int64(maxArchiveState))
			}
		default:
			return nil, badArchive("%q does not belong into it", head.Name)
		}
		if err != nil {
			return nil, badArchive("%s: %w", head.Name, err)
		}
		switch head.Name {
		case archiveMeta:
			text = part.Bytes()
		case archiveSums:
			sums = part.Bytes()
		}
		found[head.Name] = hex.EncodeToString(sum.Sum(nil))
	}
	// Reads to the end, where gzip has a checksum of its own.
	if _, err := io.Copy(io.Discard, io.LimitReader(z, maxArchiveText)); err != nil {
		return nil, badArchive("%w", err)
	}
	if err := checkSums(found, sums); err != nil {
		return nil, err
	}
	meta := &ArchiveMeta{}
	if err := json.Unmarshal(text, meta); err != nil {
		return nil, badArchive("%s: %w", archiveMeta, err)
	}
	return meta, nil
}

func badArchive(format string, args ...any) error {
	return catalog.Invalidf("failed to read snapshot file: "+format, args...)
}

func checkSums(found map[string]string, sums []byte) error {
	listed := map[string]string{}
	for line := range strings.Lines(string(sums)) {
		sum, name, ok := strings.Cut(strings.TrimSpace(line), "  ")
		if !ok {
			return badArchive("%s: a line is no checksum", archiveSums)
		}
		listed[name] = sum
	}
	for _, name := range []string{archiveMeta, archiveState, archiveSums} {
		switch {
		case found[name] == "":
			return badArchive("%s is missing", name)
		case name != archiveSums && listed[name] != found[name]:
			return badArchive("it is damaged: the checksum of %s is wrong; take another one", name)
		}
	}
	return nil
}

// Record is one row of a backup.
type Record struct {
	Table string
	Size  int64 // in the backup
	typ   byte
	body  []byte
}

// Decode gives the row as its noun, or as what the store keeps beside the nouns.
func (r Record) Decode() (any, error) {
	_, row, err := emptyRow(r.typ)
	if err != nil {
		return nil, err
	}
	if err := wire.Unmarshal(r.body, row); err != nil {
		return nil, fmt.Errorf("backup: record of %s: %w", r.Table, err)
	}
	return row, nil
}

// recordHead is the type and the length that stand before each record.
const recordHead = 5

// Records reads a backup row by row, and checks its sum at the end. An error of
// each ends it.
func Records(r io.Reader, each func(Record) error) error {
	d, _, err := newDecoder(r)
	if err != nil {
		return err
	}
	for {
		typ, body, err := d.next()
		if err != nil || typ == recEnd {
			return err
		}
		t, _, err := emptyRow(typ)
		if err != nil {
			return err
		}
		if err := each(Record{Table: t.name, Size: int64(len(body)) + recordHead, typ: typ, body: body}); err != nil {
			return err
		}
	}
}
