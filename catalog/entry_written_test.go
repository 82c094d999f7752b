package catalog

import (
	"errors"
	"strings"
	"testing"
)

// TestWritten: what is too long, or a wildcard where none may be, is refused to those
// who write, and stays what it is where a log holds it.
func TestWritten(t *testing.T) {
	long := strings.Repeat("x", 513)
	many := map[string]string{}
	for i := range 65 {
		many[strings.Repeat("k", i+1)] = ""
	}
	source := func(s SourceIntention) *ServiceIntentions {
		s.Name, s.Action = "a", ActionAllow
		return &ServiceIntentions{Name: "b", Sources: []*SourceIntention{&s}}
	}
	for _, c := range []struct {
		entry ConfigEntry
		want  string
	}{
		{&ServiceDefaults{EntryHead: EntryHead{Name: "a", Meta: map[string]string{"k": long}}}, `Meta value for key "k" exceeds maximum length 512`},
		{&ServiceDefaults{EntryHead: EntryHead{Name: "a", Meta: map[string]string{long: ""}}}, "exceeds maximum length 128"},
		{&Mesh{Meta: many}, "Meta exceeds maximum element count 64"},
		{source(SourceIntention{Description: long}), "Sources[0].Description exceeds maximum length 512"},
		{source(SourceIntention{LegacyMeta: many}), "Sources[0].LegacyMeta exceeds maximum element count 64"},
		{&HTTPRoute{EntryHead: EntryHead{Name: "r"}, Hostnames: []string{"*.example.com"}}, `host "*.example.com" must not be a wildcard`},
		{source(SourceIntention{Description: long[1:]}), ""},
	} {
		c.entry.Normalize()
		if err := c.entry.Validate(); err != nil {
			t.Errorf("the log is held to it: %v", err)
		}
		err := (&SetConfigEntry{Entry: Entry{c.entry}}).Validate()
		if c.want == "" && err == nil {
			continue
		}
		if !errors.Is(err, ErrInvalid) || c.want == "" || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v, want %q", err, c.want)
		}
	}
	if err := (&SetIntention{Destination: "b", Source: SourceIntention{Name: "a", Action: ActionAllow, Description: long}}).Validate(); err == nil {
		t.Error("an intention with a long description is accepted")
	}
}
