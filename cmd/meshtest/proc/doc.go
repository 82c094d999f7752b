// Package proc runs the built weft binary, and the programs behind it, as real
// processes on free loopback ports, for tests that must see what a user sees.
// Everything it starts ends with the test. Only tests import it.
package proc
