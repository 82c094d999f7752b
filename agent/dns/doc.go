// Package dns answers DNS queries about the catalog, over UDP and TCP: services
// and their mesh instances, nodes, addresses in names, prepared queries, reverse
// names, and the zone itself. Names, record layouts and settings are those that
// Consul's clients rely on.
//
// It answers from views, however old: names must resolve while the servers elect
// a leader, and when none is left. It keeps nothing itself but two small indexes
// with a short life.
//
// Everything that arrives is from a stranger. Answers over UDP are bounded, so
// that the server is of no use to reflect traffic; queries for other zones are
// refused unless recursors are configured, and then forwarded only for clients
// in trusted networks, a bounded number at a time for each.
//
// The package never talks to servers or the store: views come through an
// interface.
package dns
