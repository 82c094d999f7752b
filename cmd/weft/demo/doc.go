// Package demo is `weft demo`: it starts two agents, each with a small service, as a user
// would, walks through refused, allowed and cut off, and explains each step in a
// line. It owns no truth: every fact it prints is read from the running system, by
// the HTTP API, from a certificate or from bytes that a tap saw between the proxies.
package demo
