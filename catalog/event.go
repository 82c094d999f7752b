package catalog

import (
	"fmt"
	"regexp"
)

// MaxEvent bounds what a user event carries: its name, filters and payload. It
// travels in one packet of gossip.
const MaxEvent = 512

// EventVersion is the version of the form of events.
const EventVersion = 1

// UserEvent is a message to every agent, or to those that its filters, regular
// expressions, match. It is not stored: who is not there misses it.
type UserEvent struct {
	ID            string // a UUID
	Name          string
	Payload       []byte
	NodeFilter    string
	ServiceFilter string
	TagFilter     string
	Version       int
	// LTime is the Lamport time at which it was fired.
	LTime uint64
}

// Validate refuses an event that nobody could take.
func (e *UserEvent) Validate() error {
	if err := validName("event", e.Name); err != nil {
		return err
	}
	if e.TagFilter != "" && e.ServiceFilter == "" {
		return Invalidf("Cannot provide tag filter without service filter")
	}
	for _, f := range []struct{ noun, expr string }{
		{"node", e.NodeFilter}, {"service", e.ServiceFilter}, {"tag", e.TagFilter},
	} {
		if _, err := regexp.Compile(f.expr); err != nil {
			return Invalidf("Invalid %s filter: %w", f.noun, err)
		}
	}
	if n := len(e.Name) + len(e.Payload) + len(e.NodeFilter) + len(e.ServiceFilter) + len(e.TagFilter); n > MaxEvent {
		return fmt.Errorf("event %s: name, filters and payload have %d bytes: %w: at most %d are allowed", e.Name, n, ErrTooLarge, MaxEvent)
	}
	return nil
}
