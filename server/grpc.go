package server

import (
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"

	"github.com/weftmesh/weft/catalog/wire"
	"github.com/weftmesh/weft/server/rpc"
)

const (
	// maxStreams bounds the requests of one connection that are under way. It is above
	// what an agent may have, so that it is told and does not wait for ever.
	maxStreams = 2 * (maxAgentWaits + maxAgentCalls)
	// maxHeaders bounds what a request says beside its message.
	maxHeaders = 16 << 10
	// window is what a request may send before it is received, the least that gRPC knows,
	// and connWindow what a connection may send ahead, which is read at once.
	window     = 64 << 10
	connWindow = 1 << 20
)

// newGRPC makes the server that agents and other servers ask.
func newGRPC(s *Server) (*grpc.Server, error) {
	rc := rpc.Config{
		Store: s.store, Log: s.raft, CA: s.authority, Introduce: s.leader.members.introduce, CaughtUp: s.raft.CaughtUp,
		Sessions: s.leader.expiry, Stats: func() map[string]map[string]string { return statsOf(s) }, Logger: s.log, Registerer: s.cfg.Registerer,
		Limits: rpc.Limits{MinSessionTTL: s.cfg.MinSessionTTL},
	}
	oc := rpc.OperatorConfig{
		Raft: operated{s.raft, s.leader.autopilot}, Names: s.leader.autopilot.name, Autopilot: s.leader.autopilot.state, Restored: s.leader.begun,
		Recover: recoverBy(s.raft, s.cfg.NodeID),
	}
	var pc rpc.PoliciesConfig
	if c := s.cluster; c != nil {
		pc = c.policies()
		rc.CaughtUp, rc.LeaderIndex = c.caughtUp, c.reads.Index
		servers, operators := wire.NewClient(leaderConn{c}), wire.NewOperatorsClient(leaderConn{c})
		rc.Forward = func(string) (wire.Servers, error) { return servers, nil }
		oc.Forward = func(string) (wire.Operators, error) { return operators, nil }
	}
	h, err := rpc.New(rc)
	if err != nil {
		return nil, err
	}
	oc.Handler = h
	op, err := rpc.NewOperator(oc)
	if err != nil {
		return nil, err
	}
	agents := newLimits()
	pc.Handler = h
	policies, err := rpc.NewPolicies(pc)
	if err != nil {
		return nil, err
	}
	out := grpc.NewServer(
		grpc.Creds(proved{leasesOf(s)}),
		grpc.MaxRecvMsgSize(wire.MaxRequest),
		grpc.MaxSendMsgSize(wire.MaxReply),
		grpc.MaxConcurrentStreams(maxStreams),
		grpc.MaxHeaderListSize(maxHeaders),
		grpc.StaticStreamWindowSize(window), grpc.StaticConnWindowSize(connWindow),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true}),
		// A host that fell silent is to be known as such within 5 s, its probes included.
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: wire.PingEvery, Timeout: 2 * time.Second}),
		grpc.ChainUnaryInterceptor(agents.calls, s.requests.calls, s.ending.reads),
		grpc.ChainStreamInterceptor(identifyStreams, agents.streams, s.ending.streams),
	)
	in := counting{out, agents}
	wire.Register(in, h)
	wire.RegisterOperators(in, op)
	wire.RegisterPolicies(in, policies)
	if c := s.cluster; c != nil {
		wire.RegisterPeers(in, &peerService{self: c.self, raft: s.raft, founding: c.founding, dismissed: c.dismissed, lost: s.leader.lost})
	}
	return out, nil
}

// leasesOf are those of the agents that are connected to this server; nil where
// none can be.
func leasesOf(s *Server) *leases {
	c := s.cluster
	if c == nil {
		return nil
	}
	c.leases.lost = func(node, id string) {
		if !s.leader.lost(node, id) {
			c.tellLost(node, id)
		}
	}
	return c.leases
}

// explainServing says why a listener is served no more; nil when it was stopped.
func explainServing(err error) error {
	if err == nil || errors.Is(err, grpc.ErrServerStopped) {
		err = context.Canceled
	}
	return fmt.Errorf("server: serving RPC: %w", err)
}
