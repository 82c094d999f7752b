// Package meshtest starts whole meshes in one process, on loopback and free
// ports, for tests. It composes the same parts in the same order as cmd/weft, and
// is imported by tests only.
//
// A test that needs time to pass waits for what it expects (Mesh.Eventually),
// never for a while.
package meshtest
