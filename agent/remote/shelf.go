package remote

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/catalog/durable"
	"github.com/weftmesh/weft/catalog/wire"
)

// Bounds of what is kept on disk. The answers heard longest ago give way.
const (
	maxShelved      = 2048
	maxShelvedBytes = 64 << 20
	maxShelvedView  = 8 << 20
	// shelfPause is between two rounds of writing: many versions of a view are one write.
	shelfPause = time.Second
	// shelfAgain is how soon what could not be written is tried again.
	shelfAgain = 30 * time.Second
	maxAside   = 256
	shelfMagic = "weft view 1\n"
	shelfExt   = ".view"
)

// shelf keeps the last answers on disk, each in a file of its own, so that an agent
// that starts while no server answers knows what it knew: it answers stale reads from
// there, marked as old. Watches are not fed from it, since what is made of them has
// newer files of its own. Keys, sessions and the CA's settings are never written.
type shelf struct {
	dir string
	log *slog.Logger

	mu     sync.Mutex
	rows   map[string]shelfRow
	bytes  int64
	due    map[string]shelved  // what is to be written
	busy   map[string]shelved  // what is being written now; nobody changes it
	gone   map[string]bool     // files that are to be removed
	aside  map[viewKey]shelved // what is written if its name proves to be one; at most maxAside
	wake   chan struct{}       // capacity 1
	failed bool
}

// shelfRow is a file that is there.
type shelfRow struct {
	heard time.Time
	size  int64
}

// shelved is an answer on its way to the disk; one without a view is to go from there.
type shelved struct {
	view  *catalog.View
	heard time.Time
}

// openShelf lists what is in dir; nil where dir is "". What cannot be listed is as
// good as not there, and said so.
func openShelf(dir string, log *slog.Logger) *shelf {
	if dir == "" {
		return nil
	}
	s := &shelf{dir: dir, log: log, rows: map[string]shelfRow{}, due: map[string]shelved{}, gone: map[string]bool{}, aside: map[viewKey]shelved{}, wake: make(chan struct{}, 1)}
	entries, err := os.ReadDir(dir)
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			log.Warn("the answers that were kept cannot be listed; without servers this host knows less", "file", dir, "err", err)
		}
		return s
	}
	for _, e := range entries {
		info, err := e.Info()
		switch {
		case err != nil || !info.Mode().IsRegular():
		case strings.HasSuffix(e.Name(), shelfExt):
			s.rows[e.Name()] = shelfRow{heard: info.ModTime(), size: info.Size()}
			s.bytes += info.Size()
		}
	}
	return s
}

// shelfName is the file of a query as one caller sees it. Only a digest of the token
// is in it.
func shelfName(key viewKey) string {
	h := sha256.New()
	for _, part := range []string{key.token, string(key.query.Kind), key.query.Name, key.query.Sub} {
		_, _ = h.Write(binary.BigEndian.AppendUint32(nil, uint32(len(part)))) //nolint:gosec // far below
		_, _ = h.Write([]byte(part))
	}
	return hex.EncodeToString(h.Sum(nil)[:16]) + shelfExt
}

// isShelved tells which answers are written: what DNS, discovery and policy need, and
// nothing in which others keep secrets.
func isShelved(q catalog.Query) bool {
	switch q.Kind {
	case catalog.QueryKey, catalog.QueryKeyTree, catalog.QueryKeyNames, catalog.QueryKeyDelays,
		catalog.QuerySession, catalog.QueryNodeSessions, catalog.QuerySessions,
		catalog.QueryCAConfig, catalog.QueryAutopilot, catalog.QueryDump:
		return false
	case catalog.QueryConfigEntry, catalog.QueryConfigEntries:
		return q.Name != catalog.KindInlineCertificate // which holds a private key
	}
	return true
}

// put has an answer written soon, or what there is of it removed where the catalog has
// nothing of that name any more. It never waits for the disk.
func (s *shelf) put(key viewKey, v *catalog.View) {
	if s == nil || v == nil || !isShelved(key.query) || slices.ContainsFunc(v.Queries, func(q *catalog.PreparedQuery) bool { return q.Token != "" }) {
		return
	}
	name := shelfName(key)
	s.mu.Lock()
	_, waits := s.due[name]
	_, busy := s.busy[name]
	_, kept := s.rows[name]
	a := shelved{view: v, heard: time.Now()}
	delete(s.aside, key)
	switch {
	case isNothing(key.query.Kind, v) && !s.ofService(key):
		if waits || busy || kept {
			s.due[name] = shelved{}
		}
		s.setAside(key, a)
	case waits || len(s.due) < maxShelved:
		s.due[name] = a
		s.takeUp(key)
	}
	s.mu.Unlock()
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// saysLittle tells whether an answer of that kind about a service that exists may look like
// one about a name that does not.
func saysLittle(kind catalog.QueryKind) bool {
	return kind == catalog.QueryChain || kind == catalog.QueryServiceChecks
}

// ofService tells whether such an answer is about a service of which instances are kept;
// s.mu is held.
func (s *shelf) ofService(key viewKey) bool {
	if !saysLittle(key.query.Kind) {
		return false
	}
	for _, kind := range []catalog.QueryKind{catalog.QueryService, catalog.QueryConnect} {
		for _, sub := range []string{"", catalog.SubMerged} {
			if s.has(shelfName(viewKey{query: catalog.Query{Kind: kind, Name: key.query.Name, Sub: sub}, token: key.token})) {
				return true
			}
		}
	}
	return false
}

// has tells whether an answer is there or on its way; s.mu is held.
func (s *shelf) has(name string) bool {
	for _, on := range []map[string]shelved{s.due, s.busy} {
		if a, ok := on[name]; ok {
			return a.view != nil
		}
	}
	_, ok := s.rows[name]
	return ok
}

// setAside remembers an answer that says little until instances of that name are heard of;
// s.mu is held.
func (s *shelf) setAside(key viewKey, a shelved) {
	if !saysLittle(key.query.Kind) {
		return
	}
	if len(s.aside) >= maxAside {
		for k := range s.aside { // any one
			delete(s.aside, k)
			break
		}
	}
	s.aside[key] = a
}

// takeUp has what was set aside written now that instances of that name are; s.mu is held.
func (s *shelf) takeUp(key viewKey) {
	if key.query.Kind != catalog.QueryService && key.query.Kind != catalog.QueryConnect {
		return
	}
	for k, a := range s.aside {
		if k.token == key.token && k.query.Name == key.query.Name && len(s.due) < maxShelved {
			s.due[shelfName(k)] = a
			delete(s.aside, k)
		}
	}
}

// isNothing tells an answer that the catalog has nothing of that name. Whoever may ask
// can think of any number of names, which must not cost a file each.
func isNothing(kind catalog.QueryKind, v *catalog.View) bool {
	switch kind {
	case catalog.QueryService, catalog.QueryConnect, catalog.QueryIngress, catalog.QueryNode, catalog.QueryNodeChecks,
		catalog.QueryServiceChecks, catalog.QueryPreparedQuery, catalog.QueryConfigEntry:
		return len(v.Instances)+len(v.Nodes)+len(v.Checks)+len(v.Queries)+len(v.Entries) == 0
	case catalog.QueryChain:
		return v.Problem == "" && (v.Chain == nil || v.Chain.Default && len(v.Chain.AutoVirtualIPs) == 0)
	}
	return false
}

// run writes until ctx ends, and then what is left.
func (s *shelf) run(ctx context.Context) {
	again := time.NewTicker(shelfAgain)
	defer again.Stop()
	for {
		select {
		case <-ctx.Done():
			s.flush()
			return
		case <-s.wake:
		case <-again.C: // for what could not be written
		}
		s.flush()
		sleep(ctx, shelfPause)
	}
}

// flush writes what is due, and removes what is to go; what cannot be written is due
// again. Nothing but it touches files, and never with s.mu: reads wait for that.
func (s *shelf) flush() {
	s.writeDue()
	s.mu.Lock()
	s.shrink()
	gone := s.gone
	s.gone = map[string]bool{}
	s.mu.Unlock()
	for name := range gone {
		_ = os.Remove(filepath.Join(s.dir, name)) // one that stays is listed at the next start
	}
}

func (s *shelf) writeDue() {
	s.mu.Lock()
	due := s.due
	s.due, s.busy = map[string]shelved{}, due
	s.mu.Unlock()
	if len(due) == 0 {
		return
	}
	var err error
	unwritten := map[string]shelved{}
	for name, a := range due {
		if werr := s.write(name, a); werr != nil {
			err = werr
			unwritten[name] = a
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.busy = nil
	s.again(unwritten)
	switch {
	case err != nil && !s.failed:
		s.log.Warn("what this host learned cannot be kept for a start without servers", "file", s.dir, "err", err)
	case err == nil && s.failed:
		s.log.Info("what this host learned is kept again", "file", s.dir)
	}
	s.failed = err != nil
}

// again keeps what could not be written for the next round, but for what was heard anew
// since; s.mu is held.
func (s *shelf) again(unwritten map[string]shelved) {
	for name, a := range unwritten {
		if _, newer := s.due[name]; !newer && len(s.due) < maxShelved {
			s.due[name] = a
		}
	}
}

// write replaces the file of an answer in one step. It is not synced: a file that a
// power cut damaged does not match its digest and is passed over.
func (s *shelf) write(name string, a shelved) error {
	if a.view == nil {
		s.forget(name)
		return nil
	}
	b, err := wire.Marshal(a.view)
	if err != nil {
		return err
	}
	if len(b) > maxShelvedView {
		s.forget(name)
		return nil
	}
	body := binary.BigEndian.AppendUint64(nil, uint64(a.heard.UnixNano())) //nolint:gosec // after 1970
	body = append(body, b...)
	sum := sha256.Sum256(body)
	if err := durable.Swap(filepath.Join(s.dir, name), slices.Concat([]byte(shelfMagic), sum[:], body)); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.bytes += int64(len(b)) - s.rows[name].size
	s.rows[name] = shelfRow{heard: a.heard, size: int64(len(b))}
	delete(s.gone, name)
	return nil
}

// forget has the file of an answer removed soon.
func (s *shelf) forget(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.drop(name)
}

// drop counts a file as gone; s.mu is held.
func (s *shelf) drop(name string) {
	row, ok := s.rows[name]
	if !ok {
		return
	}
	delete(s.rows, name)
	s.bytes -= row.size
	s.gone[name] = true
}

// shrink drops the oldest answers until the rest fits; s.mu is held.
func (s *shelf) shrink() {
	if len(s.rows) <= maxShelved && s.bytes <= maxShelvedBytes {
		return
	}
	names := make([]string, 0, len(s.rows))
	for n := range s.rows {
		names = append(names, n)
	}
	slices.SortFunc(names, func(a, b string) int {
		return cmp.Or(s.rows[a].heard.Compare(s.rows[b].heard), strings.Compare(a, b))
	})
	// A little more than must be, so that the next answer does not sort again.
	for _, n := range names {
		if len(s.rows) <= maxShelved*15/16 && s.bytes <= maxShelvedBytes/16*15 {
			return
		}
		s.drop(n)
	}
}

// get reads an answer back.
func (s *shelf) get(key viewKey) (heldAnswer, bool) {
	if s == nil {
		return heldAnswer{}, false
	}
	name := shelfName(key)
	s.mu.Lock()
	_, there := s.rows[name]
	a, waits := s.due[name]
	s.mu.Unlock()
	if !there || waits && a.view == nil {
		return heldAnswer{}, false
	}
	kept, err := readShelved(filepath.Join(s.dir, name))
	if err == nil && kept.view.Query != key.query {
		err = fmt.Errorf("it answers %s", kept.view.Query)
	}
	if err != nil {
		s.log.Warn("an answer that was kept cannot be read and is forgotten", "query", key.query.String(), "file", name, "err", err)
		s.forget(name)
		return heldAnswer{}, false
	}
	return kept, true
}

func readShelved(path string) (heldAnswer, error) {
	const head = len(shelfMagic) + sha256.Size
	var a heldAnswer
	file := durable.File{Path: path, Most: maxShelvedView + int64(head) + 8}
	_, err := file.Read(func(b []byte) error {
		if len(b) < head+8 || string(b[:len(shelfMagic)]) != shelfMagic {
			return errors.New("it is not a kept answer of this version")
		}
		body := b[head:]
		if sum := sha256.Sum256(body); !bytes.Equal(sum[:], b[len(shelfMagic):head]) {
			return errors.New("its digest is wrong")
		}
		a = heldAnswer{view: &catalog.View{}, heard: time.Unix(0, int64(binary.BigEndian.Uint64(body)))} //nolint:gosec // as written
		return wire.Unmarshal(body[8:], a.view)
	})
	if err == nil && a.view == nil {
		err = fs.ErrNotExist
	}
	return a, err
}
