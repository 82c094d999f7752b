// Package httpapi owns the HTTP API of an agent: routes, strict decoding, blocking
// queries, the mapping of errors to statuses, and the views that give catalog
// nouns the JSON shapes of Consul's API, under which its clients work unchanged.
//
// It has no rules of its own. What may be written is validated in catalog, the
// verdict on a connection is catalog's Decide, and everything it shows comes from
// the interfaces in interfaces.go, so that all of it runs against small fakes.
// Views are pure functions, one file for each noun.
//
// It trusts nothing that arrives: every body is bounded before it is read, the
// Host header and the origin of writes are checked (a web page must not drive the
// agent of the machine it is viewed on), a panic in a handler ends one request,
// and tokens never reach a log. It never speaks to the store, to Raft or to gossip.
package httpapi
