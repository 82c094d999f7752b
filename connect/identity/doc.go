// Package identity owns who a peer is: SPIFFE IDs in Consul's formats, keys and
// certificate requests, certificate chains, trust bundles, and the tls.Config of
// both ends with the verification that they run on each handshake.
//
// It never decides who may talk to whom (that is the judge, catalog.Decide), never
// issues certificates (that is connect/ca), never reads a file or a socket, and
// imports nothing of ours: whoever needs an identity can have this package alone.
//
// Three rules hold throughout. An ID has exactly one spelling, and every other
// spelling is refused rather than repaired. A peer is verified in
// tls.Config.VerifyConnection, which runs on every handshake, and not in
// VerifyPeerCertificate, which resumption skips; sessions are not resumed either
// way. Whatever is missing (no bundle, no certificate, no expected name) refuses.
package identity
