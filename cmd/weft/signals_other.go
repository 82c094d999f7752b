//go:build !unix

package main

import "os"

// handoverSignals are none where sockets cannot be handed over.
var handoverSignals []os.Signal
