package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"github.com/google/uuid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"

	"github.com/weftmesh/weft/catalog/store"
	"github.com/weftmesh/weft/catalog/wire"
	"github.com/weftmesh/weft/server/consensus"
	"github.com/weftmesh/weft/server/rpc"
)

// stopGrace is how long requests that are under way may take to end.
const stopGrace = 5 * time.Second

// markFile says in the data directory that this server has a log, so that it does
// not begin an empty cluster when that is lost.
const markFile = "raft-id"

// Server is one control-plane server.
type Server struct {
	cfg       Config
	log       *slog.Logger
	store     *store.Store
	raft      *consensus.Node
	authority *authority
	grpc      *grpc.Server
	pipe      *pipeListener
	leader    *leader

	ending   ending
	closed   sync.Once
	closeErr error
}

// ErrStorage is wrapped by the error of Run when the disk failed under the log.
var ErrStorage = consensus.ErrStorage

// New validates the configuration, opens what is on disk and starts to take part
// in Raft. The caller calls Run, or Close when it changed its mind.
func New(cfg Config) (*Server, error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	if cfg.Dev {
		cfg.DataDir = ""
	}
	// What is wrong with the CA's configuration shows at the start and not when a
	// first leaf is wanted.
	if _, _, err := firstConfig(cfg.CA); err != nil {
		return nil, fmt.Errorf("server: CA: %w", err)
	}
	s := &Server{cfg: cfg, log: cfg.Logger, pipe: newPipeListener(), ending: newEnding()}
	if err := s.build(); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// build makes the parts, in the order in which they need each other.
func (s *Server) build() error {
	cfg := s.cfg
	seal, err := openSeal(cfg.DataDir)
	if err != nil {
		return err
	}
	if err := s.openState(); err != nil {
		return err
	}
	s.authority = &authority{
		store: s.store, raft: s.raft, seal: seal, first: cfg.CA, datacenter: cfg.Datacenter, now: time.Now, log: cfg.Logger,
		hint: "restore " + filepath.Join(cfg.DataDir, sealFile) + " from a copy of this data directory, " +
			"or set a new root with `weft connect ca set-config` and ForceWithoutCrossSigning",
	}
	if s.leader, err = newLeader(s); err != nil {
		return err
	}
	h, err := rpc.New(rpc.Config{
		Store: s.store, Log: s.raft, CA: s.authority, Introduce: s.leader.members.introduce, CaughtUp: s.raft.CaughtUp,
		Sessions: s.leader.expiry, Stats: s.stats, Logger: cfg.Logger, Registerer: cfg.Registerer,
		Limits: rpc.Limits{MinSessionTTL: cfg.MinSessionTTL},
	})
	if err != nil {
		return err
	}
	s.grpc = grpc.NewServer(
		grpc.MaxRecvMsgSize(wire.MaxRequest),
		grpc.MaxSendMsgSize(wire.MaxReply),
		// Agents ask every 10 s whether we are alive; those that are gone are let go.
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true}),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: 30 * time.Second, Timeout: 10 * time.Second}),
		grpc.UnaryInterceptor(s.ending.reads),
		grpc.StreamInterceptor(s.ending.streams),
	)
	wire.Register(s.grpc, h)
	policies, err := rpc.NewPolicies(rpc.PoliciesConfig{Handler: h})
	if err != nil {
		return err
	}
	wire.RegisterPolicies(s.grpc, policies)
	op, err := rpc.NewOperator(rpc.OperatorConfig{
		Handler: h, Raft: s.raft, Names: s.leader.autopilot.name, Autopilot: s.leader.autopilot.state, Restored: s.leader.begun,
	})
	if err != nil {
		return err
	}
	wire.RegisterOperators(s.grpc, op)
	if cfg.Registerer == nil {
		return nil
	}
	return cfg.Registerer.Register(stateMetrics{s.store.Counts})
}

// openState makes the store and the Raft node that feeds it.
func (s *Server) openState() (err error) {
	var epoch, dir, mark string
	if s.cfg.DataDir == "" {
		epoch = uuid.NewString() // this history ends with the process
	} else {
		dir, mark = filepath.Join(s.cfg.DataDir, "raft"), filepath.Join(s.cfg.DataDir, markFile)
	}
	s.store, err = store.New(store.Config{Logger: s.log, DefaultIntention: s.cfg.DefaultIntention, Epoch: epoch})
	if err != nil {
		return err
	}
	s.raft, err = consensus.New(consensus.Config{
		NodeID: s.cfg.NodeID, Addr: s.cfg.Addr, DataDir: dir, MarkFile: mark, Bootstrap: s.cfg.Bootstrap || s.cfg.Dev,
		Store: s.store, Timers: s.cfg.Raft, Logger: s.log, Registerer: s.cfg.Registerer,
	})
	return err
}

// Run serves until ctx ends, hands leadership over where there is somebody to
// take it, and closes everything. It returns an error when the server cannot go
// on; the process should end then.
func (s *Server) Run(ctx context.Context) error {
	served := make(chan error, 1)
	go func() { served <- s.grpc.Serve(s.pipe) }()
	leading, endLeading := context.WithCancel(context.Background())
	led := make(chan struct{})
	go func() { defer close(led); s.leader.run(leading) }()
	raftCtx, endRaft := context.WithCancel(context.Background())
	raftDone := make(chan error, 1)
	go func() { raftDone <- s.raft.Run(raftCtx) }()

	var err error
	raftEnded := false
	select {
	case <-ctx.Done():
	case err = <-raftDone:
		raftEnded = true
	case err = <-served:
		err = fmt.Errorf("server: serving RPC: %w", err)
	}
	// In order: no new requests, let those under way end, stop what writes, then Raft.
	s.stopServing()
	endLeading()
	<-led
	endRaft()
	if !raftEnded {
		err = errors.Join(err, <-raftDone)
	}
	return errors.Join(err, s.Close())
}

func (s *Server) stopServing() {
	s.ending.begin()
	_ = s.pipe.Close()
	done := make(chan struct{})
	go func() { defer close(done); s.grpc.GracefulStop() }()
	select {
	case <-done:
	case <-time.After(stopGrace):
		s.log.Warn("requests did not end in time and were cut off")
		s.grpc.Stop()
		<-done
	}
}

// Close releases everything. Run does that by itself; it is for a Server that is
// never run, and safe to call more than once.
func (s *Server) Close() error {
	s.closed.Do(func() {
		s.ending.begin()
		_ = s.pipe.Close()
		if s.grpc != nil {
			s.grpc.Stop()
		}
		if s.raft != nil {
			s.closeErr = s.raft.Close()
		}
		if s.store != nil {
			s.store.Close()
		}
	})
	return s.closeErr
}

// Dial opens a connection to this server from inside the process. It speaks gRPC
// (h2), and is trusted as the process itself is.
func (s *Server) Dial(ctx context.Context) (net.Conn, error) { return s.pipe.Dial(ctx) }

// stats are this server's sections of `weft info`.
func (s *Server) stats() map[string]map[string]string {
	addr, self, _ := s.raft.Leader() // none known is an answer
	return map[string]map[string]string{
		"consul": {
			"server": "true", "bootstrap": strconv.FormatBool(s.cfg.Bootstrap), "known_datacenters": "1",
			"leader": strconv.FormatBool(self), "leader_addr": addr,
		},
		"raft": s.raft.Stats(),
	}
}
