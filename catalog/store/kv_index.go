package store

import (
	"hash/fnv"
	"iter"
	"strconv"
	"strings"

	"github.com/weftmesh/weft/catalog"
)

// The index of an answer about keys.
//
// One key: that of its row, or, when it is gone, of its extinct row.
//
// A prefix ends within some folder, the part of a key up to a slash. Every folder
// that holds a key, at any depth, has an index row, which every write below it
// touches. So "a/b/" rests on one row, however many keys it has; "a/b" rests on
// those direct children of "a/" that begin with b: rows of keys and of folders,
// a walk over one level and not over all that is below. What such a child leaves
// behind when it goes is a touch of a "gone" row for each beginning of its name, of
// which there is a fixed number.

const (
	classPair   = "kv"
	classFolder = "kv-folder"
	classGone   = "kv-gone"
)

const (
	// maxFolders is how many levels of folders have rows. What is deeper shares the
	// row of the deepest that has one, so that a key of slashes costs no more.
	maxFolders = 32
	// goneBuckets is how many gone rows there are, for the whole store.
	goneBuckets = 1024
	// maxGone bounds the beginnings of a name that are told apart.
	maxGone = 16
)

// folders lists the folders that a key is in, the outermost first: "" is that of all.
func folders(key string) []string {
	out := []string{""}
	for i := 0; i < len(key) && len(out) < maxFolders; i++ {
		if key[i] == '/' {
			out = append(out, key[:i+1])
		}
	}
	return out
}

// split gives the folder that a prefix ends in and the beginning of a name there.
// deep tells that the folder is the last that has a row, so that its row must
// answer for all beginnings.
func split(prefix string) (folder, begin string, deep bool) {
	all := folders(prefix)
	folder = all[len(all)-1]
	return folder, prefix[len(folder):], len(all) == maxFolders
}

func goneKey(folder, begin string) string {
	begin = begin[:min(len(begin), maxGone)]
	h := fnv.New32a()
	_, _ = h.Write([]byte(folder + "\x00" + begin))
	return classGone + "/" + strconv.Itoa(int(h.Sum32()%goneBuckets))
}

// pairIndex is the index of the answer about one key.
func (r reader) pairIndex(on *basis, key string) uint64 {
	on.row(classKey(classPair, key))
	if p, ok := r.pair(key); ok {
		return p.ModifyIndex
	}
	i, _ := r.indexRow(on, extinctKey(classPair, key))
	return i
}

// treeIndex is the index of the answer about a prefix.
func (r reader) treeIndex(on *basis, prefix string) uint64 {
	folder, begin, deep := split(prefix)
	if begin == "" || deep {
		return r.keyIndex(on, indexKey{classFolder, folder})
	}
	index, _ := r.indexRow(on, goneKey(folder, begin))
	on.prefix(prefix)
	for more, from := true, prefix; more; {
		more = false
		for p := range r.pairsFrom(from, prefix) {
			end := strings.IndexByte(p.Key[len(folder):], '/')
			if end < 0 {
				index = max(index, p.ModifyIndex)
				continue
			}
			sub := p.Key[:len(folder)+end+1]
			i, _ := r.indexRow(nil, classKey(classFolder, sub)) // whatever is below is below the prefix
			index = max(index, i)
			from = after(sub)
			more = from != ""
			break
		}
	}
	return index
}

// touchFolders is called once the change of the key is in the table.
func (w *writer) touchFolders(key string) {
	for _, f := range folders(key) {
		w.touchName(classFolder, f)
	}
}

// leaveFolders is called once keys are out of the table.
func (w *writer) leaveFolders(keys []string) {
	seen := map[string]bool{}
	for _, key := range keys {
		w.touch(extinctKey(classPair, key))
		all := folders(key)
		for i, f := range all {
			if !seen[f] {
				seen[f] = true
				w.settlePrefix(f)
			}
			child := key
			if i+1 < len(all) {
				child = all[i+1]
			}
			if !seen[child+"\x00"] {
				seen[child+"\x00"] = true
				w.leaveFolder(f, child)
			}
		}
	}
}

// leaveFolder leaves word, for who asks for a beginning of its name, that a child
// of the folder is gone, unless it is still there.
func (w *writer) leaveFolder(folder, child string) {
	if child != folder && strings.HasSuffix(child, "/") && w.hasKeys(child) {
		return
	}
	name := strings.TrimSuffix(child[len(folder):], "/")
	for n := 1; n <= min(len(name), maxGone); n++ {
		w.touch(goneKey(folder, name[:n]))
	}
}

func (w *writer) settlePrefix(folder string) {
	if w.hasKeys(folder) {
		w.touchName(classFolder, folder)
		return
	}
	w.retire(classFolder, folder)
}

func (r reader) hasKeys(prefix string) bool {
	for range r.pairsFrom(prefix, prefix) {
		return true
	}
	return false
}

// after is the least string above every one that begins with prefix; "" when there
// is none.
func after(prefix string) string {
	b := []byte(prefix)
	for i := len(b) - 1; i >= 0; i-- {
		if b[i] < 0xff {
			b[i]++
			return string(b[:i+1])
		}
	}
	return ""
}

// pairsFrom walks the keys with the prefix from a key on.
func (r reader) pairsFrom(from, prefix string) iter.Seq[*catalog.KVPair] {
	return func(yield func(*catalog.KVPair) bool) {
		for row := range r.from(tableKV, from) {
			if p := pairOf(row); !strings.HasPrefix(p.Key, prefix) || !yield(p) {
				return
			}
		}
	}
}
