package ca

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/weftmesh/weft/catalog"
)

func reconcile(t *testing.T, roots []*catalog.Root, cfg Config, at time.Time) []*catalog.Root {
	t.Helper()
	out, changed, err := Reconcile(roots, cfg, seal, at)
	if err != nil {
		t.Fatal(err)
	}
	if !changed {
		t.Fatal("nothing was changed")
	}
	if err := (&catalog.SetRoots{Roots: out}).Validate(); err != nil {
		t.Fatal(err)
	}
	return out
}

func ids(roots []*catalog.Root) (out []string) {
	for _, r := range roots {
		out = append(out, r.ID[:5])
	}
	return out
}

func TestRotation(t *testing.T) {
	ec, rsa := config("private_key_type", "ec", "private_key_bits", 256), config("private_key_type", "rsa")
	for name, way := range map[string][2]Config{"EC to RSA": {ec, rsa}, "RSA to EC": {rsa, ec}, "EC to another EC": {ec, config("private_key_bits", 384)}} {
		t.Run(name, func(t *testing.T) {
			first := reconcile(t, nil, way[0], now)
			oldLeaf := leafOf(t, must(Open(first[0], way[0], seal)))
			second := reconcile(t, first, way[1], now)
			if len(second) != 2 {
				t.Fatalf("%d roots", len(second))
			}
			old, active := second[0], second[1]
			if old.Active || !old.RotatedOutAt.Equal(now) || old.ID != first[0].ID || old.SealedKey != nil {
				t.Errorf("old: %+v", old)
			}
			if !active.Active || len(active.IntermediateCerts) != 1 || active.PrivateKeyType != way[1].KeyType || active.PrivateKeyBits != way[1].KeyBits {
				t.Errorf("active: %+v", active)
			}
			if !first[0].Active || first[0].SealedKey == nil {
				t.Error("the roots given were changed")
			}
			leaf := leafOf(t, must(Open(active, way[1], seal)))
			for who, roots := range map[string][]*catalog.Root{"old": {old}, "new": {active}, "both": {old, active}} {
				if err := verify(leaf, now, roots...); err != nil {
					t.Errorf("new leaf, peer trusts %s: %v", who, err)
				}
				if err := verify(oldLeaf, now, roots...); (err == nil) != (who != "new") {
					t.Errorf("old leaf, peer trusts %s: %v", who, err)
				}
			}
			if again, changed, err := Reconcile(second, way[1], seal, now); changed || err != nil || &again[0] != &second[0] {
				t.Errorf("not stable: %t, %v", changed, err)
			}
			// The old root stays for as long as a leaf of it can, twice over.
			at := now.Add(2 * 72 * time.Hour)
			if _, changed, _ := Reconcile(second, way[1], seal, at); changed {
				t.Error("dropped too early")
			}
			third := reconcile(t, second, way[1], at.Add(time.Second))
			if len(third) != 1 || third[0].ID != active.ID || len(third[0].IntermediateCerts) != 0 {
				t.Errorf("%v", ids(third))
			}
			if len(active.IntermediateCerts) != 1 {
				t.Error("the roots given were changed")
			}
		})
	}
}

// Rotated again before the first rotation is over, a peer who knows only the very
// first root still accepts the newest leaf.
func TestRotationTwice(t *testing.T) {
	a, b, c := config("private_key_bits", 256), config("private_key_bits", 384), config("private_key_bits", 521)
	one := reconcile(t, nil, a, now)
	two := reconcile(t, one, b, now)
	three := reconcile(t, two, c, now.Add(time.Minute))
	if len(three) != 3 || len(Active(three).IntermediateCerts) != 2 {
		t.Fatalf("%v, %d intermediates", ids(three), len(Active(three).IntermediateCerts))
	}
	leaf := leafOf(t, must(Open(Active(three), c, seal)))
	for i, r := range three {
		if err := verify(leaf, now, r); err != nil {
			t.Errorf("peer trusts root %d only: %v", i+1, err)
		}
	}
	// And the first one goes first, with the intermediate that led to it.
	four := reconcile(t, three, c, now.Add(144*time.Hour+time.Second))
	if len(four) != 2 || len(Active(four).IntermediateCerts) != 1 {
		t.Errorf("%v, %d intermediates", ids(four), len(Active(four).IntermediateCerts))
	}
}

func TestRotateBack(t *testing.T) {
	cert, key := ownRoot(must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader)))
	own, other := config("root_cert", cert, "private_key", key), config("private_key_bits", 384)
	one := reconcile(t, nil, own, now)
	one[0].CreateIndex = 7
	two := reconcile(t, one, other, now)
	three := reconcile(t, two, own, now)
	active := Active(three)
	if len(three) != 2 || active.ID != one[0].ID || active.CreateIndex != 7 || !active.RotatedOutAt.IsZero() || len(active.SealedKey) == 0 {
		t.Fatalf("%v: %+v", ids(three), active)
	}
	leaf := leafOf(t, must(Open(active, own, seal)))
	for _, r := range three {
		if err := verify(leaf, now, r); err != nil {
			t.Error(err)
		}
	}
}

func TestRotationRefused(t *testing.T) {
	// A root that may have nothing but leaves below it cannot cross-sign.
	cert, key := ownRoot(must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader)), func(c *x509.Certificate) { c.MaxPathLenZero = true })
	one := reconcile(t, nil, config("root_cert", cert, "private_key", key), now)
	next := config("private_key_bits", 384)
	out, changed, err := Reconcile(one, next, seal, now)
	if err == nil || changed || !slices.Equal(out, one) || !strings.Contains(err.Error(), "ForceWithoutCrossSigning") {
		t.Fatalf("%v, %t, %v", ids(out), changed, err)
	}
	next.Force = true
	two := reconcile(t, one, next, now)
	if len(two) != 2 || Active(two).IntermediateCerts != nil {
		t.Errorf("%+v", Active(two))
	}
	// The same when the seal is lost: force is the way out.
	lost := must(NewSealer([32]byte{7}))
	one = reconcile(t, nil, config(), now)
	next.Force = false
	if _, _, err := Reconcile(one, next, lost, now); err == nil || !strings.Contains(err.Error(), "another seal key") {
		t.Errorf("%v", err)
	}
	next.Force = true
	if _, changed, err := Reconcile(one, next, lost, now); err != nil || !changed {
		t.Errorf("%t, %v", changed, err)
	}
}

func TestReconcileWithoutNeed(t *testing.T) {
	one := reconcile(t, nil, config("private_key_bits", 384), now)
	// Saying nothing of keys is content with the root there is.
	for _, cfg := range []Config{config(), config("leaf_cert_ttl", "2h"), config("private_key_bits", 384)} {
		if _, changed, err := Reconcile(one, cfg, seal, now); changed || err != nil {
			t.Errorf("%s: %t, %v", cfg, changed, err)
		}
	}
	// Longer leaves are remembered, so that the root is trusted long enough.
	long := reconcile(t, one, config("leaf_cert_ttl", "1000h"), now)
	if Active(long).LeafTTL != 1000*time.Hour || one[0].LeafTTL != 72*time.Hour || len(long) != 1 {
		t.Errorf("%s", Active(long).LeafTTL)
	}
	rotated := reconcile(t, long, config("leaf_cert_ttl", "1h", "private_key_bits", 256), now)
	if _, changed, _ := Reconcile(rotated, config("leaf_cert_ttl", "1h"), seal, now.Add(1999*time.Hour)); changed {
		t.Error("dropped while a leaf may live")
	}
	if out := reconcile(t, rotated, config("leaf_cert_ttl", "1h"), now.Add(2001*time.Hour)); len(out) != 1 {
		t.Errorf("%v", ids(out))
	}
}

func TestRootIsRenewed(t *testing.T) {
	one := reconcile(t, nil, config(), now)
	if _, changed, _ := Reconcile(one, config(), seal, now.Add(78000*time.Hour)); changed {
		t.Error("too early")
	}
	at := now.Add(79000 * time.Hour)
	two := reconcile(t, one, config(), at)
	if len(two) != 2 || Active(two).ID == one[0].ID || !Active(two).NotAfter.After(one[0].NotAfter) {
		t.Errorf("%v", ids(two))
	}
	// The operator's own root is the operator's to replace.
	cert, key := ownRoot(must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader)))
	own := config("root_cert", cert, "private_key", key)
	one = reconcile(t, nil, own, now)
	if _, changed, err := Reconcile(one, own, seal, one[0].NotAfter); changed || err != nil {
		t.Errorf("%t, %v", changed, err)
	}
}
