// Package events owns user events as one host sees them: it sends them into gossip,
// takes those of others, keeps the last ones that this host was meant to hear, and
// wakes who waits for them.
//
// Events are heard at most once and are not stored: a host that is away misses them,
// and so does one that joins later. Nothing that matters may rest on an event alone.
//
// It never speaks to the servers, and knows gossip only as a Courier, so that all of
// it runs in a test as plain calls.
package events
