package catalog

import (
	"encoding/json"
	"errors"
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
	KindServiceIntentions       = "service-intentions"
	KindServiceDefaults         = "service-defaults"
	KindProxyDefaults           = "proxy-defaults"
	KindServiceRouter           = "service-router"
	KindServiceSplitter         = "service-splitter"
	KindServiceResolver         = "service-resolver"
	KindMesh                    = "mesh"
	KindExportedServices        = "exported-services"
	KindJWTProvider             = "jwt-provider"
	KindTerminatingGatewayEntry = "terminating-gateway"
	KindIngressGatewayEntry     = "ingress-gateway"
	KindAPIGatewayEntry         = "api-gateway"
	KindHTTPRoute               = "http-route"
	KindTCPRoute                = "tcp-route"
	KindInlineCertificate       = "inline-certificate"
	KindFileSystemCertificate   = "file-system-certificate"
	KindSamenessGroup           = "sameness-group"
	KindBoundAPIGateway         = "bound-api-gateway"
)

// kinds maps each kind that this version knows to a constructor of an empty entry.
var kinds = map[string]func() ConfigEntry{
	KindServiceIntentions:       func() ConfigEntry { return &ServiceIntentions{} },
	KindServiceDefaults:         func() ConfigEntry { return &ServiceDefaults{} },
	KindProxyDefaults:           func() ConfigEntry { return &ProxyDefaults{} },
	KindServiceRouter:           func() ConfigEntry { return &ServiceRouter{} },
	KindServiceSplitter:         func() ConfigEntry { return &ServiceSplitter{} },
	KindServiceResolver:         func() ConfigEntry { return &ServiceResolver{} },
	KindMesh:                    func() ConfigEntry { return &Mesh{} },
	KindExportedServices:        func() ConfigEntry { return &ExportedServices{} },
	KindJWTProvider:             func() ConfigEntry { return &JWTProvider{} },
	KindTerminatingGatewayEntry: func() ConfigEntry { return &TerminatingGateway{} },
	KindIngressGatewayEntry:     func() ConfigEntry { return &IngressGateway{} },
	KindAPIGatewayEntry:         func() ConfigEntry { return &APIGateway{} },
	KindHTTPRoute:               func() ConfigEntry { return &HTTPRoute{} },
	KindTCPRoute:                func() ConfigEntry { return &TCPRoute{} },
	KindInlineCertificate:       func() ConfigEntry { return &InlineCertificate{} },
	KindFileSystemCertificate:   func() ConfigEntry { return &FileSystemCertificate{} },
	KindSamenessGroup: func() ConfigEntry {
		return &readOnly{kind: KindSamenessGroup, why: "sameness-groups are an enterprise-only feature"}
	},
	KindBoundAPIGateway: func() ConfigEntry {
		return &readOnly{kind: KindBoundAPIGateway, why: "bound-api-gateway entries cannot be written: write api-gateway, http-route and tcp-route entries"}
	},
}

// readOnly is an entry of a kind that clients ask for and that nobody can write.
type readOnly struct {
	EntryHead
	kind, why string
}

// EntryKind implements ConfigEntry.
func (e *readOnly) EntryKind() string { return e.kind }

// Normalize implements ConfigEntry.
func (*readOnly) Normalize() {}

// Validate implements ConfigEntry.
func (e *readOnly) Validate() error { return Invalidf("%s", e.why) }

// EntryHead is what most kinds have in common.
type EntryHead struct {
	Name Name
	Meta map[string]string `json:",omitempty"`
	RaftIndex
}

// EntryName implements ConfigEntry.
func (h *EntryHead) EntryName() string { return h.Name }

// Raft implements ConfigEntry.
func (h *EntryHead) Raft() *RaftIndex { return &h.RaftIndex }

var errNoName = Invalidf("Name is required")

// validEntryName is for kinds whose entries are named by their user.
func validEntryName(n Name) error {
	switch n {
	case "":
		return errNoName
	case Wildcard:
		return Invalidf("Name must be the name of a service or thing, and %q stands for any", Wildcard)
	default:
		return validName("Name", n)
	}
}

// isLabel tells whether s can be a label of a DNS name, in lower case.
func isLabel(s string) bool {
	return s != "" && len(s) <= 63 && strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789-") == "" &&
		!strings.HasPrefix(s, "-") && !strings.HasSuffix(s, "-")
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
		return nil, Invalidf("invalid config entry kind: %s; the kinds are %s", kind, strings.Join(ConfigKinds(), ", "))
	}
	return f(), nil
}

// DecodeConfigEntry makes a config entry from decoded JSON or HCL. Its key Kind
// says which; unknown keys are refused, those that answers carry beside are not. It
// neither normalizes nor validates.
func DecodeConfigEntry(raw map[string]any) (ConfigEntry, error) {
	var kind string
	var hasKind bool
	body := make(map[string]any, len(raw))
	for k, v := range raw {
		switch strings.ToLower(strings.ReplaceAll(k, "_", "")) {
		case "kind":
			kind, hasKind = v.(string)
			if !hasKind {
				return nil, Invalidf("config entry: Kind must be a text")
			}
		case "hash", "createindex", "modifyindex":
			// of an answer: the store knows better
		case "namespace", "partition":
			if s, _ := v.(string); v != nil && s != "" && !strings.EqualFold(s, "default") {
				return nil, Invalidf("invalid %s %q: %ss are a Consul Enterprise feature", k, s, k)
			}
		default:
			body[k] = v
		}
	}
	if !hasKind || kind == "" {
		return nil, Invalidf("Payload does not contain a kind/Kind key at the top level")
	}
	e, err := NewConfigEntry(kind)
	if err != nil {
		return nil, err
	}
	if ro, ok := e.(*readOnly); ok {
		return nil, &refusedKind{ro.Validate()}
	}
	if kind == KindExportedServices {
		renameConsumers(body)
	}
	if err := Decode(body, e); err != nil {
		return nil, err
	}
	return e, nil
}

// refusedKind is the refusal of an entry whatever is in it.
type refusedKind struct{ error }

func (e *refusedKind) Unwrap() error { return e.error }

// IsRefusedKind tells whether an entry was refused for its kind and not its form.
func IsRefusedKind(err error) bool {
	var r *refusedKind
	return errors.As(err, &r)
}

// renameConsumers takes peer_name for peer, as old entries have it.
func renameConsumers(v any) {
	switch x := v.(type) {
	case map[string]any:
		for k, e := range x {
			if strings.EqualFold(strings.ReplaceAll(k, "_", ""), "peername") {
				delete(x, k)
				x["Peer"] = e
				continue
			}
			renameConsumers(e)
		}
	case []any:
		for _, e := range x {
			renameConsumers(e)
		}
	case []map[string]any:
		for _, e := range x {
			renameConsumers(e)
		}
	}
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
