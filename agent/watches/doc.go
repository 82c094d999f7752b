// Package watches runs what the configuration's `watches` ask for: a command, or an
// HTTP request, each time that something in the catalog changes.
//
// It owns the validation of a watch, its loop and its handlers. What there is to
// watch it asks of the agent's own HTTP API, by Consul's client and without a
// network, so that a watch sees what any client sees. It never knows the store, the
// servers or the configuration's files.
package watches
