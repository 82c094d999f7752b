package proc

import "os"

// Full tells whether a promise is to be tried at its full count (`make promise`),
// which may take hours, and not in the short form of every day.
func Full() bool { return os.Getenv("WEFT_PROMISE") == "full" }

// Count is the full count of a promise under `make promise`, else the short one.
func Count[T any](short, full T) T {
	if Full() {
		return full
	}
	return short
}
