package catalog

import "strings"

// Bounds of metadata and descriptions in config entries, as in Consul.
const (
	maxEntryMeta      = 64
	maxEntryMetaKey   = 128
	maxEntryMetaValue = 512
)

// validWritten refuses what a client may not write and what is applied all the same
// where it is in a log already: Validate, which the log is held to, must not get
// stricter from one version to the next.
func validWritten(e ConfigEntry) error {
	if m, ok := e.(interface{ entryMeta() map[string]string }); ok {
		if err := validEntryMeta("Meta", m.entryMeta()); err != nil {
			return err
		}
	}
	switch e := e.(type) {
	case *ServiceIntentions:
		return e.validWritten()
	case *HTTPRoute:
		for _, h := range e.Hostnames {
			if strings.Contains(h, "*") {
				return Invalidf("host %q must not be a wildcard", h)
			}
		}
	}
	return nil
}

func (h *EntryHead) entryMeta() map[string]string         { return h.Meta }
func (e *Mesh) entryMeta() map[string]string              { return e.Meta }
func (e *ServiceIntentions) entryMeta() map[string]string { return e.Meta }

func validEntryMeta(at string, meta map[string]string) error {
	if len(meta) > maxEntryMeta {
		return Invalidf("%s exceeds maximum element count %d", at, maxEntryMeta)
	}
	for k, v := range meta {
		switch {
		case len(k) > maxEntryMetaKey:
			return Invalidf("%s key %q exceeds maximum length %d", at, k, maxEntryMetaKey)
		case len(v) > maxEntryMetaValue:
			return Invalidf("%s value for key %q exceeds maximum length %d", at, k, maxEntryMetaValue)
		}
	}
	return nil
}

func (e *ServiceIntentions) validWritten() error {
	for i, s := range e.Sources {
		if s == nil {
			continue
		}
		if len(s.Description) > maxEntryMetaValue {
			return Invalidf("Sources[%d].Description exceeds maximum length %d", i, maxEntryMetaValue)
		}
		if err := validEntryMeta("LegacyMeta", s.LegacyMeta); err != nil {
			return Invalidf("Sources[%d].%w", i, err)
		}
	}
	return nil
}
