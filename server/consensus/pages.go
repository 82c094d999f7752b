package consensus

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"

	"go.etcd.io/bbolt"
)

// bbolt walks all pages of a file that it opens for writing, and panics in a
// goroutine of its own where a page or the order of keys is wrong. This finds the
// same before, as an error.
//
// A page begins with its number (8 bytes), its kind and the count of its elements
// (2 each), and how many pages it goes on for (4). An element is 16 bytes: in a
// branch, where its key stands and how long it is (4 each) and the page below (8);
// in a leaf, its flags, where its key stands, and the lengths of key and value.
const (
	pageHead    = 16
	pageElement = 16
	pageBranch  = 1
	pageLeaf    = 2
	maxDepth    = 64
)

type pageTree struct {
	file  io.ReaderAt
	size  uint64 // of a page
	pages uint64 // in the file
	seen  map[uint64]bool
}

// inspectPages checks all pages that tx can reach, and says how many bytes they are.
func inspectPages(file string, tx *bbolt.Tx) (used int64, err error) {
	f, err := os.Open(file) //nolint:gosec // the log of our own data directory
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	size := uint64(tx.DB().Info().PageSize)
	t := pageTree{file: f, size: size, pages: uint64(tx.Size()) / size, seen: map[uint64]bool{}}
	if _, err := t.walk(uint64(tx.Cursor().Bucket().RootPage()), nil, nil, 0); err != nil {
		return 0, err
	}
	err = tx.ForEach(func(name []byte, b *bbolt.Bucket) error {
		if b == nil {
			return fmt.Errorf("%q is not a bucket", name)
		}
		if b.RootPage() == 0 { // it is small, and stands in the page that names it
			return nil
		}
		_, err := t.walk(uint64(b.RootPage()), nil, nil, 0)
		return err
	})
	return int64(uint64(len(t.seen)) * size), err
}

// walk checks the tree below page id, whose keys are at least low and below high,
// where these are not nil, and gives the last key.
func (t *pageTree) walk(id uint64, low, high []byte, depth int) (last []byte, err error) {
	b, err := t.read(id)
	if err != nil {
		return nil, err
	}
	if depth > maxDepth {
		return nil, fmt.Errorf("page %d: the tree is too deep", id)
	}
	order := binary.NativeEndian
	kind, count := order.Uint16(b[8:]), int(order.Uint16(b[10:]))
	if kind != pageBranch && kind != pageLeaf {
		return nil, fmt.Errorf("page %d: unexpected kind %#x", id, kind)
	}
	if kind == pageBranch && count == 0 {
		return nil, fmt.Errorf("page %d: a branch without pages", id)
	}
	keys, err := pageKeys(id, b, kind, count)
	if err != nil {
		return nil, err
	}
	last = low
	for i, k := range keys {
		if d := bytes.Compare(last, k); (last != nil && d > 0) || (i > 0 && d == 0) || (high != nil && bytes.Compare(k, high) >= 0) {
			return nil, fmt.Errorf("page %d: key %d is out of order", id, i)
		}
		last = k
		if kind == pageLeaf {
			continue
		}
		above := high
		if i+1 < len(keys) {
			above = keys[i+1]
		}
		if last, err = t.walk(order.Uint64(b[pageHead+i*pageElement+8:]), k, above, depth+1); err != nil {
			return nil, err
		}
	}
	return last, nil
}

// read gives the bytes of a page, and of those that it goes on for.
func (t *pageTree) read(id uint64) ([]byte, error) {
	if id < 2 || id >= t.pages {
		return nil, fmt.Errorf("page %d of %d: out of bounds", id, t.pages)
	}
	b := make([]byte, t.size)
	if _, err := t.file.ReadAt(b, int64(id*t.size)); err != nil {
		return nil, fmt.Errorf("page %d: %w", id, err)
	}
	own, more := binary.NativeEndian.Uint64(b), uint64(binary.NativeEndian.Uint32(b[12:]))
	if own != id {
		return nil, fmt.Errorf("page %d says that it is page %d", id, own)
	}
	if id+more >= t.pages {
		return nil, fmt.Errorf("page %d goes on beyond the end", id)
	}
	for i := id; i <= id+more; i++ {
		if t.seen[i] {
			return nil, fmt.Errorf("page %d is used twice", i)
		}
		t.seen[i] = true
	}
	if more > 0 {
		b = append(b, make([]byte, more*t.size)...)
		if _, err := t.file.ReadAt(b[t.size:], int64((id+1)*t.size)); err != nil {
			return nil, fmt.Errorf("page %d: %w", id, err)
		}
	}
	return b, nil
}

func pageKeys(id uint64, b []byte, kind uint16, count int) ([][]byte, error) {
	if pageHead+count*pageElement > len(b) {
		return nil, fmt.Errorf("page %d has %d elements, more than fit", id, count)
	}
	order := binary.NativeEndian
	keys := make([][]byte, count)
	for i := range keys {
		at := pageHead + i*pageElement
		pos, length, value := uint64(order.Uint32(b[at:])), uint64(order.Uint32(b[at+4:])), uint64(0)
		if kind == pageLeaf {
			pos, length, value = length, uint64(order.Uint32(b[at+8:])), uint64(order.Uint32(b[at+12:]))
		}
		begin := uint64(at) + pos
		if begin+length+value > uint64(len(b)) {
			return nil, fmt.Errorf("page %d: element %d ends outside of it", id, i)
		}
		keys[i] = b[begin : begin+length]
	}
	return keys, nil
}
