// Package connect is the data plane of weft, as a library: a Service has an
// identity and dials and accepts mutual-TLS connections in its name; a Proxy runs
// one for an application that knows nothing of it.
//
// It decides from memory. Everything it knows of the world is a Snapshot; no
// connection waits for an agent or a server, and traffic flows while both are gone.
//
// It owns the key of its identity (made here, never handed out), the table of
// live connections and the judgement of each against the policy of now. It never
// fetches policy, never resolves names of services, and never speaks of agents or
// servers: a catalog.Watch brings it Snapshots, a Signer brings it certificates.
//
// The order that makes policy live without a gap: Accept adds the connection to
// the table and then loads the snapshot; Update stores the snapshot and then walks
// the table. Whichever comes first, one of the two judges by the newer policy.
//
// A Proxy carries connections as streams in tunnels (package tunnel), on event loops
// that all proxies of a process share: accept, judge, carry and end run on them and
// never wait. What may wait has a goroutine: handshakes, dials by name, the log. A peer
// without tunnels gets one TLS connection for each, on the same loops. Service.Dial and
// Service.Accept, for applications that are in the mesh themselves, are one to one.
//
// A stream that ended early never looks complete: TLS without close_notify, a
// reset, or a close by policy reaches the application as a reset.
package connect
