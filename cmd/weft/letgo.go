package main

import (
	"runtime/debug"
	"time"
)

// startedAfter is when what starting needed is no longer needed.
const startedAfter = 300 * time.Millisecond

// letGoAfterStart gives the memory that only starting needed back to the system, once: a
// process that rests would keep it until its heap has grown to 4 MB. stop calls it off.
func letGoAfterStart() (stop func()) {
	t := time.AfterFunc(startedAfter, debug.FreeOSMemory)
	return func() { t.Stop() }
}
