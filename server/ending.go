package server

import (
	"context"
	"fmt"

	"google.golang.org/grpc"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/catalog/wire"
)

var errStopping = fmt.Errorf("this server stops: %w", catalog.ErrUnavailable)

// ending ends the watches and reads that wait, which would never end by
// themselves, when the server stops. Other requests are let end.
type ending struct {
	ctx    context.Context
	cancel context.CancelCauseFunc
}

func newEnding() ending {
	ctx, cancel := context.WithCancelCause(context.Background())
	return ending{ctx: ctx, cancel: cancel}
}

func (e ending) begin() { e.cancel(errStopping) }

// reads is a grpc.UnaryServerInterceptor.
func (e ending) reads(ctx context.Context, req any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	switch req.(type) {
	case *wire.ReadRequest, *wire.EnforcedRequest:
	default:
		return next(ctx, req)
	}
	ctx, cancel := e.until(ctx)
	defer cancel()
	return next(ctx, req)
}

// streams is a grpc.StreamServerInterceptor.
func (e ending) streams(srv any, stream grpc.ServerStream, _ *grpc.StreamServerInfo, next grpc.StreamHandler) error {
	ctx, cancel := e.until(stream.Context())
	defer cancel()
	return next(srv, &streamUntil{stream, ctx})
}

func (e ending) until(ctx context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(e.ctx, func() { cancel(errStopping) })
	return ctx, func() { stop(); cancel(nil) }
}

// streamUntil is a stream with another context.
type streamUntil struct {
	grpc.ServerStream
	ctx context.Context
}

// Context implements grpc.ServerStream.
func (s *streamUntil) Context() context.Context { return s.ctx }
