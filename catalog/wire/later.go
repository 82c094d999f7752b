//go:build !next

package wire

// laterEvent is what the version after this one adds to an event of a stream: nothing.
type laterEvent struct{}

// LaterEvent is a message that only the next version sends; nil in this one.
func LaterEvent(*WatchEvent) *WatchEvent { return nil }
