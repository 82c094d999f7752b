// Package telemetry takes what the agent counts to where it is wanted: it names
// metrics as Consul does, leaves out those that nobody asked for, and sends the rest
// to statsd and dogstatsd.
package telemetry
