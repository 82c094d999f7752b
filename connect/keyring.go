package connect

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/weftmesh/weft/connect/identity"
)

const (
	retryMin      = 250 * time.Millisecond
	retryMax      = 5 * time.Minute  // while a valid leaf is held
	retryMaxBare  = 30 * time.Second // while there is none: nothing can pass
	retryOnUpdate = 5 * time.Second  // a new snapshot means that servers are there
	rotationSmear = 2 * time.Second  // spreads the rush to a new root
	clockCheck    = 2 * time.Second  // a longer sleep would miss that the clock was set
	retryOdd      = 10 * time.Minute // when new leaves come due at once, as clocks differ
	signTimeout   = 30 * time.Second
)

// keyring holds the key and leaf of a service and renews both in time.
type keyring struct {
	signer Signer
	file   string
	log    *slog.Logger
	now    func() time.Time
	expiry func(time.Time) // tells metrics

	ready   chan struct{}
	held    atomic.Pointer[credential]
	changed chan struct{} // capacity 1: want was replaced

	mu      sync.Mutex
	want    *world
	urgent  bool // identity or trust changed since the last look
	lastErr error
}

// credential is a key with its leaf. It never changes.
type credential struct {
	tls     *tls.Certificate
	chain   []*x509.Certificate
	id      identity.ServiceID
	roots   []string // trusted when the leaf was issued
	renewAt time.Time
}

func (c *credential) leaf() *x509.Certificate { return c.chain[0] }

func newKeyring(cfg ServiceConfig) *keyring {
	return &keyring{
		signer:  cfg.Signer,
		file:    cfg.KeyFile,
		log:     cfg.Logger,
		now:     cfg.Now,
		expiry:  func(t time.Time) { cfg.Metrics.certificate(cfg.ID, t) },
		ready:   make(chan struct{}),
		changed: make(chan struct{}, 1),
	}
}

// certificate is the leaf in use, nil when there is none.
func (k *keyring) certificate() *tls.Certificate {
	if c := k.held.Load(); c != nil {
		return c.tls
	}
	return nil
}

// usable tells why connections of w cannot show a certificate, or nil.
func (k *keyring) usable(w *world) error {
	c := k.held.Load()
	switch {
	case c == nil:
		if err := k.lastError(); err != nil {
			return fmt.Errorf("no certificate yet: %w", err)
		}
		return errors.New("no certificate yet")
	case c.id != w.id:
		return fmt.Errorf("the certificate is for %s, not yet for %s", c.id, w.id)
	case k.now().After(c.leaf().NotAfter):
		err := fmt.Errorf("the certificate expired at %s", c.leaf().NotAfter.Format(time.RFC3339))
		if last := k.lastError(); last != nil {
			err = fmt.Errorf("%w; renewing it failed: %w", err, last)
		}
		return err
	}
	return nil
}

func (k *keyring) lastError() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.lastErr
}

// update tells which identity and trust the leaf must serve from now on.
func (k *keyring) update(w *world) {
	if w.bundle == nil {
		return
	}
	k.mu.Lock()
	if k.want == nil || k.want.id != w.id || k.want.bundle != w.bundle {
		k.urgent = true
	}
	k.want = w
	k.mu.Unlock()
	select {
	case k.changed <- struct{}{}:
	default:
	}
}

func (k *keyring) wanted() (w *world, urgent bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	urgent, k.urgent = k.urgent, false
	return k.want, urgent
}

// run renews until ctx ends.
func (k *keyring) run(ctx context.Context) error {
	var (
		loaded    bool
		due       time.Time // when to renew what is held
		notBefore time.Time // back-off: no attempt earlier
		tried     time.Time
		backoff   time.Duration
		updated   bool
	)
	for {
		w, urgent := k.wanted()
		if w != nil {
			if !loaded {
				loaded = true
				k.load(w)
			}
			now := k.now()
			if urgent || due.IsZero() || k.untimely(now) {
				due = k.dueAt(w, now)
			}
			switch {
			case urgent:
				notBefore = time.Time{}
			case updated && backoff > 0 && notBefore.After(tried.Add(retryOnUpdate)):
				notBefore = tried.Add(retryOnUpdate)
			}
			if !now.Before(due) && !now.Before(notBefore) {
				tried = now
				if err := k.renew(ctx, w); err != nil {
					if ctx.Err() != nil {
						return nil //nolint:nilerr // told to end
					}
					backoff = k.nextBackoff(backoff, w)
					notBefore = k.now().Add(backoff)
					k.failed(err, backoff)
				} else {
					backoff, notBefore = 0, time.Time{}
					due = k.dueAt(w, k.now())
					switch renewAt := k.held.Load().renewAt; {
					case due.Before(renewAt):
						// The signer still issues what the snapshot calls old. Asking ever
						// again would be a storm; the next snapshot is a reason to.
						notBefore = k.now().Add(retryMaxBare)
					case !renewAt.After(k.now()): // the signer's clock is far behind: likewise
						notBefore = k.now().Add(retryOdd)
					}
				}
			}
		}
		updated = k.sleep(ctx, laterOf(due, notBefore), w != nil)
		if ctx.Err() != nil {
			return nil //nolint:nilerr // told to end
		}
	}
}

// untimely tells whether the leaf is not valid by the clock here. One that begins later
// was issued before somebody set the clocks back.
func (k *keyring) untimely(now time.Time) bool {
	c := k.held.Load()
	return c != nil && (now.Before(c.leaf().NotBefore) || now.After(c.leaf().NotAfter))
}

// sleep waits for the moment, an update, or the next look at the clock. It tells
// whether there was an update.
func (k *keyring) sleep(ctx context.Context, until time.Time, timed bool) (updated bool) {
	d := clockCheck
	if timed {
		d = min(d, max(until.Sub(k.now()), time.Millisecond))
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-k.changed:
		return true
	case <-t.C:
	}
	return false
}

// dueAt is when the leaf held must be replaced: now without one, when it is for
// another identity or its chain is no longer trusted; soon when new leaves come
// from another root; else at about half of its life.
func (k *keyring) dueAt(w *world, now time.Time) time.Time {
	c := k.held.Load()
	if c == nil || c.id != w.id || !now.Before(c.leaf().NotAfter) {
		return now
	}
	if _, err := w.bundle.VerifyPeer(c.chain, now); err != nil {
		return now
	}
	var rotated bool
	if w.signing != nil {
		_, err := w.signing.VerifyPeer(c.chain, now)
		rotated = err != nil
	} else {
		rotated = slices.ContainsFunc(w.snap.Roots, func(r string) bool { return !slices.Contains(c.roots, r) })
	}
	if rotated {
		return now.Add(rand.N(rotationSmear))
	}
	return c.renewAt
}

func (k *keyring) nextBackoff(last time.Duration, w *world) time.Duration {
	ceiling := retryMax
	if k.usable(w) != nil {
		ceiling = retryMaxBare
	}
	d := min(max(2*last, retryMin), ceiling)
	return d - rand.N(d/4+1)
}

func (k *keyring) failed(err error, retry time.Duration) {
	k.mu.Lock()
	k.lastErr = err
	var service string
	if k.want != nil {
		service = k.want.id.Service
	}
	k.mu.Unlock()
	attrs := []any{"service", service, "err", err, "dur", retry.Round(time.Millisecond)}
	if c := k.held.Load(); c != nil {
		attrs = append(attrs, "hint", "the leaf in use expires at "+c.leaf().NotAfter.Format(time.RFC3339))
	}
	k.log.Warn("certificate not renewed, will retry", attrs...)
}

// renew makes a new key, has it signed and puts both in use.
func (k *keyring) renew(ctx context.Context, w *world) error {
	key, err := identity.NewKey()
	if err != nil {
		return fmt.Errorf("new key: %w", err)
	}
	csr, err := identity.NewCSR(key, w.id)
	if err != nil {
		return fmt.Errorf("certificate request: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, signTimeout)
	defer cancel()
	chain, err := k.signer.Sign(ctx, csr)
	if err != nil {
		return fmt.Errorf("sign %s: %w", w.id, err)
	}
	c, err := newCredential(key, chain.DER, w, k.now())
	if err != nil {
		return fmt.Errorf("the certificate issued for %s: %w", w.id, err)
	}
	k.use(c)
	if k.file != "" {
		if err := c.save(k.file, key); err != nil {
			k.log.Warn("key and certificate stay in memory only", "file", k.file, "err", err)
		}
	}
	return nil
}

func (k *keyring) use(c *credential) {
	k.mu.Lock()
	k.lastErr = nil
	k.mu.Unlock()
	first := k.held.Swap(c) == nil
	k.expiry(c.leaf().NotAfter)
	k.log.Info("certificate in use", "service", c.id.Service, "peer", c.id.String(),
		"id", identity.Serial(c.leaf().SerialNumber), "dur", c.leaf().NotAfter.Sub(k.now()).Round(time.Second))
	if first {
		close(k.ready)
	}
}

// load takes up key and leaf of an earlier run when they still serve w.
func (k *keyring) load(w *world) {
	if k.file == "" {
		return
	}
	c, err := loadCredential(k.file, w, k.now())
	switch {
	case err == nil && c != nil:
		k.use(c)
	case err != nil:
		k.log.Warn("stored certificate not used, a new one is requested", "file", k.file, "err", err)
	}
}

func laterOf(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}
