// Package ca is the built-in certificate authority: it makes roots, issues leaf
// certificates from requests, and rotates roots by cross-signing.
//
// It is pure: configuration, roots and requests come in, roots and certificates go
// out. It never stores anything, never talks to anyone, and never decides who may
// ask for a certificate; the servers authorise a request before they have it
// signed. Keys at rest are sealed (Sealer), and leave this package in no other form.
//
// A leaf is built from our own fields only. The request contributes its public key
// and the one name that it asks for; whatever else it carries is not copied, so
// that nothing can be smuggled in. Every root, generated or brought along, is
// tried before it is used: it issues a certificate, and the peers' own
// verification has to accept it.
package ca
