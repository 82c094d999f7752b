// Package central gives the proxies of a host their central configuration: what
// proxy-defaults and service-defaults say of them and of their upstreams. It follows
// those entries and hands on the host with it merged in, to the sidecars, the HTTP
// API and the statement to the servers, so that all three see the same.
//
// The rules of merging are not here but in catalog.MergeCentral. What was known
// last is on disk: a host that starts with every server gone configures its
// proxies as before. It never changes a registration.
package central
