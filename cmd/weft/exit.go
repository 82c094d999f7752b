package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"syscall"

	"github.com/weftmesh/weft/server"
)

// Exit codes. Those above 64 follow sysexits.h, so that a supervisor can tell
// what a restart would mend: only exitFailure, exitPortInUse, exitHung and
// exitStorage, and what is said of exitUsage.
const (
	exitOK      = 0
	exitFailure = 1 // it did not work
	// exitUsage: flags or arguments are wrong; intention check: the question could not be
	// asked. A process that panics, or that is aborted because it hangs, ends with the
	// same code, which is the choice of Go's runtime.
	exitUsage = 2
	// exitPortInUse: an address that the agent must listen on is taken.
	exitPortInUse = 69
	// exitDataDir: the data directory cannot be used.
	exitDataDir = 73
	// exitHung: the disk did not finish a write for half a minute. The process must
	// not go on; a restart helps once the disk answers.
	exitHung = 74
	// exitStorage: writing to disk failed while running; what is on disk is as of
	// the last success, and the process must not go on.
	exitStorage = 75
	// exitOlder: the other servers run a newer version and wrote what this one cannot
	// read; another version has to be installed.
	exitOlder = 76
	// exitConfig: the agent's configuration is wrong; restarting will not help.
	exitConfig = 78
	// exitForced: a second signal ended the process at once.
	exitForced = 130
)

// exitError carries an exit code. With quiet set nothing more is printed.
type exitError struct {
	code  int
	quiet bool
	err   error
}

func (e *exitError) Error() string {
	if e.err == nil {
		return fmt.Sprintf("exit code %d", e.code)
	}
	return e.err.Error()
}

func (e *exitError) Unwrap() error { return e.err }

func withCode(code int, err error) error {
	if err == nil {
		return nil
	}
	return &exitError{code: code, err: err}
}

// usageError is a mistake in flags or arguments, with the command that made it.
type usageError struct {
	command string
	err     error
}

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

// exitCode says err on w in words, and gives the code it ends the process with.
func exitCode(w io.Writer, err error) int {
	if err == nil {
		return exitOK
	}
	var usage *usageError
	if errors.As(err, &usage) {
		fmt.Fprintf(w, "Error: %v\nSee: %s -help\n", usage.err, usage.command)
		return exitUsage
	}
	var exit *exitError
	if errors.As(err, &exit) {
		if !exit.quiet {
			fmt.Fprintf(w, "Error: %v\n", exit.err)
		}
		return exit.code
	}
	if errors.Is(err, context.Canceled) {
		return exitForced
	}
	fmt.Fprintf(w, "Error: %v\n", err)
	return codeOf(err)
}

// serverCode is the code for the error that a server ended with.
func serverCode(err error) int {
	switch {
	case errors.Is(err, server.ErrHung):
		return exitHung
	case errors.Is(err, server.ErrStorage):
		return exitStorage
	case errors.Is(err, server.ErrNewer):
		return exitOlder
	}
	return exitFailure
}

// codeOf sorts errors that carry no code.
func codeOf(err error) int {
	if errors.Is(err, syscall.EADDRINUSE) {
		return exitPortInUse
	}
	return exitFailure
}
