// Package server owns one control-plane server: it composes the store, Raft, the
// RPC handlers and the certificate authority, and runs the loops that belong to
// the leader (members become node rows, the first root is made, what left is
// removed).
//
// It never imports the agent: they meet in catalog/wire. An agent in the same
// process uses Dial, which speaks the same RPC as any other connection, without
// a socket.
package server
