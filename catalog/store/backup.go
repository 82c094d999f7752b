package store

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"io"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/catalog/wire"
)

// A backup is magic, then records: one byte of type, four of length (big endian)
// and the encoded row. The first record is the header; the last holds the SHA-256
// of everything before it, and nothing may follow.
const magic = "weftbak\n"

const backupFormat = 1

// maxRecord bounds what a damaged length can make Restore allocate.
const maxRecord = 64 << 20

// Record types. Numbers are never reused.
const (
	recHeader  = 1
	recNode    = 2
	recService = 3
	recCheck   = 4
	recEntry   = 5
	recCA      = 6
	recRoot    = 7
	recStated  = 8
	recIndex   = 9

	recVirtualIP      = 30
	recQuery          = 40
	recCoordinate     = 42
	recAutopilot      = 50
	recRevocation     = 60
	recPair           = 20
	recDelay          = 21
	recSession        = 22
	recCertRevocation = 70

	recEnd = 255
)

// header opens a backup.
type header struct {
	Format     int
	Index      uint64
	Epoch      string
	Generation uint64
	ClusterID  string
}

// Backup is the store as of one moment.
type Backup struct {
	r      reader
	header header
}

// Backup captures the state of now, at no cost. Write it from any goroutine.
func (s *Store) Backup() *Backup {
	s.writes.Lock()
	defer s.writes.Unlock()
	st := s.state.Load()
	r := st.read()
	h := header{Format: backupFormat, Index: r.lastIndex(), Epoch: st.epoch.Base, Generation: st.epoch.Generation}
	if ca, ok := r.caConfig(); ok {
		h.ClusterID = ca.ClusterID
	}
	return &Backup{r: r, header: h}
}

// Index is the index of the last command in the backup.
func (b *Backup) Index() uint64 { return b.header.Index }

// Write writes the backup.
func (b *Backup) Write(w io.Writer) error {
	e := newEncoder(w)
	e.record(recHeader, &b.header)
	for _, t := range tables {
		for row := range b.r.rows(t, byID) {
			e.record(recordOf(row))
			if e.err != nil {
				break
			}
		}
	}
	return e.end()
}

// recordOf gives the record of a row.
func recordOf(row any) (byte, any) {
	switch v := row.(type) {
	case *catalog.Node:
		return recNode, v
	case *serviceRow:
		return recService, v
	case *catalog.Check:
		return recCheck, v
	case *entryRow:
		return recEntry, &catalog.Entry{ConfigEntry: v.Entry}
	case *catalog.CAConfig:
		return recCA, v
	case *catalog.Root:
		return recRoot, v
	case *statedRow:
		return recStated, v
	case *indexRow:
		return recIndex, v
	case *virtualIPRow:
		return recVirtualIP, v
	case *catalog.PreparedQuery:
		return recQuery, v
	case *catalog.NodeCoordinate:
		return recCoordinate, v
	case *catalog.Autopilot:
		return recAutopilot, v
	case *catalog.CertRevocation:
		return recCertRevocation, v
	case *catalog.Revocation:
		return recRevocation, v
	case *catalog.KVPair:
		return recPair, v
	case *catalog.KeyDelay:
		return recDelay, v
	case *catalog.Session:
		return recSession, v
	default:
		panic(fmt.Sprintf("store: no record for %T", row))
	}
}

// emptyRow gives the table of a record and a row to decode it into.
func emptyRow(typ byte) (t *table, into any, err error) {
	switch typ {
	case recNode:
		return tableNodes, &catalog.Node{}, nil
	case recService:
		return tableServices, &serviceRow{}, nil
	case recCheck:
		return tableChecks, &catalog.Check{}, nil
	case recEntry:
		return tableEntries, &catalog.Entry{}, nil
	case recCA:
		return tableCA, &catalog.CAConfig{}, nil
	case recRoot:
		return tableRoots, &catalog.Root{}, nil
	case recStated:
		return tableStated, &statedRow{}, nil
	case recIndex:
		return tableIndex, &indexRow{}, nil
	case recVirtualIP:
		return tableVirtualIPs, &virtualIPRow{}, nil
	case recQuery:
		return tableQueries, &catalog.PreparedQuery{}, nil
	case recCoordinate:
		return tableCoordinates, &catalog.NodeCoordinate{}, nil
	case recAutopilot:
		return tableAutopilot, &catalog.Autopilot{}, nil
	case recCertRevocation:
		return tableCertRevocations, &catalog.CertRevocation{}, nil
	case recRevocation:
		return tableRevocations, &catalog.Revocation{}, nil
	case recPair:
		return tableKV, &catalog.KVPair{}, nil
	case recDelay:
		return tableDelays, &catalog.KeyDelay{}, nil
	case recSession:
		return tableSessions, &catalog.Session{}, nil
	default:
		return nil, nil, catalog.Invalidf("backup: record type %d is not known; it was written by a newer version", typ)
	}
}

// Restore replaces everything by a backup. Nothing changes unless all of it was
// read and its checksum is right.
//
// A backup that continues the present history, as a server that lags is sent one,
// leaves the epoch as it is and watches go on. Any other begins an epoch: every
// watch ends with catalog.ErrStale. For one that is restored by hand see Rebase.
func (s *Store) Restore(r io.Reader) error {
	h, m, err := load(r)
	if err != nil {
		return err
	}
	s.writes.Lock()
	defer s.writes.Unlock()
	old := s.state.Load()
	_, at := old.applied.Get()
	next := newState(epochAfter(old.epoch, at, h), m)
	next.applied.Set(h.Index, struct{}{})
	s.state.Store(next)
	close(old.replaced)
	old.applied.Close(errReplaced)
	s.cfg.Logger.Info("restored a backup", "index", h.Index, "epoch", next.epoch.String())
	return nil
}

// epochAfter is the epoch after restoring a backup over a store at index at.
func epochAfter(cur epoch, at uint64, h header) epoch {
	e := epoch{Base: h.Epoch, Generation: h.Generation}
	switch {
	case at == 0 || h.Generation > cur.Generation, e == cur && h.Index >= at:
		return e
	default:
		e.Generation = cur.Generation + 1
		return e
	}
}

// Rebase copies a backup, marking it as the start of an epoch later than any this
// store has seen. A backup that an operator restores passes through it once,
// before consensus hands it to every server, so that all agree on the epoch. Its index
// becomes at least that one: above those of all servers, so that who waits for it does
// not take what was before for it. What this store has revoked stays so: a backup is to
// let nobody in who was shut out since.
func (s *Store) Rebase(r io.Reader, w io.Writer, index uint64) error {
	d, h, err := newDecoder(r)
	if err != nil {
		return err
	}
	h.Generation = max(h.Generation, s.state.Load().epoch.Generation) + 1
	h.Index = max(h.Index, index)
	e := newEncoder(w)
	e.record(recHeader, &h)
	for {
		typ, body, err := d.next()
		if err != nil {
			return err
		}
		if typ == recEnd {
			e.revocations(s.state.Load().read(), h.Index)
			return e.end()
		}
		e.raw(typ, body)
		if e.err != nil {
			return e.end()
		}
	}
}

// revocations writes those of r, as changed at an index: who knows those of before is to
// look. They take the place of equal ones that came before.
func (e *encoder) revocations(r reader, index uint64) {
	for _, t := range []*table{tableRevocations, tableCertRevocations} {
		for row := range r.rows(t, byID) {
			e.record(recordOf(row))
		}
	}
	for _, key := range []string{keyRevocations, keyCertRevocations, keyRevokedCerts} {
		e.record(recIndex, &indexRow{Key: key, Index: index})
	}
}

// maxIndex bounds the index of a backup that is restored by hand, so that there is
// room for what comes after it.
const maxIndex = 1 << 62

// Verify reads all of a backup as Restore would, keeps nothing of it, and gives its
// index.
func Verify(r io.Reader) (uint64, error) {
	h, _, err := load(r)
	if err == nil && h.Index > maxIndex {
		err = catalog.Invalidf("the backup has index %d: no log gets there", h.Index)
	}
	return h.Index, err
}

// load reads a backup into a moment of its own.
func load(r io.Reader) (header, *moment, error) {
	d, h, err := newDecoder(r)
	if err != nil {
		return h, nil, err
	}
	m, txn := newMoment(), nextTxn()
	for {
		typ, body, err := d.next()
		if err != nil {
			return h, nil, err
		}
		if typ == recEnd {
			break
		}
		if err := insertRecord(m, txn, typ, body); err != nil {
			return h, nil, err
		}
	}
	m.applied = h.Index
	return h, m, nil
}

func insertRecord(m *moment, txn txnID, typ byte, body []byte) error {
	t, row, err := emptyRow(typ)
	if err != nil {
		return err
	}
	if err := wire.Unmarshal(body, row); err != nil {
		return fmt.Errorf("backup: record of %s: %w", t.name, err)
	}
	switch v := row.(type) {
	case *catalog.Entry:
		if v.ConfigEntry == nil {
			return catalog.Invalidf("backup: an empty record of %s", t.name)
		}
		row = &entryRow{Entry: v.ConfigEntry}
	case *serviceRow:
		if v.Service == nil {
			return catalog.Invalidf("backup: an empty record of %s", t.name)
		}
		reader{moment: m}.shareService(v)
	case *catalog.Check:
		if v.Definition.IsZero() {
			v.Definition = nil // as older versions wrote it
		}
		reader{moment: m}.shareCheck(v)
	}
	m.put(txn, t, row)
	return nil
}

// encoder writes records and sums them up. After an error it writes no more.
type encoder struct {
	w   *bufio.Writer
	sum hash.Hash
	err error
}

func newEncoder(w io.Writer) *encoder {
	e := &encoder{w: bufio.NewWriterSize(w, 64<<10), sum: sha256.New()}
	e.write([]byte(magic))
	return e
}

func (e *encoder) write(b []byte) {
	if e.err == nil {
		_, e.err = e.w.Write(b)
		_, _ = e.sum.Write(b)
	}
}

func (e *encoder) record(typ byte, v any) {
	if e.err != nil {
		return
	}
	body, err := wire.Marshal(v)
	if err != nil {
		e.err = err
		return
	}
	e.raw(typ, body)
}

func (e *encoder) raw(typ byte, body []byte) {
	if len(body) > maxRecord && e.err == nil {
		e.err = fmt.Errorf("record of %d bytes, at most %d are allowed: %w", len(body), maxRecord, catalog.ErrTooLarge)
	}
	e.write(binary.BigEndian.AppendUint32([]byte{typ}, uint32(len(body)))) //nolint:gosec // bounded above
	e.write(body)
}

func (e *encoder) end() error {
	if e.err == nil {
		e.raw(recEnd, e.sum.Sum(nil))
	}
	if e.err == nil {
		e.err = e.w.Flush()
	}
	if e.err != nil {
		return fmt.Errorf("write backup: %w", e.err)
	}
	return nil
}

// decoder reads records and checks their sum.
type decoder struct {
	r   *bufio.Reader
	sum hash.Hash
}

var errDamaged = catalog.Invalidf("the backup is damaged: its checksum is wrong; take another one")

func newDecoder(r io.Reader) (*decoder, header, error) {
	d := &decoder{r: bufio.NewReaderSize(r, 64<<10), sum: sha256.New()}
	var h header
	m, err := d.read(len(magic))
	if err != nil {
		return nil, h, err
	}
	if string(m) != magic {
		return nil, h, catalog.Invalidf("this is not a backup of weft: it does not begin as one")
	}
	typ, body, err := d.next()
	if err != nil {
		return nil, h, err
	}
	if typ != recHeader {
		return nil, h, errDamaged
	}
	if err := wire.Unmarshal(body, &h); err != nil {
		return nil, h, fmt.Errorf("backup: header: %w", err)
	}
	if h.Format != backupFormat {
		return nil, h, catalog.Invalidf("the backup has format %d, this version reads %d; restore it with a newer version", h.Format, backupFormat)
	}
	return d, h, nil
}

// read returns the next n bytes, growing only as they come.
func (d *decoder) read(n int) ([]byte, error) {
	var b bytes.Buffer
	if _, err := io.CopyN(&b, d.r, int64(n)); err != nil {
		if errors.Is(err, io.EOF) {
			return nil, catalog.Invalidf("the backup is cut short")
		}
		return nil, fmt.Errorf("read backup: %w", err)
	}
	_, _ = d.sum.Write(b.Bytes())
	return b.Bytes(), nil
}

func (d *decoder) next() (byte, []byte, error) {
	want := d.sum.Sum(nil)
	head, err := d.read(5)
	if err != nil {
		return 0, nil, err
	}
	n := binary.BigEndian.Uint32(head[1:])
	if n > maxRecord {
		return 0, nil, errDamaged
	}
	body, err := d.read(int(n))
	if err != nil || head[0] != recEnd {
		return head[0], body, err
	}
	if !bytes.Equal(body, want) {
		return 0, nil, errDamaged
	}
	if _, err := d.r.ReadByte(); !errors.Is(err, io.EOF) {
		return 0, nil, catalog.Invalidf("the backup is damaged: data follows its end")
	}
	return recEnd, nil, nil
}
