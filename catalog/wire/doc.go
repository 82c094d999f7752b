// Package wire is where agent and server meet: the messages between them, the
// one codec for RPC, Raft log and backup, the framing and versioning of log
// entries, and the mapping of errors to gRPC codes and back.
//
// Messages carry the catalog's own structs. Fields are only added, never renamed
// or reused.
package wire
