// Package catalog owns the replicated nouns of weft (nodes, services, checks,
// intentions, config entries, certificate roots) and their rules: validation,
// precedence, the judge Decide, the commands that change them and the queries
// that watch them.
//
// One noun is one struct here, used on the wire, in the Raft log and in the
// store. It does no I/O and knows nothing of Raft, gRPC, HTTP or sockets, so
// every rule can be tested as a function. Stored objects are immutable: copy
// before you change one.
package catalog
