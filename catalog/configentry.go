package catalog

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
)

// ConfigEntry is central configuration of one kind and name, replicated to all.
type ConfigEntry interface {
	// EntryKind is the kind, for example "service-intentions".
	EntryKind() string
	// EntryName is the name, unique in its kind.
	EntryName() string
	// Normalize fills defaults and sorts what has an order; it is idempotent.
	Normalize()
	// Validate refuses, naming the field, what Normalize left unacceptable.
	Validate() error
	// Raft gives access to the indexes, for the store alone.
	Raft() *RaftIndex
}

// Kinds of config entries.
const (
	KindServiceIntentions = "service-intentions"
)

// kinds maps each kind that this version knows to a constructor of an empty entry.
var kinds = map[string]func() ConfigEntry{
	KindServiceIntentions: func() ConfigEntry { return &ServiceIntentions{} },
}

// ConfigKinds lists the kinds that this version knows, sorted.
func ConfigKinds() []string {
	out := make([]string, 0, len(kinds))
	for k := range kinds {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}

// NewConfigEntry returns an empty entry of the kind. The error wraps ErrInvalid.
func NewConfigEntry(kind string) (ConfigEntry, error) {
	f, ok := kinds[kind]
	if !ok {
		return nil, Invalidf("invalid config entry kind: %q, want one of %s", kind, strings.Join(ConfigKinds(), ", "))
	}
	return f(), nil
}

// DecodeConfigEntry makes a config entry from decoded JSON or HCL. Its key Kind
// says which; unknown keys are refused. It neither normalizes nor validates.
func DecodeConfigEntry(raw map[string]any) (ConfigEntry, error) {
	var kind string
	for k, v := range raw {
		if strings.EqualFold(k, "Kind") {
			kind, _ = v.(string)
		}
	}
	if kind == "" {
		return nil, Invalidf("config entry: the key Kind is missing")
	}
	e, err := NewConfigEntry(kind)
	if err != nil {
		return nil, err
	}
	body := make(map[string]any, len(raw))
	for k, v := range raw {
		if !strings.EqualFold(k, "Kind") {
			body[k] = v
		}
	}
	if err := Decode(body, e); err != nil {
		return nil, err
	}
	return e, nil
}

// Entry carries a ConfigEntry of any kind through codecs, as its kind and its JSON.
type Entry struct{ ConfigEntry }

type entryWire struct {
	Kind  string
	Entry json.RawMessage
}

// MarshalBinary implements encoding.BinaryMarshaler.
func (e Entry) MarshalBinary() ([]byte, error) {
	if e.ConfigEntry == nil {
		return []byte("null"), nil
	}
	body, err := json.Marshal(e.ConfigEntry)
	if err != nil {
		return nil, err
	}
	return json.Marshal(entryWire{Kind: e.EntryKind(), Entry: body})
}

// UnmarshalBinary implements encoding.BinaryUnmarshaler.
func (e *Entry) UnmarshalBinary(b []byte) error {
	if string(b) == "null" {
		e.ConfigEntry = nil
		return nil
	}
	var w entryWire
	if err := json.Unmarshal(b, &w); err != nil {
		return fmt.Errorf("config entry: %w", err)
	}
	c, err := NewConfigEntry(w.Kind)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(w.Entry, c); err != nil {
		return fmt.Errorf("config entry %s: %w", w.Kind, err)
	}
	e.ConfigEntry = c
	return nil
}
