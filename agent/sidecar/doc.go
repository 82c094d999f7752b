// Package sidecar runs the proxies of a host. It watches what is registered
// here, joins it with the views that each proxy needs (trusted roots, intentions,
// instances of upstreams) into a connect.Snapshot, and starts, feeds and drains
// one connect.Proxy for each sidecar.
//
// It is level-triggered: a snapshot is always made anew from everything known
// now, so an event that is missed is not lost. The last snapshot of each proxy
// is on disk, so that an agent that starts with every server gone enforces the
// last policy it knew. It never fails open: a proxy whose policy was never known
// does not listen.
//
// The package also keeps the leaf certificates that applications ask the agent
// for; those have keys of their own, never a proxy's.
package sidecar
