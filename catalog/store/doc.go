// Package store keeps the catalog in memory: the tables, the one function that
// changes them (Apply), the hubs that tell readers of change, and backups.
//
// Apply is deterministic: the same commands at the same indexes leave the same
// state, and answer the same, on every server. It knows no clock, no randomness,
// no network and no disk; what a command needs of those is in its fields.
// Stored objects are immutable and shared with every reader.
//
// How a reader learns of change. Every query rests on a few index rows (for
// "service web" that is the row of web's instances), and each write touches the
// rows of the queries whose answer it changes. A view's index is the largest of
// its rows, so it comes from replicated state alone: equal on every server, kept
// by backups, untouched by writes to other names. A watcher waits for the rows
// and not for the data, so the widest query waits on a handful of channels.
// Rows of names that are gone are dropped; a fixed number of "extinct" rows
// remembers when, so that neither the index of a deleted name falls nor the
// table grows for ever. The price: who waits for a name that does not exist is
// woken, with the same empty answer, by about one in 256 deletions of others.
//
// How rows lie in memory. A table is one persistent B-tree for each of its indexes;
// trees hold pointers to rows and compare rows themselves, so that an index costs some
// 20 bytes a row. Who waits hangs a bell on the keys that his answer rests on; what
// nobody waits for has neither channel nor entry. What many rows say alike, such as the
// name of a service, is kept once (share.go).
//
// The package imports neither raft nor grpc nor net, and asks nobody for leave:
// authorisation is above it.
package store
