package server

import (
	"context"
	"fmt"
	"slices"

	"google.golang.org/grpc"
	"google.golang.org/grpc/status"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/catalog/wire"
	"github.com/weftmesh/weft/server/rpc"
)

// arrival is a request from its first word to its end.
type arrival struct {
	limits *limits
	agent  rpc.Caller
	usage  *usage // nil: it is not counted
	read   bool
	size   int
}

// arrive takes a place for a request before anything of it is received; the caller
// calls end.
func (l *limits) arrive(c rpc.Caller) (*arrival, error) {
	a := &arrival{limits: l, agent: c}
	if !counts(c) {
		return a, nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	u := l.of(c.NodeID)
	if u.unread >= maxAgentUnread {
		return nil, wire.ToStatus(fmt.Errorf("%w: %s has begun %d requests here that have not arrived, the most allowed", catalog.ErrUnavailable, c, maxAgentUnread))
	}
	a.usage = u
	u.begun++
	u.unread++
	return a, nil
}

// receive has a message received when it is its turn.
func (a *arrival) receive(ctx context.Context, message any, recv func(any) error) error {
	if a.usage == nil {
		return recv(message)
	}
	select {
	case a.usage.reading <- struct{}{}:
	case <-ctx.Done():
		return status.FromContextError(ctx.Err()).Err()
	}
	defer func() { <-a.usage.reading }()
	m := &wire.Received{Message: message}
	if err := recv(m); err != nil {
		return err
	}
	return a.keep(m.Size)
}

// keep counts the message that arrived last.
func (a *arrival) keep(size int) error {
	a.limits.mu.Lock()
	defer a.limits.mu.Unlock()
	if !a.read {
		a.read = true
		a.usage.unread--
	}
	if a.usage.bytes+size-a.size > maxAgentBytes {
		return wire.ToStatus(fmt.Errorf("%w: the requests of %s that are under way here are longer than %d bytes together", catalog.ErrUnavailable, a.agent, maxAgentBytes))
	}
	a.usage.bytes += size - a.size
	a.size = size
	return nil
}

func (a *arrival) end() {
	if a.usage == nil {
		return
	}
	a.limits.mu.Lock()
	defer a.limits.mu.Unlock()
	if !a.read {
		a.usage.unread--
	}
	a.usage.begun--
	a.usage.bytes -= a.size
	a.limits.sweep()
}

// counting registers services whose callers are known and counted before anything of
// their requests is received.
type counting struct {
	grpc.ServiceRegistrar
	agents *limits
}

// RegisterService implements grpc.ServiceRegistrar. Streams have an interceptor, which
// comes early enough.
func (r counting) RegisterService(desc *grpc.ServiceDesc, impl any) {
	d := *desc
	d.Methods = slices.Clone(d.Methods)
	for i := range d.Methods {
		m := &d.Methods[i]
		handle, method := m.Handler, "/"+d.ServiceName+"/"+m.MethodName
		m.Handler = func(srv any, ctx context.Context, dec func(any) error, chain grpc.UnaryServerInterceptor) (any, error) {
			ctx, err := identified(ctx, method)
			if err != nil {
				return nil, err
			}
			a, err := r.agents.arrive(rpc.CallerOf(ctx))
			if err != nil {
				return nil, err
			}
			defer a.end()
			return handle(srv, ctx, func(req any) error { return a.receive(ctx, req, dec) }, chain)
		}
	}
	r.ServiceRegistrar.RegisterService(&d, impl)
}

// arriving is a stream whose messages are received when it is their turn.
type arriving struct {
	grpc.ServerStream
	arrival *arrival
}

// RecvMsg implements grpc.ServerStream.
func (s *arriving) RecvMsg(m any) error {
	return s.arrival.receive(s.Context(), m, s.ServerStream.RecvMsg)
}
