package gossip

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/hashicorp/memberlist"

	"github.com/weftmesh/weft/catalog"
)

// tagsVersion is the first byte of encoded tags.
const tagsVersion = 1

// encodeTags packs tags into the few bytes that memberlist gives every member. Too
// many are refused here, for memberlist would panic.
func encodeTags(tags map[string]string) ([]byte, error) {
	keys := make([]string, 0, len(tags))
	for k := range tags {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	out := []byte{tagsVersion}
	for _, k := range keys {
		for _, s := range []string{k, tags[k]} {
			out = binary.AppendUvarint(out, uint64(len(s)))
			out = append(out, s...)
		}
	}
	if len(out) > memberlist.MetaMaxSize {
		return nil, fmt.Errorf("gossip: %w: the tags (%s) take %d bytes, at most %d are allowed",
			catalog.ErrInvalid, strings.Join(keys, ", "), len(out), memberlist.MetaMaxSize)
	}
	return out, nil
}

var errTags = errors.New("tags are cut short or of another version")

// decodeTags is the inverse. No tags at all are none.
func decodeTags(b []byte) (map[string]string, error) {
	tags := map[string]string{}
	if len(b) == 0 {
		return tags, nil
	}
	if b[0] != tagsVersion {
		return nil, errTags
	}
	b = b[1:]
	next := func() (string, bool) {
		n, used := binary.Uvarint(b)
		if used <= 0 || n > uint64(len(b)-used) {
			return "", false
		}
		s := string(b[used : used+int(n)])
		b = b[used+int(n):]
		return s, true
	}
	for len(b) > 0 {
		k, ok := next()
		if !ok {
			return nil, errTags
		}
		v, ok := next()
		if !ok {
			return nil, errTags
		}
		tags[k] = v
	}
	return tags, nil
}
