package ca

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"slices"
	"testing"
	"time"

	"github.com/weftmesh/weft/catalog"
)

const day = 24 * time.Hour

// look is what a leader does whose clock says at.
func look(t *testing.T, roots []*catalog.Root, at time.Time) []*catalog.Root {
	t.Helper()
	out, _, err := Reconcile(roots, config(), seal, at)
	if err != nil {
		t.Fatal(err)
	}
	if err := (&catalog.SetRoots{Roots: out}).Validate(); err != nil {
		t.Fatal(err)
	}
	return out
}

// A root that ended while all servers were off, or that was made by a clock that was
// ahead, vouches for nobody: it is replaced although it cannot cross-sign.
func TestRootOfAnotherTimeIsReplaced(t *testing.T) {
	one := reconcile(t, nil, config(), now)
	for name, at := range map[string]time.Time{
		"ended": one[0].NotAfter, "ended long ago": one[0].NotAfter.Add(90 * day),
		"not begun": one[0].NotBefore.Add(-2 * day),
	} {
		t.Run(name, func(t *testing.T) {
			if r := Untimely(one, config(), at); r == nil || Untimely(one, config(), now) != nil {
				t.Errorf("untimely: %v", r)
			}
			two := reconcile(t, one, config(), at)
			active := Active(two)
			if active.ID == one[0].ID || Untimely(two, config(), at) != nil {
				t.Fatalf("%v", ids(two))
			}
			opened := must(Open(active, config(), seal))
			if err := opened.try([]string{active.RootCert}, at); err != nil {
				t.Errorf("a certificate of the new root: %v", err)
			}
			if again := look(t, two, at.Add(time.Second)); Active(again).ID != active.ID || len(again) != 2 {
				t.Errorf("it is replaced again: %v", ids(again))
			}
			// One that ended goes once nobody can have a leaf of it.
			again := look(t, two, at.Add(6*day+time.Second))
			if ended := name != "not begun"; (len(again) == 1) != ended {
				t.Errorf("%v after two lives of leaves", ids(again))
			}
			end := one[0].NotAfter // and of the one that a clock made that was behind
			if again = look(t, look(t, again, end.Add(day)), end.Add(8*day)); slices.ContainsFunc(again, func(r *catalog.Root) bool { return r.ID == one[0].ID }) {
				t.Errorf("%v after its end", ids(again))
			}
		})
	}
	cert, key := ownRoot(must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader)))
	own := config("root_cert", cert, "private_key", key)
	one = reconcile(t, nil, own, now)
	if _, changed, err := Reconcile(one, own, seal, one[0].NotBefore.Add(-time.Hour)); changed || err != nil {
		t.Errorf("the operator's own: %t, %v", changed, err)
	}
}

// What a leader does by a wrong clock cuts nobody off when it is right again: the root
// that all leaves are of stays trusted.
func TestRootOutlivesAWrongClock(t *testing.T) {
	one := reconcile(t, nil, config(), now)
	leaf := leafOf(t, must(Open(one[0], config(), seal)))
	for name, off := range map[string]time.Duration{"behind": -34 * day, "far behind": -56 * 365 * day, "ahead": 11 * 365 * day} {
		t.Run(name, func(t *testing.T) {
			roots := look(t, one, now.Add(off))
			if Active(roots).ID == one[0].ID {
				t.Fatal("it was not replaced")
			}
			for range 3 { // the leader goes on by that clock, then by the right one
				roots = look(t, roots, now.Add(off+time.Hour))
				if err := verify(leaf, now, roots...); err != nil {
					t.Fatal("by the wrong clock:", err)
				}
			}
			for range 3 {
				roots = look(t, roots, now.Add(time.Hour))
				if err := verify(leaf, now, roots...); err != nil {
					t.Fatal("by the right clock:", err)
				}
			}
			active := Active(roots)
			if !good(active, now) {
				t.Fatal("the active root is not good")
			}
			if err := verify(leafOf(t, must(Open(active, config(), seal))), now, one[0]); err != nil {
				t.Error("a peer that knows the first root only:", err)
			}
			// Another wrong clock, of the other kind.
			roots = look(t, look(t, roots, now.Add(-off)), now.Add(-off+time.Hour))
			if err := verify(leaf, now, roots...); err != nil {
				t.Error("by another wrong clock:", err)
			}
		})
	}
}

// A root that was rotated out in time goes neither by a clock by which the active one
// is not good, nor by the time that such a clock gave.
func TestOldRootOutlivesAWrongClock(t *testing.T) {
	two := reconcile(t, reconcile(t, nil, config("private_key_bits", 384), now), config("private_key_bits", 256), now)
	for _, off := range []time.Duration{-34 * day, 11 * 365 * day} {
		roots := two
		for _, at := range []time.Duration{off, off + time.Hour, time.Hour, 2 * time.Hour} {
			roots = look(t, roots, now.Add(at))
			if !slices.ContainsFunc(roots, func(r *catalog.Root) bool { return r.ID == two[0].ID }) {
				t.Errorf("dropped at %s", at)
			}
		}
	}
}

// Leaders whose clocks differ use the roots there are, and wrong clocks without number
// do not make roots without number.
func TestClocksThatDifferMakeNoRoots(t *testing.T) {
	for _, off := range []time.Duration{-34 * day, -56 * 365 * day, 11 * 365 * day} {
		one := reconcile(t, nil, config(), now)
		leaf := leafOf(t, must(Open(one[0], config(), seal)))
		roots := one
		for i := range 20 {
			passed := time.Duration(i) * time.Hour
			roots = look(t, look(t, roots, now.Add(off+passed)), now.Add(passed))
			if err := verify(leaf, now, roots...); err != nil {
				t.Fatal(err)
			}
		}
		if len(roots) != 2 {
			t.Errorf("%s: %v", off, ids(roots))
		}
	}
	one := reconcile(t, nil, config(), now)
	roots := one
	for i := range 20 {
		roots = look(t, roots, now.Add(-time.Duration(i)*10*day))
	}
	if len(roots) != maxUntimely+1 || !slices.ContainsFunc(roots, func(r *catalog.Root) bool { return r.ID == one[0].ID }) {
		t.Errorf("%d roots", len(roots))
	}
}

// The key of an old root is not kept where the operator wants another one.
func TestKeyOfAReplacedRoot(t *testing.T) {
	one := reconcile(t, nil, config(), now)
	at := now.Add(-34 * day)
	if two := reconcile(t, one, config(), at); len(two[0].SealedKey) == 0 {
		t.Error("the clock alone took it away")
	}
	two := reconcile(t, one, config("private_key_bits", 384), at)
	if len(two[0].SealedKey) != 0 || Active(two).PrivateKeyBits != 384 {
		t.Errorf("%+v", two[0])
	}
}
