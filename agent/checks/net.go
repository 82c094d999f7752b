package checks

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"time"

	"golang.org/x/net/http2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/weftmesh/weft/catalog"
)

// tcpProbe connects, shakes hands where TLS is asked for, and hangs up.
func tcpProbe(def *catalog.CheckDefinition, base *tls.Config) probe {
	return func(ctx context.Context) (catalog.Status, string) {
		conn, err := dial(ctx, def, base, def.TCP, def.TCPUseTLS)
		if err != nil {
			return catalog.StatusCritical, err.Error()
		}
		_ = conn.Close() // nothing was sent
		return catalog.StatusPassing, fmt.Sprintf("TCP connect %s: Success", def.TCP)
	}
}

func dial(ctx context.Context, def *catalog.CheckDefinition, base *tls.Config, addr string, useTLS bool, protos ...string) (net.Conn, error) {
	if !useTLS {
		return (&net.Dialer{}).DialContext(ctx, "tcp", addr)
	}
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	cfg := tlsConfig(def, base, host)
	cfg.NextProtos = protos
	return (&tls.Dialer{Config: cfg}).DialContext(ctx, "tcp", addr)
}

// udpProbe sends a datagram. Silence passes, since most protocols do not answer
// what they do not know; a refusal by ICMP is critical.
func udpProbe(def *catalog.CheckDefinition) probe {
	return func(ctx context.Context) (catalog.Status, string) {
		conn, err := (&net.Dialer{}).DialContext(ctx, "udp", def.UDP)
		if err != nil {
			return catalog.StatusCritical, err.Error()
		}
		defer conn.Close()
		stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
		defer stop()
		if _, err := conn.Write([]byte(UserAgent)); err != nil {
			return catalog.StatusCritical, fmt.Sprintf("UDP write %s: %v", def.UDP, err)
		}
		var buf [1]byte
		_, err = conn.Read(buf[:])
		if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			return catalog.StatusCritical, fmt.Sprintf("UDP read %s: %v", def.UDP, err)
		}
		return catalog.StatusPassing, fmt.Sprintf("UDP connect %s: Success", def.UDP)
	}
}

// grpcProbe asks the health service of gRPC, "host:port" or "host:port/service".
func grpcProbe(def *catalog.CheckDefinition, base *tls.Config) probe {
	target, service, _ := strings.Cut(def.GRPC, "/")
	creds := insecure.NewCredentials()
	if def.GRPCUseTLS {
		creds = credentials.NewTLS(tlsConfig(def, base, ""))
	}
	return func(ctx context.Context) (catalog.Status, string) {
		fail := func(err error) (catalog.Status, string) {
			return catalog.StatusCritical, fmt.Sprintf("gRPC check %s: %v", def.GRPC, err)
		}
		conn, err := grpc.NewClient("passthrough:///"+target,
			grpc.WithTransportCredentials(creds), grpc.WithUserAgent(UserAgent), grpc.WithNoProxy())
		if err != nil {
			return fail(err)
		}
		defer func() { _ = conn.Close() }()
		reply, err := healthpb.NewHealthClient(conn).Check(ctx, &healthpb.HealthCheckRequest{Service: service})
		if err != nil {
			return fail(err)
		}
		if reply.GetStatus() != healthpb.HealthCheckResponse_SERVING {
			return fail(fmt.Errorf("the service says %s", reply.GetStatus()))
		}
		return catalog.StatusPassing, fmt.Sprintf("gRPC check %s: success", def.GRPC)
	}
}

// h2pingProbe opens an HTTP/2 connection and sends a PING frame.
func h2pingProbe(def *catalog.CheckDefinition, base *tls.Config) probe {
	return func(ctx context.Context) (catalog.Status, string) {
		conn, err := dial(ctx, def, base, def.H2PING, def.H2PingUseTLS, http2.NextProtoTLS)
		if err != nil {
			return catalog.StatusCritical, fmt.Sprintf("HTTP2 connect %s: %v", def.H2PING, err)
		}
		defer conn.Close()
		//nolint:staticcheck // the replacement wants a dialled http.Transport; this takes the connection that we checked
		client, err := (&http2.Transport{}).NewClientConn(conn)
		if err == nil {
			err = client.Ping(ctx)
			_ = client.Close() // one ping is all it was for
		}
		if err != nil {
			return catalog.StatusCritical, fmt.Sprintf("HTTP2 ping %s: %v", def.H2PING, err)
		}
		return catalog.StatusPassing, "HTTP2 ping was successful"
	}
}
