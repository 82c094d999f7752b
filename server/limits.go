package server

import (
	"context"
	"fmt"
	"sync"
	"time"

	"google.golang.org/grpc"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/catalog/wire"
	"github.com/weftmesh/weft/server/rpc"
)

// What one agent may ask of a server at a time, by its node ID and over all its
// connections: it must not be able to keep the server from the others.
const (
	// maxAgentWaits bounds its watches and the reads that wait.
	maxAgentWaits = 8192
	// maxAgentCalls bounds its other requests.
	maxAgentCalls = 512
	// maxAgentPolicies bounds its questions, of the calls, about who enforces a policy:
	// each makes the leader ask all servers again and again.
	maxAgentPolicies = 8
	// maxAgentUnread bounds its requests that have begun and have not arrived,
	// maxAgentReading those of them that are received at a time, and maxAgentBytes what
	// its requests that are under way are long: it decides how slowly they arrive. Those
	// that wait their turn hold a window each.
	maxAgentUnread  = 1024
	maxAgentReading = 16
	maxAgentBytes   = 16 * wire.MaxRequest
	// syncRate and syncBurst bound how often it states its host, a second.
	syncRate  = 20
	syncBurst = 100
)

// limits keep count of what the agents ask.
type limits struct {
	now func() time.Time

	mu     sync.Mutex
	agents map[string]*usage // by node ID, of those that ask something now
	swept  time.Time
}

// usage is what one agent asks.
type usage struct {
	calls, waits, policies int
	begun, unread, bytes   int
	reading                chan struct{} // has room for those that are received at a time
	tokens                 float64
	at                     time.Time
}

func newLimits() *limits { return &limits{now: time.Now, agents: map[string]*usage{}} }

// begin takes a place for a request; the caller gives it back.
func (l *limits) begin(c rpc.Caller, waits bool) (end func(), err error) {
	if waits {
		return l.take(c, func(u *usage) *int { return &u.waits }, maxAgentWaits, "watches and reads that wait")
	}
	return l.take(c, func(u *usage) *int { return &u.calls }, maxAgentCalls, "requests")
}

// take takes one of the places that an agent has of a kind.
func (l *limits) take(c rpc.Caller, kind func(*usage) *int, most int, what string) (end func(), err error) {
	if !counts(c) {
		return func() {}, nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	n := kind(l.of(c.NodeID))
	if *n >= most {
		return nil, wire.ToStatus(fmt.Errorf("%w: %s has %d %s under way here, the most allowed", catalog.ErrUnavailable, c, most, what))
	}
	*n++
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		*n--
		l.sweep()
	}, nil
}

// counts tells whether a caller has an allowance here. Who was passed on has used that
// of another server.
func counts(c rpc.Caller) bool { return c.Agent && !c.Forwarded }

// of gives the usage of an agent, made where there is none.
func (l *limits) of(id string) *usage {
	u := l.agents[id]
	if u == nil {
		u = &usage{tokens: syncBurst, at: l.now(), reading: make(chan struct{}, maxAgentReading)}
		l.agents[id] = u
	}
	return u
}

const (
	// sweepAt is how many agents may be remembered before those that ask nothing are
	// forgotten.
	sweepAt = 1024
	// syncWhole is how long it takes until an allowance is whole again, after which it
	// need not be remembered. All are looked through no more often: those of a large
	// cluster have watches open and stay.
	syncWhole = syncBurst / syncRate * time.Second
)

func (l *limits) sweep() {
	if len(l.agents) < sweepAt {
		return
	}
	now := l.now()
	if now.Sub(l.swept) < syncWhole {
		return
	}
	l.swept = now
	for id, u := range l.agents {
		if u.calls == 0 && u.waits == 0 && u.policies == 0 && u.begun == 0 && now.Sub(u.at) > syncWhole {
			delete(l.agents, id)
		}
	}
}

// sync takes a statement from an agent's allowance.
func (l *limits) sync(c rpc.Caller) error {
	if !counts(c) {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	u, now := l.of(c.NodeID), l.now()
	u.tokens = min(syncBurst, u.tokens+now.Sub(u.at).Seconds()*syncRate)
	u.at = now
	if u.tokens < 1 {
		return wire.ToStatus(fmt.Errorf("%w: %s states its host more than %d times a second", catalog.ErrUnavailable, c, syncRate))
	}
	u.tokens--
	return nil
}

// calls is a grpc.UnaryServerInterceptor.
func (l *limits) calls(ctx context.Context, req any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	caller := rpc.CallerOf(ctx)
	waits := false
	switch r := req.(type) {
	case *wire.ReadRequest:
		waits = r.MinIndex > 0
	case *wire.SyncRequest:
		if err := l.sync(caller); err != nil {
			return nil, err
		}
	case *wire.EnforcedRequest:
		end, err := l.take(caller, func(u *usage) *int { return &u.policies }, maxAgentPolicies, "questions about who enforces a policy")
		if err != nil {
			return nil, err
		}
		defer end()
	}
	end, err := l.begin(caller, waits)
	if err != nil {
		return nil, err
	}
	defer end()
	return next(ctx, req)
}

// streams is a grpc.StreamServerInterceptor.
func (l *limits) streams(srv any, stream grpc.ServerStream, _ *grpc.StreamServerInfo, next grpc.StreamHandler) error {
	caller := rpc.CallerOf(stream.Context())
	a, err := l.arrive(caller)
	if err != nil {
		return err
	}
	defer a.end()
	end, err := l.begin(caller, true)
	if err != nil {
		return err
	}
	defer end()
	return next(srv, &arriving{stream, a})
}
