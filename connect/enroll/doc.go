// Package enroll owns who is a member of a cluster of servers and agents: the
// cluster secret and all that is derived from it, join tokens, the certificates of
// nodes, and both halves of weft-join/1, by which an agent that holds a token gets
// its certificate and later renews it.
//
// The secret is the right to be a server: each server makes its own certificate
// from it, with nobody to ask. A token is the right to become an agent, for a while;
// it pins the cluster's root, so that its bearer cannot be lured into another
// cluster, and makes nobody a server. A certificate, even an expired one, is the right
// to the next one, until its node is revoked.
//
// It never decides whether a node may join beyond what the cryptography says: that is
// the Registrar's, which knows the replicated state. It never vouches for services:
// the cluster's root and those of the mesh are different, and neither is accepted in
// place of the other. It imports connect/identity only.
package enroll
