package server

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"net"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/catalog/wire"
	"github.com/weftmesh/weft/connect/enroll"
	"github.com/weftmesh/weft/server/rpc"
)

// forwardedKey marks, in the metadata of a request, that a server passes it on.
const forwardedKey = "weft-forwarded"

// forKey says, beside it, for which agent, so that the leader judges it too: what the
// server that passes on knows of who lives may be old.
const forKey = "weft-for-bin"

// forAgent is the value of forKey.
type forAgent struct{ Node, NodeID string }

// passOn marks what a server sends to another one as passed on, and for whom.
func passOn(ctx context.Context) (context.Context, error) {
	md := []string{forwardedKey, "1"}
	if c := rpc.CallerOf(ctx); c.Agent {
		b, err := json.Marshal(forAgent{c.Node, c.NodeID})
		if err != nil {
			return nil, fmt.Errorf("server: %w", err)
		}
		md = append(md, forKey, string(b))
	}
	return metadata.AppendToOutgoingContext(ctx, md...), nil
}

// passedOn gives who asks by a server's connection: the server itself, or the agent for
// which it passes on. Calls among servers are never an agent's.
func passedOn(ctx context.Context, server rpc.Caller, method string) (rpc.Caller, error) {
	server.Forwarded = len(metadata.ValueFromIncomingContext(ctx, forwardedKey)) > 0
	said := metadata.ValueFromIncomingContext(ctx, forKey)
	if !server.Forwarded || len(said) == 0 || strings.HasPrefix(method, wire.PeersPrefix) {
		return server, nil
	}
	var a forAgent
	if err := json.Unmarshal([]byte(said[0]), &a); err != nil || len(said) > 1 || a.Node == "" || a.NodeID == "" {
		return server, fmt.Errorf("%w: %s does not say for whom it passes on %s", catalog.ErrDenied, server, method)
	}
	return rpc.Caller{Agent: true, Node: a.Node, NodeID: a.NodeID, Forwarded: true}, nil
}

// proved are gRPC's credentials for connections whose handshake is done before gRPC
// sees them, and for those from inside the process.
type proved struct{ leases *leases }

var _ credentials.TransportCredentials = proved{}

// callerInfo is who is at the other end of a connection.
type callerInfo struct {
	credentials.CommonAuthInfo
	caller rpc.Caller
}

// AuthType implements credentials.AuthInfo.
func (callerInfo) AuthType() string { return "weft" }

// ServerHandshake implements credentials.TransportCredentials.
func (p proved) ServerHandshake(c net.Conn) (net.Conn, credentials.AuthInfo, error) {
	info := callerInfo{CommonAuthInfo: credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity}}
	if _, ok := c.(pipeConn); ok {
		return c, info, nil
	}
	tc, ok := c.(*tls.Conn)
	if !ok {
		return nil, nil, fmt.Errorf("server: a %T has proved nothing", c)
	}
	peer, err := enroll.PeerOf(tc.ConnectionState())
	if err != nil {
		return nil, nil, fmt.Errorf("server: %w", err)
	}
	info.caller = rpc.Caller{
		Server: peer.Role == enroll.RoleServer, Agent: peer.Role == enroll.RoleAgent, Node: peer.Node, NodeID: peer.NodeID,
	}
	if !info.caller.Server && !info.caller.Agent {
		return nil, nil, fmt.Errorf("server: %s may not call", peer)
	}
	return p.leases.track(c, info.caller), info, nil
}

// ClientHandshake implements credentials.TransportCredentials.
func (proved) ClientHandshake(context.Context, string, net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, fmt.Errorf("server: these credentials are for servers")
}

// Info implements credentials.TransportCredentials.
func (proved) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "weft"}
}

// Clone implements credentials.TransportCredentials.
func (p proved) Clone() credentials.TransportCredentials { return p }

// OverrideServerName implements credentials.TransportCredentials.
func (proved) OverrideServerName(string) error { return nil }

// identified gives a request's context its Caller, and refuses what is not for it.
func identified(ctx context.Context, method string) (context.Context, error) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return nil, wire.ToStatus(fmt.Errorf("%w: nobody calls", catalog.ErrDenied))
	}
	info, ok := p.AuthInfo.(callerInfo)
	if !ok {
		return nil, wire.ToStatus(fmt.Errorf("%w: the caller has proved nothing", catalog.ErrDenied))
	}
	caller := info.caller
	if strings.HasPrefix(method, wire.PeersPrefix) && !caller.Server {
		return nil, wire.ToStatus(fmt.Errorf("%w: %s is for servers, this is %s", catalog.ErrDenied, method, caller))
	}
	if caller.Server {
		var err error
		if caller, err = passedOn(ctx, caller, method); err != nil {
			return nil, wire.ToStatus(err)
		}
	}
	return rpc.WithCaller(ctx, caller), nil
}

func identifyStreams(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) error {
	ctx, err := identified(stream.Context(), info.FullMethod)
	if err != nil {
		return err
	}
	return next(srv, &streamUntil{stream, ctx})
}
