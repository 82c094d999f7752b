package sidecar

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/catalog/wire"
	"github.com/weftmesh/weft/connect/identity"
)

const (
	lookAtClock = 5 * time.Second  // a clock that jumps must not hold a renewal back for long
	oddPause    = 10 * time.Minute // when new certificates come due at once, as clocks differ
)

// LeavesConfig configures Leaves.
type LeavesConfig struct {
	Authority Authority // required
	// Views watches what the servers know, for the roots. Required.
	Views      func(q catalog.Query) catalog.Watch[*catalog.View]
	Datacenter string // required
	// Max bounds the certificates kept: 512.
	Max    int
	Logger *slog.Logger
	Now    func() time.Time // nil: time.Now
}

// Leaves keeps the certificates of applications that speak the mesh's TLS
// themselves. Each is made on request with a key of its own, kept in memory only,
// and made again, when somebody asks or waits, at about half its life or when
// another root signs.
type Leaves struct {
	cfg   LeavesConfig
	roots catalog.Watch[*catalog.View]

	mu   sync.Mutex
	held map[leafKey]*leafEntry
}

// leafKey has the token in it: the servers judge it when they sign.
type leafKey struct {
	service catalog.Name
	token   string
}

type leafEntry struct {
	users int       // guarded by Leaves.mu
	used  time.Time // guarded by Leaves.mu
	turn  chan struct{}
	leaf  *issued // guarded by turn
}

// issued is a certificate with its key. It is immutable.
type issued struct {
	leaf    catalog.Leaf
	key     string // PEM
	signer  string // the root that signed at the time
	renewAt time.Time
}

// NewLeaves validates cfg.
func NewLeaves(cfg LeavesConfig) (*Leaves, error) {
	if cfg.Authority == nil || cfg.Views == nil || cfg.Datacenter == "" {
		return nil, errors.New("leaves: Authority, Views and Datacenter must all be set")
	}
	cfg.Max = cmp.Or(cfg.Max, 512)
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &Leaves{cfg: cfg, roots: cfg.Views(catalog.Query{Kind: catalog.QueryRoots}), held: map[leafKey]*leafEntry{}}, nil
}

// Leaf returns the certificate of a service and its private key in PEM, once its
// ModifyIndex is above after.
func (l *Leaves) Leaf(ctx context.Context, service catalog.Name, token string, after uint64) (*catalog.Leaf, string, error) {
	e, err := l.enter(leafKey{service, token})
	if err != nil {
		return nil, "", err
	}
	defer l.exit(e)
	pause := time.Second
	for {
		roots, index, err := l.roots.Next(ctx, 0)
		if err != nil {
			return nil, "", fmt.Errorf("certificate of %s: %w", service, err)
		}
		cur, err := l.current(ctx, e, leafKey{service, token}, roots)
		if cur == nil {
			return nil, "", err
		}
		if cur.leaf.ModifyIndex > after {
			leaf := cur.leaf
			return &leaf, cur.key, nil
		}
		wait := cur.renewAt.Sub(l.cfg.Now())
		if err != nil { // it is due, and could not be had: what there is goes on
			wait, pause = pause, min(pause*2, time.Minute)
		}
		if err := l.wait(ctx, wait, index); err != nil {
			return nil, "", err
		}
	}
}

// wait ends after d, when the roots change, or with ctx, whose cause it returns.
func (l *Leaves) wait(ctx context.Context, d time.Duration, rootsIndex uint64) error {
	waiting, cancel := context.WithTimeout(ctx, min(max(d, 0), lookAtClock))
	defer cancel()
	_, _, err := l.roots.Next(waiting, rootsIndex)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err != nil && waiting.Err() == nil {
		return err
	}
	return nil
}

// current is the certificate of e, made now when there is none or it is due. With
// a certificate that is valid still, an error says why it was not renewed.
func (l *Leaves) current(ctx context.Context, e *leafEntry, key leafKey, v *catalog.View) (*issued, error) {
	select {
	case e.turn <- struct{}{}:
		defer func() { <-e.turn }()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	domain, _, signing, ok := rootsOf(v)
	now := l.cfg.Now()
	if e.leaf != nil && now.Before(e.leaf.renewAt) && !now.Before(e.leaf.leaf.ValidAfter) && (!ok || e.leaf.signer == signing) && !revoked(v, &e.leaf.leaf) {
		return e.leaf, nil
	}
	var next *issued
	err := fmt.Errorf("certificate of %s: the mesh has no certificate authority yet: %w", key.service, catalog.ErrUnavailable)
	if ok {
		next, err = l.issue(ctx, key, identity.ServiceID{TrustDomain: domain, Datacenter: l.cfg.Datacenter, Service: key.service}, signing)
	}
	switch {
	case err == nil:
		if e.leaf != nil && next.leaf.ModifyIndex <= e.leaf.leaf.ModifyIndex {
			next.leaf.ModifyIndex = e.leaf.leaf.ModifyIndex + 1
		}
		next.leaf.CreateIndex = next.leaf.ModifyIndex
		e.leaf = next
		return next, nil
	case e.leaf != nil && now.Before(e.leaf.leaf.ValidBefore):
		l.cfg.Logger.Warn("a certificate could not be renewed; the one there is goes on", "service", key.service, "err", err)
		return e.leaf, err
	default:
		return nil, err
	}
}

func (l *Leaves) issue(ctx context.Context, key leafKey, id identity.ServiceID, signing string) (*issued, error) {
	if err := id.Validate(); err != nil {
		return nil, fmt.Errorf("certificate of %s: %w: %w", key.service, catalog.ErrInvalid, err)
	}
	priv, err := identity.NewKey()
	if err != nil {
		return nil, fmt.Errorf("certificate of %s: %w", key.service, err)
	}
	csr, err := identity.NewCSR(priv, id)
	if err != nil {
		return nil, fmt.Errorf("certificate of %s: %w", key.service, err)
	}
	rep, err := l.cfg.Authority.Sign(ctx, &wire.SignRequest{Token: key.token, CSR: csr})
	if err != nil {
		return nil, fmt.Errorf("certificate of %s: %w", key.service, err)
	}
	chain, err := identity.ParseChain([]byte(rep.Leaf.CertPEM))
	if err != nil {
		return nil, fmt.Errorf("certificate of %s: %w", key.service, err)
	}
	if !identity.SameKey(priv.Public(), chain.Leaf().PublicKey) {
		return nil, fmt.Errorf("certificate of %s: the servers signed another key: %w", key.service, catalog.ErrInvalid)
	}
	text, err := identity.EncodeKey(priv)
	if err != nil {
		return nil, fmt.Errorf("certificate of %s: %w", key.service, err)
	}
	out := &issued{leaf: rep.Leaf, key: string(text), signer: signing, renewAt: chain.RenewAt(rand.Float64())}
	if soonest := l.cfg.Now().Add(oddPause); out.renewAt.Before(soonest) && chain.Leaf().NotAfter.Sub(chain.Leaf().NotBefore) > 2*oddPause {
		out.renewAt = soonest // the signer's clock is far behind: not for ever again at once
	}
	out.leaf.ModifyIndex = max(out.leaf.ModifyIndex, 1)
	l.cfg.Logger.Info("a certificate with its key was made for an application", "service", key.service)
	return out, nil
}

func (l *Leaves) enter(key leafKey) (*leafEntry, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	e := l.held[key]
	if e == nil {
		if len(l.held) >= l.cfg.Max && !l.evict() {
			return nil, fmt.Errorf("certificate of %s: %d certificates are waited for on this agent already: %w", key.service, len(l.held), catalog.ErrTooLarge)
		}
		e = &leafEntry{turn: make(chan struct{}, 1)}
		l.held[key] = e
	}
	e.users++
	return e, nil
}

func (l *Leaves) exit(e *leafEntry) {
	l.mu.Lock()
	defer l.mu.Unlock()
	e.users--
	e.used = l.cfg.Now()
}

// evict forgets the certificate that was not asked for the longest.
func (l *Leaves) evict() bool {
	var oldest leafKey
	var found *leafEntry
	for k, e := range l.held {
		if e.users == 0 && (found == nil || e.used.Before(found.used)) {
			oldest, found = k, e
		}
	}
	if found != nil {
		delete(l.held, oldest)
	}
	return found != nil
}

// revoked tells whether a certificate is not trusted any more. One of an identity
// that is revoked cannot be replaced, and is for others to refuse.
func revoked(v *catalog.View, leaf *catalog.Leaf) bool {
	return slices.ContainsFunc(v.RevokedCerts, func(r *catalog.CertRevocation) bool {
		return r.Serial != "" && r.Serial == leaf.SerialNumber
	})
}
