// Package guard writes the rules of a host that redirect the connections of its
// applications to a proxy of the mesh, which finds out where they were going.
//
// The rules are one nftables table of their own, replaced in one transaction: whatever
// happens there is all of the old or all of the new, and nothing of others is touched.
// They are not the agent's, which may run without the right to write them, and they
// outlive it: while nobody listens at the proxy's port, connections are refused, and none
// goes past the mesh.
package guard
