// Package rpc owns what happens to a request between the connection and the
// store: who asks, may they, is it valid, who must answer it, and the answer.
// Every method asks an acl.Authorizer.
//
// It knows nothing of gRPC, Raft or gossip: it implements wire.Servers and takes
// the log as an interface, so that all of it runs in a test as plain calls.
package rpc
