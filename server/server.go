package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"sync"
	"time"

	"github.com/google/uuid"
	"google.golang.org/grpc"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/catalog/store"
	"github.com/weftmesh/weft/server/consensus"
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
	cluster   *cluster // nil: no other host reaches this server
	requests  *requestLimits

	ending   ending
	closed   sync.Once
	closeErr error
}

// ErrStorage is wrapped by the error of Run when the disk failed under the log.
var ErrStorage = consensus.ErrStorage

// ErrHung is wrapped too where the disk did not finish a write for long.
var ErrHung = consensus.ErrHung

// ErrNewer is wrapped where the log has an entry that this version does not know.
var ErrNewer = consensus.ErrNewer

// New validates the configuration, opens what is on disk and starts to take part
// in Raft. The caller calls Run, or Close when it changed its mind.
func New(cfg Config) (*Server, error) {
	if err := cfg.validate(); err != nil {
		if cfg.Cluster != nil && cfg.Cluster.Listener != nil {
			_ = cfg.Cluster.Listener.Close()
		}
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
	sealed, err := openSeals(cfg)
	if err != nil {
		return err
	}
	if cfg.Cluster != nil {
		if s.cluster, err = newCluster(cfg); err != nil {
			return err
		}
	}
	if err := s.openState(); err != nil {
		return err
	}
	s.authority = &authority{
		store: s.store, raft: s.raft, seal: sealed.now, before: sealed.before, first: cfg.CA,
		datacenter: cfg.Datacenter, now: time.Now, log: cfg.Logger, hint: sealHint(cfg),
	}
	if s.leader, err = newLeader(s); err != nil {
		return err
	}
	if s.requests, err = newRequestLimits(cfg, func() bool { _, self, _ := s.raft.Leader(); return self }); err != nil {
		return err
	}
	if s.grpc, err = newGRPC(s); err != nil {
		return err
	}
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
	bootstrap := s.cfg.Bootstrap || (s.cfg.Dev && s.cfg.Cluster == nil)
	var network *consensus.Network
	var ahead map[catalog.CommandType]func(catalog.Command)
	if s.cluster != nil {
		ahead = map[catalog.CommandType]func(catalog.Command){catalog.CmdRevoke: s.cluster.registrar.foretell}
		network, bootstrap = s.cluster.network(), bootstrap || s.cfg.Cluster.Expect == 1
	}
	s.raft, err = consensus.New(consensus.Config{
		NodeID: s.cfg.NodeID, Addr: s.cfg.Addr, DataDir: dir, MarkFile: mark, Bootstrap: bootstrap, Network: network, Ahead: ahead,
		Store: s.store, Timers: s.cfg.Raft, Log: s.cfg.RaftLog, Logger: s.log, Registerer: s.cfg.Registerer,
	})
	if err == nil && s.cluster != nil {
		s.cluster.enter(s.raft, s.store)
	}
	return err
}

// Run serves until ctx ends, hands leadership over where there is somebody to
// take it, and closes everything. It returns an error when the server cannot go
// on; the process should end then.
func (s *Server) Run(ctx context.Context) error {
	ended := make(chan error, 3) // room for all who send
	go func() { ended <- explainServing(s.grpc.Serve(s.pipe)) }()
	among := s.cluster.start(s.grpc, ended)
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
	case err = <-ended:
	}
	// In order: let another lead, no new requests, let those under way end, stop what
	// writes, then Raft, and the port last, as Raft needs it to the end.
	if err == nil {
		stepDown(s.raft, s.log)
	}
	s.stopServing()
	endLeading()
	<-led
	endRaft()
	if !raftEnded {
		err = errors.Join(err, <-raftDone)
	}
	return errors.Join(err, among(), s.Close())
}

func (s *Server) stopServing() {
	s.ending.begin()
	if s.cluster != nil {
		s.cluster.leases.stop() // that agents lose this server says nothing of them
	}
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
		if s.cluster != nil {
			s.cluster.close()
		} else if s.cfg.Cluster != nil {
			_ = s.cfg.Cluster.Listener.Close()
		}
	})
	return s.closeErr
}

// Dial opens a connection to this server from inside the process. It speaks gRPC
// (h2), and is trusted as the process itself is.
func (s *Server) Dial(ctx context.Context) (net.Conn, error) { return s.pipe.Dial(ctx) }

// Leave takes this server out of Raft for good, where there are others; it is to be
// stopped then. It fails when the others would be too few to go on.
func (s *Server) Leave(ctx context.Context) error { return s.cluster.leave(ctx) }
