package events

import (
	"context"
	"fmt"
	"log/slog"
	"regexp"
	"slices"
	"sync"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/catalog/wire"
)

const (
	// maxKept is how many events are kept for those who ask.
	maxKept = 256
	// maxSeen is how many IDs are remembered, so that gossip may bring an event often.
	maxSeen = 4096
	// maxMessage bounds an encoded event: what it carries, and the names of its fields.
	maxMessage = catalog.MaxEvent + 256
)

// Courier carries messages to the agents of all other hosts (agent/gossip).
type Courier interface {
	// Send spreads a message. The name tells messages apart.
	Send(name string, msg []byte) error
	// Received gives the messages of others.
	Received() <-chan []byte
}

// Config configures Events.
type Config struct {
	// NodeName is the name of this host, for events with a filter for nodes.
	NodeName string
	// Services gives the services of this host, for those with a filter for services.
	Services func() map[string]*catalog.Service
	// Courier reaches the other hosts. Nil: there are none.
	Courier Courier

	Logger     *slog.Logger
	Registerer prometheus.Registerer // nil: no metrics
}

// Events are the user events of this host.
type Events struct {
	cfg    Config
	log    *slog.Logger
	latest catalog.Latest[[]*catalog.UserEvent]
	heard  prometheus.Counter

	mu    sync.Mutex
	clock uint64 // Lamport time
	seen  map[string]bool
	order []string // of seen, the oldest first
	kept  []*catalog.UserEvent
}

// New makes Events without any.
func New(cfg Config) (*Events, error) {
	if cfg.NodeName == "" {
		return nil, fmt.Errorf("events: %w: the node has no name", catalog.ErrInvalid)
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Services == nil {
		cfg.Services = func() map[string]*catalog.Service { return nil }
	}
	e := &Events{
		cfg: cfg, log: cfg.Logger, clock: 1, seen: map[string]bool{},
		heard: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "weft_user_events_total", Help: "User events that this host was meant to hear.",
		}),
	}
	e.latest.Publish([]*catalog.UserEvent{})
	if cfg.Registerer != nil {
		if err := cfg.Registerer.Register(e.heard); err != nil {
			return nil, fmt.Errorf("events: %w", err)
		}
	}
	return e, nil
}

// Run takes the events of other hosts until ctx ends.
func (e *Events) Run(ctx context.Context) error {
	var received <-chan []byte
	if e.cfg.Courier != nil {
		received = e.cfg.Courier.Received()
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case msg := <-received:
			e.receive(msg)
		}
	}
}

// Watch gives the events kept, the oldest first, each time there is a new one.
func (e *Events) Watch() catalog.Watch[[]*catalog.UserEvent] { return &e.latest }

// Fire gives an event its ID and its time and sends it to every host, this one
// included.
func (e *Events) Fire(_ context.Context, ev *catalog.UserEvent) error {
	if err := ev.Validate(); err != nil {
		return err
	}
	ev.ID = uuid.NewString()
	e.mu.Lock()
	e.clock++
	ev.LTime = e.clock
	e.mu.Unlock()
	own := *ev
	if e.cfg.Courier != nil {
		msg, err := wire.Marshal(&own)
		if err != nil {
			return err
		}
		if err := e.cfg.Courier.Send(own.ID, msg); err != nil {
			return fmt.Errorf("event %s: %w", ev.Name, err)
		}
	}
	e.take(&own)
	return nil
}

// receive takes a message of another host, which may hold anything.
func (e *Events) receive(msg []byte) {
	if len(msg) > maxMessage {
		e.log.Debug("an event was dropped", "reason", "it is too large")
		return
	}
	ev := &catalog.UserEvent{}
	if err := wire.Unmarshal(msg, ev); err != nil {
		e.log.Debug("an event was dropped", "err", err)
		return
	}
	if _, err := uuid.Parse(ev.ID); err != nil || len(ev.ID) != len(uuid.Nil.String()) {
		e.log.Debug("an event was dropped", "reason", "its ID is no UUID")
		return
	}
	if err := ev.Validate(); err != nil || ev.Version > catalog.EventVersion {
		e.log.Debug("an event was dropped", "err", err, "reason", "it is wrong, or of a later version")
		return
	}
	e.take(ev)
}

// take keeps an event that is new and meant for this host.
func (e *Events) take(ev *catalog.UserEvent) {
	wanted := e.meant(ev)
	e.mu.Lock()
	defer e.mu.Unlock()
	// A time far ahead is a mistake or worse: the clock follows by steps.
	if ev.LTime > e.clock {
		e.clock = min(ev.LTime, e.clock+1<<20)
	}
	if e.seen[ev.ID] {
		return
	}
	e.seen[ev.ID] = true
	e.order = append(e.order, ev.ID)
	if len(e.order) > maxSeen {
		delete(e.seen, e.order[0])
		e.order = slices.Delete(e.order, 0, 1)
	}
	if !wanted {
		return
	}
	kept := append(slices.Clone(e.kept), ev)
	if len(kept) > maxKept {
		kept = kept[1:]
	}
	e.kept = kept
	e.heard.Inc()
	e.log.Debug("user event", "id", ev.ID, "reason", ev.Name)
	e.latest.Publish(kept)
}

// meant tells whether the filters of an event match this host.
func (e *Events) meant(ev *catalog.UserEvent) bool {
	node, service, tag := matcher(ev.NodeFilter), matcher(ev.ServiceFilter), matcher(ev.TagFilter)
	if !node(e.cfg.NodeName) {
		return false
	}
	if ev.ServiceFilter == "" {
		return true
	}
	for _, s := range e.cfg.Services() {
		if service(s.Service) && (ev.TagFilter == "" || slices.ContainsFunc(s.Tags, tag)) {
			return true
		}
	}
	return false
}

// matcher gives what an expression matches; an empty one, everything.
func matcher(expr string) func(string) bool {
	if expr == "" {
		return func(string) bool { return true }
	}
	re, err := regexp.Compile(expr)
	if err != nil {
		return func(string) bool { return false }
	}
	return re.MatchString
}
