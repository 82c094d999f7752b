package ca

import (
	"errors"
	"testing"
	"time"
)

func TestReseal(t *testing.T) {
	seal := func(b byte) Sealer {
		s, err := NewSealer([32]byte{b})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	cfg, err := ParseConfig(DefaultConfig())
	if err != nil {
		t.Fatal(err)
	}
	cfg.ClusterID = "11111111-1111-4111-8111-111111111111"
	old, next, other := seal(1), seal(2), seal(3)
	roots, _, err := Reconcile(nil, cfg, old, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if same, changed, err := Reseal(roots, other, next); err != nil || changed || same[0] != roots[0] {
		t.Error("a key that neither seal opens was touched:", changed, err)
	}
	again, changed, err := Reseal(roots, old, next)
	if err != nil || !changed {
		t.Fatal(changed, err)
	}
	if _, err := Open(again[0], cfg, next); err != nil {
		t.Error(err)
	}
	if _, err := Open(again[0], cfg, old); !errors.Is(err, ErrUnseal) {
		t.Error("it opens under the old seal still:", err)
	}
	if _, err := Open(roots[0], cfg, old); err != nil {
		t.Error("the old rows were changed:", err)
	}
	if _, changed, err := Reseal(again, old, next); err != nil || changed {
		t.Error("sealed twice:", changed, err)
	}
}
