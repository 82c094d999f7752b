// Package demo is `weft demo`: it starts an agent and two small services as a user
// would, walks through refused, allowed and cut off, and explains each step in a
// line. It owns no truth: every fact it prints is read from the running system, by
// the HTTP API, from a certificate or from bytes that a tap saw between the proxies.
package demo
