// Package local owns what this host says of itself: its services, their sidecars
// and checks, kept on disk so that they survive the agent, and repeated to the
// servers until the catalog agrees (anti-entropy).
//
// The agent is the truth about its host and the catalog follows. A registration
// is answered once it is on disk; the catalog learns of it milliseconds later, in
// one idempotent statement of the whole host, so that nothing can be lost between
// the two. It never serves HTTP, never talks to a server itself (a Syncer does),
// and never runs a proxy: whoever does reports here whether it listens.
package local
