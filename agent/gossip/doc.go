// Package gossip owns membership: who is in the cluster, alive or failed, and the
// tags by which servers and agents know each other's role.
//
// It wraps hashicorp/memberlist. Nothing that matters for security may rest on it:
// gossip proves possession of a shared key at best, and is not safe from replay.
package gossip
