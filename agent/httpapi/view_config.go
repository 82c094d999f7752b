package httpapi

import (
	"bytes"
	"encoding/json"
	"fmt"
	"hash/fnv"

	"github.com/weftmesh/weft/catalog"
)

// viewEntry shows a config entry: its own fields, its kind, and a hash of its
// content that stands still when nothing but an index moves.
func viewEntry(e catalog.ConfigEntry) (json.RawMessage, error) {
	body, err := json.Marshal(e)
	if err != nil {
		return nil, fmt.Errorf("config entry %s/%s: %w", e.EntryKind(), e.EntryName(), err)
	}
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(body, &fields); err != nil {
		return nil, fmt.Errorf("config entry %s/%s: %w", e.EntryKind(), e.EntryName(), err)
	}
	delete(fields, "CreateIndex")
	delete(fields, "ModifyIndex")
	content, err := json.Marshal(fields)
	if err != nil {
		return nil, fmt.Errorf("config entry %s/%s: %w", e.EntryKind(), e.EntryName(), err)
	}
	h := fnv.New64a()
	_, _ = h.Write(content) // a hash takes everything
	head, err := json.Marshal(struct {
		Kind string
		Hash uint64
	}{e.EntryKind(), h.Sum64()})
	if err != nil {
		return nil, err
	}
	return append(append(bytes.TrimSuffix(head, []byte("}")), ','), bytes.TrimPrefix(body, []byte("{"))...), nil
}
