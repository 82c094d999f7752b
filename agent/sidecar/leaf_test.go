package sidecar

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/catalog/wire"
	"github.com/weftmesh/weft/connect/ca"
	"github.com/weftmesh/weft/connect/identity"
)

// testAuthority is a real certificate authority, without servers.
type testAuthority struct {
	mu    sync.Mutex
	ca    *ca.Authority
	root  *catalog.Root
	signs int
	fail  error
}

func newAuthority(t *testing.T) *testAuthority {
	t.Helper()
	conf := ca.DefaultConfig()
	conf.ClusterID = "11111111-2222-3333-4444-555555555555"
	cfg, err := ca.ParseConfig(conf)
	if err != nil {
		t.Fatal(err)
	}
	seal, err := ca.NewSealer([32]byte{1})
	if err != nil {
		t.Fatal(err)
	}
	root, err := ca.NewRoot(cfg, seal, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	a, err := ca.Open(root, cfg, seal)
	if err != nil {
		t.Fatal(err)
	}
	return &testAuthority{ca: a, root: root}
}

func (a *testAuthority) Sign(_ context.Context, req *wire.SignRequest) (*wire.SignReply, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.signs++
	if a.fail != nil {
		return nil, a.fail
	}
	leaf, err := a.ca.Sign(req.CSR, ca.SignOptions{Now: time.Now(), Datacenter: "dc1"})
	if err != nil {
		return nil, err
	}
	leaf.CreateIndex, leaf.ModifyIndex = 12, 12
	return &wire.SignReply{Leaf: *leaf}, nil
}

func (a *testAuthority) set(fail error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.fail = fail
}

func TestLeaves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		auth := newAuthority(t)
		var views fakeViews
		views.setRoots(auth.root.RootCert)
		l, err := NewLeaves(LeavesConfig{Authority: auth, Views: views.Watch, Datacenter: "dc1", Max: 2})
		if err != nil {
			t.Fatal(err)
		}
		get := func(after uint64) (*catalog.Leaf, string) {
			t.Helper()
			leaf, key, err := l.Leaf(t.Context(), "web", "", after)
			if err != nil {
				t.Fatal(err)
			}
			return leaf, key
		}
		leaf, key := get(0)
		chain, err := identity.ParseChain([]byte(leaf.CertPEM))
		if err != nil {
			t.Fatal(err)
		}
		priv, err := identity.ParseKey([]byte(key))
		if err != nil || !identity.SameKey(priv.Public(), chain.Leaf().PublicKey) {
			t.Fatalf("the key is not that of the certificate: %v", err)
		}
		if leaf.ServiceURI != "spiffe://11111111-2222-3333-4444-555555555555.consul/ns/default/dc/dc1/svc/web" {
			t.Errorf("URI %s", leaf.ServiceURI)
		}
		if again, sameKey := get(0); again.SerialNumber != leaf.SerialNumber || sameKey != key || auth.signs != 1 {
			t.Errorf("asked twice, signed %d times", auth.signs)
		}
		start := time.Now()
		next, _ := get(leaf.ModifyIndex) // waits for the renewal
		if d := time.Since(start); d < 28*time.Hour || d > 44*time.Hour || next.SerialNumber == leaf.SerialNumber || next.ModifyIndex <= leaf.ModifyIndex {
			t.Errorf("renewed after %s: index %d → %d", d, leaf.ModifyIndex, next.ModifyIndex)
		}
		other := newAuthority(t) // another root takes over
		auth.mu.Lock()
		auth.ca, auth.root = other.ca, other.root
		auth.mu.Unlock()
		start = time.Now()
		var wg sync.WaitGroup
		wg.Go(func() {
			if l2, _ := get(next.ModifyIndex); l2.SerialNumber == next.SerialNumber {
				t.Error("the leaf of the old root was given again")
			}
		})
		synctest.Wait()
		views.setRoots(leaf.CertPEM, other.root.RootCert)
		wg.Wait()
		if time.Since(start) > time.Second {
			t.Errorf("the new root was taken up after %s", time.Since(start))
		}
	})
}

func TestLeavesWhileServersAreGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		auth := newAuthority(t)
		var views fakeViews
		views.setRoots(auth.root.RootCert)
		l, err := NewLeaves(LeavesConfig{Authority: auth, Views: views.Watch, Datacenter: "dc1", Max: 2})
		if err != nil {
			t.Fatal(err)
		}
		first, _, err := l.Leaf(t.Context(), "web", "", 0)
		if err != nil {
			t.Fatal(err)
		}
		auth.set(catalog.ErrUnavailable)
		time.Sleep(71 * time.Hour)
		if leaf, _, err := l.Leaf(t.Context(), "web", "", 0); err != nil || leaf.SerialNumber != first.SerialNumber {
			t.Errorf("a valid certificate: %v", err)
		}
		if _, _, err := l.Leaf(t.Context(), "api", "", 0); !errors.Is(err, catalog.ErrUnavailable) || !strings.Contains(err.Error(), "api") {
			t.Errorf("one that was never made: %v", err)
		}
		time.Sleep(2 * time.Hour)
		if _, _, err := l.Leaf(t.Context(), "web", "", 0); !errors.Is(err, catalog.ErrUnavailable) {
			t.Errorf("an expired certificate: %v", err)
		}
	})
}

func TestLeavesAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		auth := newAuthority(t)
		var views fakeViews
		views.setRoots(auth.root.RootCert)
		l, err := NewLeaves(LeavesConfig{Authority: auth, Views: views.Watch, Datacenter: "dc1", Max: 2})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		for _, n := range []string{"a", "b"} {
			wg.Go(func() { _, _, _ = l.Leaf(ctx, n, "", 99) })
		}
		synctest.Wait()
		if _, _, err := l.Leaf(ctx, "c", "", 0); !errors.Is(err, catalog.ErrTooLarge) {
			t.Errorf("a third: %v", err)
		}
		cancel()
		wg.Wait()
		if _, _, err := l.Leaf(t.Context(), "c", "", 0); err != nil {
			t.Errorf("room was made, and yet: %v", err)
		}
		for _, bad := range []string{"", "a/b", ".."} {
			if _, _, err := l.Leaf(t.Context(), bad, "", 0); !errors.Is(err, catalog.ErrInvalid) {
				t.Errorf("%q: %v", bad, err)
			}
		}
	})
}

func TestSignerRefusesAnotherIdentity(t *testing.T) {
	auth := newAuthority(t)
	key, err := identity.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	csr, err := identity.NewCSR(key, identity.ServiceID{TrustDomain: auth.ca.TrustDomain(), Datacenter: "dc1", Service: "web"})
	if err != nil {
		t.Fatal(err)
	}
	sign := NewSigner(auth)
	if chain, err := sign("web").Sign(t.Context(), csr); err != nil || chain.Empty() {
		t.Errorf("its own: %v", err)
	}
	if _, err := sign("db").Sign(t.Context(), csr); err == nil {
		t.Error("a certificate of web was taken for db")
	}
}
