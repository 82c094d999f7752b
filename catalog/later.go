//go:build !next

package catalog

// What the version after this one adds is built with -tags next, so that tests can
// upgrade to it and go back. Here there is none of it.

type laterSyncNode struct{} //nolint:unused // embedded in SyncNode, for the build that has a field more

func laterCommand(CommandType) Command { return nil }

// LaterNote is the command that only the next version knows; nil in this one.
func LaterNote() Command { return nil }
