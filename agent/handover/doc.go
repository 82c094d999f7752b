// Package handover is how one agent process follows another on a host without a
// connection refused or cut.
//
// Sockets keeps what listens across processes: it takes over what systemd or the
// process before left open, holds everything that is bound, and hands it on: to the
// successor directly, and to systemd's file descriptor store for the case that no
// time is left to hand anything over.
//
// Successor and Predecessor are the two ends of the talk between the processes.
// Nothing is given up before the successor has read its configuration, and when it
// then fails to serve, the program that gave up is started again.
//
// Established TLS connections cannot be handed over. The process before stays until
// they have ended, as a drainer; the feed (Serve, Feed) gives it the policy of now
// over a Unix socket in the data directory, so that a deny still cuts what it carries.
// There it tells in return what it carries, and what it has counted.
package handover
