// Package agent is one host: it composes what the host says of itself (local),
// the way to the servers (remote), the proxies (sidecar), membership (gossip),
// names (dns) and the HTTP API (httpapi), and owns the order in which they begin
// and end.
//
// New validates everything, then binds everything; Run serves. The end is as
// ordered as the beginning: writes stop, the host leaves gossip, proxies stop
// accepting and drain, and only then is the way to the servers closed.
//
// It has no rules and no state of its own: what it would decide belongs to a
// component. It never imports the server; the two meet in catalog/wire.
package agent
