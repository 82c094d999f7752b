// Command weft is the whole of the mesh in one binary: the agent of a host, the
// server of the control plane, and the client that people type.
//
// The package owns flags, configuration files (in the sub-package config), the
// composition of gossip, server and agent, signals, exit codes and what is
// printed. It holds no rules of its own: what may be said of a service or an
// intention is decided by the packages below, and every command but agent,
// validate, version and docs asks a running agent over the same HTTP API as
// anyone else.
package main
