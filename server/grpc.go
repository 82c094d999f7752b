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
	// maxStreams bounds the requests of one connection that are under way.
	maxStreams = 4096
	// maxHeaders bounds what a request says beside its message.
	maxHeaders = 16 << 10
)

// newGRPC makes the server that agents and other servers ask.
func newGRPC(s *Server) (*grpc.Server, error) {
	rc := rpc.Config{
		Store: s.store, Log: s.raft, CA: s.authority, Introduce: s.leader.members.introduce, CaughtUp: s.raft.CaughtUp,
		Sessions: s.leader.expiry, Stats: s.stats, Logger: s.log, Registerer: s.cfg.Registerer,
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
		rc.Forward = func(string) (wire.Servers, error) {
			cc, err := c.leader()
			if err != nil {
				return nil, err
			}
			return wire.NewClient(cc), nil
		}
		oc.Forward = func(string) (wire.Operators, error) {
			cc, err := c.leader()
			if err != nil {
				return nil, err
			}
			return wire.NewOperatorsClient(cc), nil
		}
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
	pc.Handler = h
	policies, err := rpc.NewPolicies(pc)
	if err != nil {
		return nil, err
	}
	out := grpc.NewServer(
		grpc.Creds(proved{}),
		grpc.MaxRecvMsgSize(wire.MaxRequest),
		grpc.MaxSendMsgSize(wire.MaxReply),
		grpc.MaxConcurrentStreams(maxStreams),
		grpc.MaxHeaderListSize(maxHeaders),
		// Agents ask every 10 s whether we are alive; those that are gone are let go.
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true}),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: 30 * time.Second, Timeout: 10 * time.Second}),
		grpc.ChainUnaryInterceptor(identifyCalls, s.ending.reads),
		grpc.ChainStreamInterceptor(identifyStreams, s.ending.streams),
	)
	wire.Register(out, h)
	wire.RegisterOperators(out, op)
	wire.RegisterPolicies(out, policies)
	if c := s.cluster; c != nil {
		wire.RegisterPeers(out, &peerService{self: c.self, raft: s.raft, founding: c.founding, dismissed: c.dismissed})
	}
	return out, nil
}

// explainServing says why a listener is served no more; nil when it was stopped.
func explainServing(err error) error {
	if err == nil || errors.Is(err, grpc.ErrServerStopped) {
		err = context.Canceled
	}
	return fmt.Errorf("server: serving RPC: %w", err)
}
