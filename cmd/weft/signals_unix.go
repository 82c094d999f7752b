//go:build unix

package main

import (
	"os"
	"syscall"
)

// handoverSignals start a new process that takes over.
var handoverSignals = []os.Signal{syscall.SIGUSR2}
