// Package remote is an agent's connection to the servers: calls with deadlines
// and retries, and materialised views, one for each query that anyone on this
// host waits for, however many wait.
//
// A view outlives the servers. While none answers, what was last known goes on
// being served, marked as such, because traffic must not stop with the control
// plane. The package never decides anything about what it carries, and never
// talks to the store: everything goes over the wire, in process too, so that a
// server beside the agent and a server across the network are the same thing.
package remote
