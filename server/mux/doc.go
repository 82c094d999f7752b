// Package mux owns the servers' one TLS port: it accepts, bounds what strangers may
// cost, shakes hands under a deadline, and hands each connection to the listener of
// the application protocol that was negotiated.
//
// It never decides who a peer is (the tls.Config does) nor what it may do (the
// protocols do). What it bounds, it bounds before any asymmetric cryptography:
// handshakes in progress, connections and their rate, over all and by source.
//
// It imports nothing of ours.
package mux
