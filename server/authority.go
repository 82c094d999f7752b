package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/catalog/store"
	"github.com/weftmesh/weft/connect/ca"
)

// applier is what of consensus the leader's own writes need.
type applier interface {
	Apply(ctx context.Context, cmd catalog.Command) (index uint64, result any, err error)
}

// authority is the certificate authority as the store has it: it opens the active
// root with the seal of this server, and signs.
type authority struct {
	store *store.Store
	raft  applier
	seal  ca.Sealer
	// before is what older versions sealed with on this server; nil for nothing.
	before ca.Sealer
	// hint names the file of the seal, for the error when it does not fit.
	hint       string
	first      catalog.CAConfig // of a new cluster
	datacenter string
	now        func() time.Time
	log        *slog.Logger

	configure sync.Mutex // one change at a time
	doubt     clockDoubt // under configure

	mu   sync.Mutex
	open *openAuthority
}

// openAuthority is a root that was opened under a configuration.
type openAuthority struct {
	rootID                 string
	rootIndex, configIndex uint64
	authority              *ca.Authority
	limiter                *ca.Limiter
	perSecond              float64
	concurrent             int
}

// setIndex is the index that a change of the roots, made now, is conditional on.
// Read before the roots themselves it can only be too old, and then loses.
func (a *authority) setIndex() (uint64, error) {
	v, err := a.store.Read(catalog.Query{Kind: catalog.QueryRoots})
	if err != nil {
		return 0, err
	}
	return v.Index, nil
}

func (a *authority) config() (catalog.CAConfig, error) {
	v, err := a.store.Read(catalog.Query{Kind: catalog.QueryCAConfig})
	if err != nil || v.CAConfig == nil {
		return catalog.CAConfig{}, err
	}
	return *v.CAConfig, nil
}

// Sign implements rpc.CA.
func (a *authority) Sign(ctx context.Context, req *ca.Request) (*catalog.Leaf, error) {
	o, err := a.current()
	if err != nil {
		return nil, err
	}
	release, err := o.limiter.Acquire(ctx)
	if err != nil {
		return nil, err
	}
	defer release()
	leaf, err := o.authority.SignRequest(req, ca.SignOptions{Now: a.now(), Datacenter: a.datacenter})
	if err != nil {
		return nil, err
	}
	leaf.CreateIndex = a.store.Index()
	leaf.ModifyIndex = leaf.CreateIndex
	return leaf, nil
}

// current opens the active root, unless that is done.
func (a *authority) current() (*openAuthority, error) {
	cfg, err := a.config()
	if err != nil {
		return nil, err
	}
	root := ca.Active(a.store.Roots())
	if root == nil || cfg.ClusterID == "" {
		return nil, fmt.Errorf("the certificate authority has no root yet: %w", catalog.ErrUnavailable)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if o := a.open; o != nil && o.rootID == root.ID && o.rootIndex == root.ModifyIndex && o.configIndex == cfg.ModifyIndex {
		return o, nil
	}
	parsed, err := ca.ParseConfig(cfg)
	if err != nil {
		return nil, fmt.Errorf("configuration of the CA: %w", err)
	}
	opened, err := ca.Open(root, parsed, a.seal)
	if err != nil {
		return nil, a.explain(err)
	}
	o := &openAuthority{
		rootID: root.ID, rootIndex: root.ModifyIndex, configIndex: cfg.ModifyIndex, authority: opened,
		perSecond: parsed.CSRMaxPerSecond, concurrent: parsed.CSRMaxConcurrent,
	}
	if old := a.open; old != nil && old.perSecond == o.perSecond && old.concurrent == o.concurrent {
		o.limiter = old.limiter // who waits there goes on to count
	} else {
		o.limiter = ca.NewLimiter(parsed)
	}
	a.open = o
	return o, nil
}

func (a *authority) explain(err error) error {
	if errors.Is(err, ca.ErrUnseal) {
		return fmt.Errorf("%w; %s", err, a.hint)
	}
	return err
}

// Configure implements rpc.CA.
func (a *authority) Configure(ctx context.Context, cfg catalog.CAConfig) (uint64, error) {
	a.configure.Lock()
	defer a.configure.Unlock()
	old, err := a.config()
	if err != nil {
		return 0, err
	}
	if old.ClusterID == "" {
		return 0, fmt.Errorf("the certificate authority has no root yet: %w", catalog.ErrUnavailable)
	}
	cfg.ClusterID = old.ClusterID
	parsed, err := ca.ParseConfig(cfg)
	if err != nil {
		return 0, refusedConfig(err)
	}
	// The roots first: a configuration without its root could not be kept.
	if err := a.reconcile(ctx, parsed, parsed.Force); err != nil {
		return 0, err
	}
	index, _, err := a.raft.Apply(ctx, &catalog.SetCAConfig{Config: ca.Strip(cfg)})
	if err != nil {
		return 0, err
	}
	a.log.Info("the configuration of the CA was changed", "index", index)
	return index, nil
}

// refusedConfig says it in the words that Consul's users know.
func refusedConfig(err error) error {
	var unknown *ca.UnknownProviderError
	if errors.As(err, &unknown) {
		return fmt.Errorf("could not initialize provider: %w", err)
	}
	return fmt.Errorf("error configuring provider: %w", err)
}

// reconcile makes the roots be as the configuration asks. Sure says that the clock of
// this server is right, whatever the active root says.
func (a *authority) reconcile(ctx context.Context, parsed ca.Config, sure bool) error {
	index, err := a.setIndex()
	if err != nil {
		return err
	}
	was, now := a.store.Roots(), a.now()
	if root := ca.Untimely(was, parsed, now); root == nil {
		a.doubt = clockDoubt{}
	} else if err := a.doubt.look(root, now); err != nil && !sure {
		return err
	}
	roots, changed, err := ca.Reconcile(was, parsed, a.seal, now)
	if err != nil {
		return a.explain(err)
	}
	if !changed {
		return nil
	}
	cmd := &catalog.SetRoots{Roots: roots, Index: index}
	if err := cmd.Validate(); err != nil {
		return err
	}
	_, ok, err := a.raft.Apply(ctx, cmd)
	if err != nil {
		return err
	}
	if ok != true {
		return catalog.Conflictf("the roots of the CA were changed by another server at the same time; try again")
	}
	if active := ca.Active(roots); active != nil {
		a.log.Info("the roots of the CA were changed", "id", active.ID, "roots", len(roots))
	}
	return nil
}

// reseal brings keys that were sealed before there was a cluster secret under it.
func (a *authority) reseal(ctx context.Context) error {
	if a.before == nil {
		return nil
	}
	index, err := a.setIndex()
	if err != nil {
		return err
	}
	roots, changed, err := ca.Reseal(a.store.Roots(), a.before, a.seal)
	if err != nil || !changed {
		return err
	}
	_, ok, err := a.raft.Apply(ctx, &catalog.SetRoots{Roots: roots, Index: index})
	if err != nil {
		return err
	}
	if ok != true {
		return catalog.Conflictf("the roots of the CA were changed by another server at the same time; try again")
	}
	a.log.Info("the key of the CA is sealed under the cluster secret now; the file " + sealFile + " is needed no more once all backups are newer")
	return nil
}

// Ensure makes the first root of a new cluster, replaces one that is about to
// end, and drops those that nobody needs any more. The leader calls it now and then.
func (a *authority) Ensure(ctx context.Context) error {
	a.configure.Lock()
	defer a.configure.Unlock()
	cfg, err := a.config()
	if err != nil {
		return err
	}
	if err := a.reseal(ctx); err != nil {
		return err
	}
	if cfg.ClusterID != "" {
		parsed, err := ca.ParseConfig(cfg)
		if err != nil {
			return fmt.Errorf("configuration of the CA: %w", err)
		}
		if err := a.reconcile(ctx, parsed, false); err != nil {
			return err
		}
		// A seal that does not fit shows now, not when the first leaf runs out.
		if _, err := a.current(); errors.Is(err, ca.ErrUnseal) {
			return err
		}
		return nil
	}
	cfg, parsed, err := firstConfig(a.first)
	if err != nil {
		return err
	}
	switch active := ca.Active(a.store.Roots()); {
	case active != nil: // made by a leader that was lost before the next step
		cfg.ClusterID = active.ExternalTrustDomain
	case ca.ClusterIDOf(parsed.RootCert) != "":
		cfg.ClusterID = ca.ClusterIDOf(parsed.RootCert)
	default:
		cfg.ClusterID = uuid.NewString()
	}
	parsed.ClusterID = cfg.ClusterID
	if err := a.reconcile(ctx, parsed, false); err != nil {
		return err
	}
	_, _, err = a.raft.Apply(ctx, &catalog.SetCAConfig{Config: ca.Strip(cfg), CAS: true})
	return err
}

// firstConfig completes the configuration of a new cluster by the defaults.
func firstConfig(given catalog.CAConfig) (catalog.CAConfig, ca.Config, error) {
	if given.Provider == "" {
		given.Provider = ca.Provider
	}
	given.Config = canonical(given.Config)
	full := given
	full.Config = maps.Clone(ca.DefaultConfig().Config)
	maps.Copy(full.Config, given.Config)
	if parsed, err := ca.ParseConfig(full); err == nil {
		return full, parsed, nil
	}
	// A default may not fit what is given: a longer leaf needs a longer intermediate.
	parsed, err := ca.ParseConfig(given)
	if err != nil {
		return given, parsed, refusedConfig(err)
	}
	return given, parsed, nil
}

// ValidateCA refuses a configuration of the certificate authority that New would.
func ValidateCA(given catalog.CAConfig) error {
	_, _, err := firstConfig(given)
	return err
}

// canonical writes the keys that we know as the API shows them: files have them in
// snake_case too.
func canonical(config map[string]any) map[string]any {
	out := make(map[string]any, len(config))
	for k, v := range config {
		for _, name := range []string{
			"LeafCertTTL", "IntermediateCertTTL", "RootCertTTL", "PrivateKey", "PrivateKeyType", "PrivateKeyBits",
			"RootCert", "CSRMaxPerSecond", "CSRMaxConcurrent",
		} {
			if strings.EqualFold(strings.ReplaceAll(k, "_", ""), name) {
				k = name
			}
		}
		out[k] = v
	}
	return out
}
