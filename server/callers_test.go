package server

import (
	"context"
	"errors"
	"testing"

	"google.golang.org/grpc/metadata"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/catalog/wire"
	"github.com/weftmesh/weft/server/rpc"
)

// TestPassedOn: the leader judges the agent that asked, whatever server passed it on; no
// agent can say that it asks for another one, and a server alone asks as itself.
func TestPassedOn(t *testing.T) {
	agent := rpc.Caller{Agent: true, Node: "a1", NodeID: "id1"}
	server := rpc.Caller{Server: true, Node: "s1", NodeID: "id2"}
	sent := func(c rpc.Caller) context.Context {
		ctx, err := passOn(rpc.WithCaller(t.Context(), c))
		if err != nil {
			t.Fatal(err)
		}
		md, _ := metadata.FromOutgoingContext(ctx)
		return metadata.NewIncomingContext(t.Context(), md)
	}
	const method = "/weft.Servers/Apply"
	passed := server
	passed.Forwarded = true
	asAgent := agent
	asAgent.Forwarded = true
	for name, c := range map[string]struct {
		ctx    context.Context
		method string
		want   rpc.Caller
	}{
		"an agent's call":          {sent(agent), method, asAgent},
		"this process's call":      {sent(rpc.Caller{}), method, passed},
		"a call among servers":     {sent(agent), wire.PeersPrefix + "ReadIndex", passed},
		"a call of its own":        {t.Context(), method, server},
		"for somebody, not passed": {metadata.NewIncomingContext(t.Context(), metadata.Pairs(forKey, `{"Node":"a1","NodeID":"id1"}`)), method, server},
	} {
		if got, err := passedOn(c.ctx, server, c.method); err != nil || got != c.want {
			t.Errorf("%s: %+v, %v; want %+v", name, got, err, c.want)
		}
	}
	for _, said := range [][]string{{""}, {"x"}, {`{"Node":"a1"}`}, {`{"NodeID":"id1"}`}, {`{"Node":"a1","NodeID":"id1"}`, `{"Node":"a2","NodeID":"id1"}`}} {
		md := metadata.Pairs(forwardedKey, "1")
		md[forKey] = said
		if _, err := passedOn(metadata.NewIncomingContext(t.Context(), md), server, method); !errors.Is(err, catalog.ErrDenied) {
			t.Errorf("%q: %v", said, err)
		}
	}
}
