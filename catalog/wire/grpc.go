package wire

import (
	"context"
	"errors"
	"fmt"
	"io"

	"google.golang.org/grpc"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/mem"

	"github.com/weftmesh/weft/catalog"
)

// CodecName is the content-subtype of our encoding ("application/grpc+weft").
const CodecName = "weft"

const serviceName = "weft.Servers"

// gRPC finds codecs of incoming calls in its own table, which it allows to be
// filled during init only.
func init() { encoding.RegisterCodecV2(grpcCodec{}) }

type grpcCodec struct{}

func (grpcCodec) Name() string { return CodecName }

// Marshal implements encoding.CodecV2. The part that is a shared view is handed
// on as it is, without a copy.
func (grpcCodec) Marshal(v any) (mem.BufferSlice, error) {
	head, view, err := split(v)
	if err != nil {
		return nil, err
	}
	out := mem.BufferSlice{mem.SliceBuffer(head)}
	if len(view) > 0 {
		out = append(out, mem.SliceBuffer(view))
	}
	return out, nil
}

// Received is a message to be decoded, of which the length on the wire is wanted too.
type Received struct {
	Message any
	Size    int
}

// Unmarshal implements encoding.CodecV2.
func (grpcCodec) Unmarshal(data mem.BufferSlice, v any) error {
	if r, is := v.(*Received); is {
		r.Size, v = data.Len(), r.Message
	}
	buf := data.MaterializeToBuffer(mem.DefaultBufferPool())
	defer buf.Free() // decoded values own their memory
	return Unmarshal(buf.ReadOnlyData(), v)
}

// description is the gRPC service of Servers.
var description = grpc.ServiceDesc{
	ServiceName: serviceName,
	HandlerType: (*Servers)(nil),
	Methods: []grpc.MethodDesc{
		unary("Sync", Servers.Sync),
		unary("Apply", Servers.Apply),
		unary("Read", Servers.Read),
		unary("Sign", Servers.Sign),
		unary("SetCAConfig", Servers.SetCAConfig),
		unary("Txn", Servers.Txn),
		unary("RenewSession", Servers.RenewSession),
		unary("Status", Servers.Status),
	},
	Streams: []grpc.StreamDesc{{StreamName: "Watch", Handler: handleWatch, ServerStreams: true}},
}

// Register offers impl to the clients of s.
func Register(s grpc.ServiceRegistrar, impl Servers) { s.RegisterService(&description, impl) }

func unary[Req, Rep any](name string, call func(Servers, context.Context, *Req) (*Rep, error)) grpc.MethodDesc {
	return unaryOf(serviceName, name, call)
}

func unaryOf[Impl, Req, Rep any](service, name string, call func(Impl, context.Context, *Req) (*Rep, error)) grpc.MethodDesc {
	return grpc.MethodDesc{
		MethodName: name,
		Handler: func(srv any, ctx context.Context, dec func(any) error, ic grpc.UnaryServerInterceptor) (any, error) {
			req := new(Req)
			if err := dec(req); err != nil {
				return nil, err
			}
			handle := func(ctx context.Context, req any) (any, error) {
				rep, err := call(srv.(Impl), ctx, req.(*Req))
				if err != nil {
					return nil, ToStatus(err)
				}
				return rep, nil
			}
			if ic == nil {
				return handle(ctx, req)
			}
			return ic(ctx, req, &grpc.UnaryServerInfo{Server: srv, FullMethod: methodOf(service, name)}, handle)
		},
	}
}

func method(name string) string { return methodOf(serviceName, name) }

func methodOf(service, name string) string { return "/" + service + "/" + name }

func handleWatch(srv any, stream grpc.ServerStream) error {
	req := new(WatchRequest)
	if err := stream.RecvMsg(req); err != nil {
		return err
	}
	send := func(e *WatchEvent) error { return stream.SendMsg(e) }
	return ToStatus(srv.(Servers).Watch(stream.Context(), req, send))
}

// NewClient returns the client side: Servers over a connection. It is as safe for
// concurrent use as cc.
func NewClient(cc grpc.ClientConnInterface) Servers { return &client{cc: cc} }

type client struct{ cc grpc.ClientConnInterface }

var callOptions = []grpc.CallOption{
	grpc.CallContentSubtype(CodecName),
	grpc.MaxCallRecvMsgSize(MaxReply),
	grpc.MaxCallSendMsgSize(MaxRequest),
}

func invoke[Rep any](ctx context.Context, cc grpc.ClientConnInterface, name string, req any) (*Rep, error) {
	return invokeOf[Rep](ctx, cc, serviceName, name, req)
}

func invokeOf[Rep any](ctx context.Context, cc grpc.ClientConnInterface, service, name string, req any) (*Rep, error) {
	rep := new(Rep)
	if err := cc.Invoke(ctx, methodOf(service, name), req, rep, callOptions...); err != nil {
		return nil, FromStatus(err)
	}
	return rep, nil
}

// Sync implements Servers.
func (c *client) Sync(ctx context.Context, req *SyncRequest) (*SyncReply, error) {
	return invoke[SyncReply](ctx, c.cc, "Sync", req)
}

// Apply implements Servers.
func (c *client) Apply(ctx context.Context, req *ApplyRequest) (*ApplyReply, error) {
	return invoke[ApplyReply](ctx, c.cc, "Apply", req)
}

// Read implements Servers.
func (c *client) Read(ctx context.Context, req *ReadRequest) (*ReadReply, error) {
	return invoke[ReadReply](ctx, c.cc, "Read", req)
}

// Sign implements Servers.
func (c *client) Sign(ctx context.Context, req *SignRequest) (*SignReply, error) {
	return invoke[SignReply](ctx, c.cc, "Sign", req)
}

// SetCAConfig implements Servers.
func (c *client) SetCAConfig(ctx context.Context, req *SetCAConfigRequest) (*SetCAConfigReply, error) {
	return invoke[SetCAConfigReply](ctx, c.cc, "SetCAConfig", req)
}

// Txn implements Servers.
func (c *client) Txn(ctx context.Context, req *TxnRequest) (*TxnReply, error) {
	return invoke[TxnReply](ctx, c.cc, "Txn", req)
}

// RenewSession implements Servers.
func (c *client) RenewSession(ctx context.Context, req *RenewSessionRequest) (*RenewSessionReply, error) {
	return invoke[RenewSessionReply](ctx, c.cc, "RenewSession", req)
}

// Status implements Servers.
func (c *client) Status(ctx context.Context, req *StatusRequest) (*StatusReply, error) {
	return invoke[StatusReply](ctx, c.cc, "Status", req)
}

// Watch implements Servers. It returns the error of send, or that of the stream;
// a stream that the server ends without one is ErrUnavailable.
func (c *client) Watch(ctx context.Context, req *WatchRequest, send func(*WatchEvent) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // ends the stream in whatever state it is
	stream, err := c.cc.NewStream(ctx, &description.Streams[0], method("Watch"), callOptions...)
	if err != nil {
		return FromStatus(err)
	}
	// After a failed send the reason is in RecvMsg.
	if err := stream.SendMsg(req); err != nil && !errors.Is(err, io.EOF) {
		return FromStatus(err)
	}
	if err := stream.CloseSend(); err != nil {
		return FromStatus(err)
	}
	for {
		e := new(WatchEvent)
		if err := stream.RecvMsg(e); err != nil {
			if errors.Is(err, io.EOF) {
				return fmt.Errorf("watch %s: %w: the server ended the stream", req.Query, catalog.ErrUnavailable)
			}
			return FromStatus(err)
		}
		if err := send(e); err != nil {
			return err
		}
	}
}
