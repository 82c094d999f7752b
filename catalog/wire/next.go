//go:build next

package wire

// laterEvent is what this version adds to an event of a stream.
type laterEvent struct{ Note string }

// LaterEvent is a message that the version before does not know: it follows ev, and
// says nothing that one who does not know it must know.
func LaterEvent(ev *WatchEvent) *WatchEvent {
	return &WatchEvent{Current: ev.Current, Epoch: ev.Epoch, Meta: ev.Meta, laterEvent: laterEvent{Note: "a message more"}}
}
