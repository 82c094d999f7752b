package connect

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// virtual runs a Service in virtual time; the clock starts at the year 2000, so
// the CA is made inside.
func virtual(t *testing.T, ttl time.Duration, test func(t *testing.T, ca *testCA, s *Service, log *logBook, snap *Snapshot)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		ca := newTestCA(t, testDomain)
		ca.ttl = ttl
		log := &logBook{}
		s, err := NewService(ServiceConfig{ID: "web", Signer: ca, Logger: log.logger()})
		must(t, err)
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { _ = s.Run(ctx) })
		snap := &Snapshot{Service: "web", Datacenter: testDC, TrustDomain: testDomain, Roots: []string{ca.pem}}
		s.Update(snap)
		test(t, ca, s, log, snap)
		cancel()
		wg.Wait()
	})
}

func (ca *testCA) signed() int64 {
	ca.mu.Lock()
	defer ca.mu.Unlock()
	return ca.n
}

func TestRenewalAtHalfLife(t *testing.T) {
	virtual(t, 10*time.Hour, func(t *testing.T, ca *testCA, s *Service, _ *logBook, _ *Snapshot) {
		<-s.Ready()
		first := s.keys.held.Load()
		if left := time.Until(first.renewAt); left < 3*time.Hour+50*time.Minute || left > 6*time.Hour+10*time.Minute {
			t.Errorf("renews in %s of 10 h", left)
		}
		time.Sleep(time.Until(first.renewAt) - 2*time.Minute)
		synctest.Wait()
		if s.keys.held.Load() != first {
			t.Error("renewed too early")
		}
		time.Sleep(4 * time.Minute)
		synctest.Wait()
		if s.keys.held.Load() == first || ca.signed() != 2 {
			t.Errorf("not renewed in time, or too often: %d certificates", ca.signed())
		}
	})
}

func TestRenewalIsRetried(t *testing.T) {
	virtual(t, 20*time.Hour, func(t *testing.T, ca *testCA, s *Service, log *logBook, snap *Snapshot) {
		<-s.Ready()
		first := s.keys.held.Load()
		ca.set(func() { ca.fail = errors.New("no servers") })
		time.Sleep(time.Until(first.renewAt) + 2*time.Minute)
		synctest.Wait()
		if err := s.keys.usable(s.world.Load()); err != nil {
			t.Errorf("unusable while the leaf is good: %v", err)
		}
		log.find(t, "certificate not renewed", "no servers", "the leaf in use expires at")
		before := ca.signed()
		time.Sleep(time.Hour)
		if n := ca.signed() - before; n < 10 || n > 30 {
			t.Errorf("%d attempts in an hour, want one in about five minutes", n)
		}
		// A new snapshot says that servers are there again.
		ca.set(func() { ca.fail = nil })
		next := *snap
		next.Index++
		s.Update(&next)
		time.Sleep(retryOnUpdate)
		synctest.Wait()
		if s.keys.held.Load() == first {
			t.Error("an update did not hasten the next attempt")
		}
		if s.keys.lastError() != nil {
			t.Error("the error outlived the success")
		}
	})
}

func TestFirstCertificateIsSought(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := newTestCA(t, testDomain)
		ca.fail = errors.New("no servers")
		s, err := NewService(ServiceConfig{ID: "web", Signer: ca, Logger: logNothing})
		must(t, err)
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { _ = s.Run(ctx) })
		time.Sleep(time.Hour)
		if ca.signed() != 0 {
			t.Error("asked for a certificate before there was an identity")
		}
		s.Update(&Snapshot{Service: "web", Datacenter: testDC, TrustDomain: testDomain, Roots: []string{ca.pem}})
		time.Sleep(10 * time.Minute)
		if n := ca.signed(); n < 15 || n > 60 {
			t.Errorf("%d attempts in ten minutes", n)
		}
		ca.set(func() { ca.fail = nil; ca.ttl = 10 * time.Hour })
		start := time.Now()
		<-s.Ready()
		if took := time.Since(start); took > retryMaxBare {
			t.Errorf("a certificate only after %s", took)
		}
		cancel()
		wg.Wait()
	})
}

// A certificate that is not what was asked for is never used.
func TestWrongCertificateIsNotUsed(t *testing.T) {
	ca, stranger := newTestCA(t, testDomain), newTestCA(t, testDomain)
	log := &logBook{}
	s, err := NewService(ServiceConfig{ID: "web", Logger: log.logger(), Signer: stranger})
	must(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { _ = s.Run(ctx) })
	s.Update(&Snapshot{Service: "web", Datacenter: testDC, TrustDomain: testDomain, Roots: []string{ca.pem}})
	log.find(t, "certificate not renewed", "unknown_authority")
	if s.keys.certificate() != nil {
		t.Error("in use although its root is not trusted")
	}
	cancel()
	wg.Wait()
}

// TestP21ClockIsSetBack: a leaf that was issued while the clock was ahead is replaced once it is right, and a
// signer whose clock is days behind is not stormed.
func TestP21ClockIsSetBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := newTestCA(t, testDomain)
		ca.ttl = 20 * time.Hour
		var off atomic.Int64
		now := func() time.Time { return time.Now().Round(0).Add(time.Duration(off.Load())) }
		ca.now = now
		s, err := NewService(ServiceConfig{ID: "web", Signer: ca, Now: now, Logger: logNothing})
		must(t, err)
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { _ = s.Run(ctx) })
		s.Update(&Snapshot{Service: "web", Datacenter: testDC, TrustDomain: testDomain, Roots: []string{ca.pem}})
		<-s.Ready()
		synctest.Wait()
		for _, by := range []time.Duration{-time.Hour, time.Hour} {
			off.Add(int64(by))
			time.Sleep(3 * time.Second)
			synctest.Wait()
			if leaf := s.keys.held.Load().leaf(); now().Before(leaf.NotBefore) {
				t.Errorf("set by %s: the leaf begins at %s, it is %s", by, leaf.NotBefore, now())
			}
		}
		ca.set(func() { ca.now = func() time.Time { return now().Add(-12 * time.Hour) } })
		off.Add(int64(12 * time.Hour)) // due
		before := ca.signed()
		time.Sleep(time.Hour)
		synctest.Wait()
		if n := ca.signed() - before; n < 1 || n > 10 {
			t.Errorf("%d certificates in an hour", n)
		}
		cancel()
		wg.Wait()
	})
}

func TestOldSignerIsNotStormed(t *testing.T) {
	virtual(t, 10*time.Hour, func(t *testing.T, ca *testCA, s *Service, _ *logBook, snap *Snapshot) {
		<-s.Ready()
		next := newTestCA(t, testDomain)
		rotated := *snap
		rotated.Roots, rotated.SigningRoot = []string{ca.pem, next.pem}, next.pem
		s.Update(&rotated)
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		if n := ca.signed(); n < 3 || n > 30 {
			t.Errorf("%d certificates in 10 minutes", n)
		}
	})
}
