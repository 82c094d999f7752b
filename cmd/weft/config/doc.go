// Package config owns the configuration of an agent as files, fragments and
// flags say it: the table of keys, reading HCL and JSON with the place of every
// value, merging the sources in order, and refusing what cannot be meant.
//
// It never starts, binds or dials anything, and holds no rules of the components
// it configures: each of those owns its Config and validates it. It knows every
// key of Consul, so that existing files load unchanged; what a key does here, or
// that it does nothing yet, is written in the table and nowhere else, and the
// reference page is made from it.
package config
