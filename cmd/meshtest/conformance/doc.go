// Package conformance replays answers recorded from Consul (testdata/cases)
// against the built binary, a fresh agent for each case and several cases at a
// time, and says where ours differ. The rules of the comparison and the format of
// the cases are those of the recorder: a missing key, another value, another type
// and another status are hard differences; an extra key or another wording of an
// error is a soft one.
//
// Two files say what is not asked of us. pending.txt names areas, and single
// cases, whose parts are not built yet: they are not run. chosen.txt names the
// steps in which we differ on purpose, each with the reason: they are run all the
// same, and the test fails as soon as one of them passes, or when there are too many.
//
// It never records and never edits a case: what Consul answers is not for us to
// say. Only tests import it.
package conformance
