package local

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/weftmesh/weft/agent/checks"
	"github.com/weftmesh/weft/catalog"
)

// Host is what this host says of itself at one moment. It is immutable.
type Host struct {
	Node     *catalog.Node
	Services map[string]*catalog.Service // by service ID
	Checks   map[string]*catalog.Check   // by check ID
	// Exposed are the checks that go through the proxies of their services, by service ID.
	Exposed map[string][]ExposedCheck
}

// Syncer is the way to the servers: one idempotent statement of a whole host.
type Syncer interface {
	Sync(ctx context.Context, want catalog.NodeState) (index uint64, err error)
}

// Config configures a State.
type Config struct {
	// Node is this host as a catalog row. Required, with a name.
	Node *catalog.Node
	// DataDir keeps registrations over a restart; empty keeps them in memory only.
	DataDir string
	// Syncer takes statements to the servers. Required.
	Syncer Syncer
	// Reached, where given, gives a channel that is closed when a server is reached again:
	// what could not be stated then is at once. It may be nil.
	Reached func() <-chan struct{}
	Logger  *slog.Logger
	// SidecarMinPort and SidecarMaxPort bound the ports given to sidecars, both
	// included. Default 21000 to 21255.
	SidecarMinPort int
	SidecarMaxPort int
	// ExposeMinPort and ExposeMaxPort bound the ports of checks that go through proxies,
	// both included. Default 21500 to 21755.
	ExposeMinPort int
	ExposeMaxPort int
	// MeshPort is given to all sidecars that name none, which share it, but to one instance
	// of each service only. 0: each gets its own.
	MeshPort int
	// CheckUpdateInterval holds back changes of a check's output that leave its
	// status as it is. Default 5 minutes; negative sends every one at once.
	CheckUpdateInterval time.Duration
	// CheckOutputMaxSize cuts the output of every check, in bytes; a definition may ask
	// for less. Default 4096.
	CheckOutputMaxSize int
	// CheckTLS is what checks over TLS show of this host and whom they trust. Nil: nothing,
	// and the authorities of the system.
	CheckTLS *tls.Config
	// DiscardCheckOutput keeps the status of checks and drops what they said.
	DiscardCheckOutput bool
	// Scripts says whose checks may run commands. Default: nobody's.
	Scripts checks.Scripts
	// SidecarDeregisterAfter is DeregisterCriticalServiceAfter of the checks that the
	// agent gives to sidecars. 0: none.
	SidecarDeregisterAfter time.Duration
	// SyncInterval is the time between full statements when nothing changes, with
	// jitter. Default 1 minute.
	SyncInterval time.Duration
	// Hosts is how many hosts the cluster has: the more, the longer the interval. Nil: one.
	Hosts func() int
	// AliasTarget watches a node, or a service on it, for alias checks that name
	// another node. Without it such checks are refused.
	AliasTarget func(node, service string) catalog.Watch[checks.Target]
}

// Validate refuses a configuration that cannot work.
func (c *Config) Validate() error {
	switch {
	case c.Node == nil || c.Node.Node == "":
		return fmt.Errorf("local state: %w: no node name", catalog.ErrInvalid)
	case c.Syncer == nil:
		return fmt.Errorf("local state: %w: no way to the servers (Syncer)", catalog.ErrInvalid)
	case c.SidecarMinPort < 0 || c.SidecarMaxPort > maxPort || c.SidecarMinPort > c.SidecarMaxPort:
		return fmt.Errorf("local state: %w: sidecar ports %d to %d are no range", catalog.ErrInvalid, c.SidecarMinPort, c.SidecarMaxPort)
	case c.ExposeMinPort < 0 || c.ExposeMaxPort > maxPort || c.ExposeMinPort > c.ExposeMaxPort:
		return fmt.Errorf("local state: %w: ports %d to %d of exposed checks are no range", catalog.ErrInvalid, c.ExposeMinPort, c.ExposeMaxPort)
	}
	return nil
}

func (c *Config) setDefaults() {
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.SidecarMinPort == 0 && c.SidecarMaxPort == 0 {
		c.SidecarMinPort, c.SidecarMaxPort = 21000, 21255
	}
	if c.ExposeMinPort == 0 && c.ExposeMaxPort == 0 {
		c.ExposeMinPort, c.ExposeMaxPort = 21500, 21755
	}
	if c.CheckUpdateInterval == 0 {
		c.CheckUpdateInterval = 5 * time.Minute
	}
	if c.CheckOutputMaxSize <= 0 {
		c.CheckOutputMaxSize = checks.DefaultOutputMaxSize
	}
	if c.SyncInterval <= 0 {
		c.SyncInterval = time.Minute
	}
}

// RegisterOptions modify Register.
type RegisterOptions struct {
	// ReplaceExistingChecks drops the checks that the service has and that this
	// registration does not name. Otherwise they stay.
	ReplaceExistingChecks bool
	// FromFile marks a registration of a configuration file: not persisted, since the file is.
	FromFile bool
}

// service is a registered service. It is immutable.
type service struct {
	svc       *catalog.Service
	token     string
	fromFile  bool
	sidecarOf string // ID of the service whose registration asked for this sidecar
}

// check is a registered check. What it is is immutable; what it found is under State.mu.
type check struct {
	def      *catalog.CheckDefinition
	kind     string // as in package checks
	fromFile bool
	// fact marks the listener check of a proxy in this agent: reported, never run.
	fact bool

	row           *catalog.Check // immutable, replaced on change
	criticalSince time.Time      // zero unless critical
	through       string         // where the proxy listens that the check goes through; "": it is made directly
	ttl           *checks.TTL
	stop          context.CancelFunc // of the runner; nil when none runs
	expires       time.Time          // of the status of a TTL check
	unsaved       bool               // the status on disk is older
	sent          *catalog.Check     // what the servers know
	outputDue     time.Time          // when a change of output alone is to be sent; zero: none
}

// State is what this host says of itself. Its methods may be called before, during
// and after Run; checks run and statements go out only while Run does.
//
// changing serialises registrations, which write to disk; mu guards memory and is
// never held over I/O. Only the holder of both adds or removes services and checks.
type State struct {
	cfg    Config
	log    *slog.Logger
	disk   *disk
	latest catalog.Latest[*Host]
	dirty  chan struct{} // something is to be said to the servers
	wake   chan struct{} // a time to act has moved
	save   chan struct{} // check states are to be saved
	synced catalog.Latest[error]
	saying sync.Mutex // one statement at a time
	cut    bool       // the last one was too large with whole outputs; guarded by saying

	changing sync.Mutex
	leaving  map[int]time.Time // ports of proxies that were removed a moment ago; guarded by changing
	mu       sync.Mutex
	node     *catalog.Node
	services map[string]*service
	checks   map[string]*check
	orphans  map[string]*check // read from disk, of services that files may yet bring
	facts    map[string]string // proxies that listen, and what they say of it
	exposed  map[string]string // services whose checks go through proxies, and where those listen
	gen      uint64            // counts changes that the servers are to know
	lastErr  error             // of the last statement; ErrUnstated before the first
	left     bool
	runCtx   context.Context // nil unless Run runs
	runners  sync.WaitGroup
}

// New reads what was registered before from the data directory.
func New(cfg Config) (*State, error) {
	cfg.setDefaults()
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	s := &State{
		cfg:      cfg,
		log:      cfg.Logger,
		disk:     &disk{dir: cfg.DataDir, log: cfg.Logger},
		dirty:    make(chan struct{}, 1),
		wake:     make(chan struct{}, 1),
		save:     make(chan struct{}, 1),
		node:     cfg.Node,
		lastErr:  ErrUnstated,
		leaving:  map[int]time.Time{},
		services: map[string]*service{},
		checks:   map[string]*check{},
		orphans:  map[string]*check{},
		facts:    map[string]string{},
	}
	if err := s.load(); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.settleAliases()
	s.changed()
	return s, nil
}

// Watch follows what this host says of itself.
func (s *State) Watch() catalog.Watch[*Host] { return &s.latest }

// Host is what this host says of itself now.
func (s *State) Host() *Host {
	h, _ := s.latest.Get()
	return h
}

// SetNode replaces the row of the node, for changed metadata. Its name cannot change.
func (s *State) SetNode(n *catalog.Node) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n == nil || n.Node != s.node.Node {
		return fmt.Errorf("node %s: %w: a running agent cannot be renamed", s.node.Node, catalog.ErrInvalid)
	}
	s.node = n
	s.changed()
	return nil
}

// Definition gives the definition of a registered check. It must not be changed.
func (s *State) Definition(checkID string) (*catalog.CheckDefinition, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c, ok := s.checks[checkID]
	if !ok {
		return nil, false
	}
	return c.def, true
}

// Token gives the ACL token that a service was registered with.
func (s *State) Token(serviceID string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e, ok := s.services[serviceID]; ok {
		return e.token
	}
	return ""
}

// publish makes memory visible to watchers. s.mu is held.
func (s *State) publish() {
	h := &Host{
		Node:     s.node,
		Services: make(map[string]*catalog.Service, len(s.services)),
		Checks:   make(map[string]*catalog.Check, len(s.checks)),
		Exposed:  s.exposedChecks(),
	}
	for id, e := range s.services {
		h.Services[id] = e.svc
	}
	for id, c := range s.checks {
		h.Checks[id] = c.row
	}
	s.latest.Publish(h)
}

// changed publishes, and tells the servers soon. s.mu is held.
func (s *State) changed() {
	s.publish()
	s.gen++
	poke(s.dirty)
}

// Restate says everything to the servers again, soon: what a statement is made of
// beside this state has changed.
func (s *State) Restate() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.gen++
	poke(s.dirty)
}

func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
