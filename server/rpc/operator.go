package rpc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/catalog/acl"
	"github.com/weftmesh/weft/catalog/store"
	"github.com/weftmesh/weft/catalog/wire"
)

// Raft is what of consensus only operators ask for.
type Raft interface {
	Servers() ([]wire.RaftPeer, error)
	Remove(ctx context.Context, id, address string) error
	TransferLeadership(ctx context.Context, id string) error
	Describe() (store.ArchiveMeta, error)
	// NextBackup is the least index of a backup that may be restored now.
	NextBackup() uint64
	Restore(ctx context.Context, backup io.Reader, index uint64, size int64) error
}

// OperatorConfig configures an Operator.
type OperatorConfig struct {
	// Handler answers everybody else; its limits and rights are used.
	Handler *Handler
	Raft    Raft
	// Names gives the node name of a server; "" where it is not known.
	Names func(id string) string
	// Autopilot gives the state of the servers, as the leader sees it.
	Autopilot func(ctx context.Context) (*wire.AutopilotReply, error)
	// Recover goes on, on this server, without those that are lost. May be nil.
	Recover func(ctx context.Context, lost []string) (*wire.RaftRecovery, error)
	// Restored is called after the state was replaced.
	Restored func()
	// Forward reaches the leader, as that of Config. May be nil.
	Forward func(addr string) (wire.Operators, error)
	// ScratchDir holds an archive while it is checked; empty: the system's.
	ScratchDir string
}

// Operator answers those who look after the servers.
type Operator struct {
	cfg OperatorConfig
	h   *Handler
	// restoring has room for the one restore that may run.
	restoring chan struct{}
}

var _ wire.Operators = (*Operator)(nil)

// NewOperator makes an Operator.
func NewOperator(cfg OperatorConfig) (*Operator, error) {
	if cfg.Handler == nil || cfg.Raft == nil || cfg.Autopilot == nil {
		return nil, catalog.Invalidf("rpc: Handler, Raft and Autopilot are needed to serve operators")
	}
	if cfg.Names == nil {
		cfg.Names = func(string) string { return "" }
	}
	if cfg.Restored == nil {
		cfg.Restored = func() {}
	}
	return &Operator{cfg: cfg, h: cfg.Handler, restoring: make(chan struct{}, 1)}, nil
}

// leader gives the leader when that is another server: see Handler.leader.
func (o *Operator) leader(ctx context.Context) (wire.Operators, error) {
	addr, self, err := o.h.cfg.Log.Leader()
	switch {
	case err != nil:
		return nil, err
	case self:
		return nil, nil
	case o.cfg.Forward == nil, CallerOf(ctx).Forwarded:
		return nil, fmt.Errorf("%w here, %s leads", catalog.ErrNoLeader, addr)
	}
	return o.cfg.Forward(addr)
}

// RaftPeers implements wire.Operators.
func (o *Operator) RaftPeers(ctx context.Context, req *wire.RaftPeersRequest) (_ *wire.RaftPeersReply, err error) {
	defer o.h.metrics.count("RaftPeers", &err)
	if err := o.h.authorize(req.Token, need{acl.Read, acl.Operator, ""}); err != nil {
		return nil, err
	}
	if !req.Stale {
		if at, err := o.leader(ctx); err != nil {
			return nil, err
		} else if at != nil {
			return at.RaftPeers(ctx, req)
		}
	}
	peers, err := o.cfg.Raft.Servers()
	if err != nil {
		return nil, err
	}
	for i := range peers {
		if peers[i].Node = o.cfg.Names(peers[i].ID); peers[i].Node == "" {
			peers[i].Node = "(unknown)"
		}
	}
	return &wire.RaftPeersReply{Peers: peers}, nil
}

// ChangeRaft implements wire.Operators.
func (o *Operator) ChangeRaft(ctx context.Context, req *wire.ChangeRaftRequest) (_ *wire.ChangeRaftReply, err error) {
	defer o.h.metrics.count("ChangeRaft", &err)
	if err := CallerOf(ctx).operate("to change Raft"); err != nil {
		return nil, err
	}
	if err := o.h.authorize(req.Token, need{acl.Write, acl.Operator, ""}); err != nil {
		return nil, err
	}
	if len(req.Lost) > 0 {
		return o.recover(ctx, req)
	}
	if at, err := o.leader(ctx); err != nil {
		return nil, err
	} else if at != nil {
		return at.ChangeRaft(ctx, req)
	}
	switch {
	case req.TransferLeader:
		err = o.cfg.Raft.TransferLeadership(ctx, req.ID)
	case (req.ID == "") == (req.Address == ""):
		err = catalog.Invalidf("remove peer: name an ID or an address")
	default:
		err = o.cfg.Raft.Remove(ctx, req.ID, req.Address)
	}
	if err != nil {
		return nil, err
	}
	return &wire.ChangeRaftReply{}, nil
}

// recover is for a cluster without a leader, so nobody else is asked.
func (o *Operator) recover(ctx context.Context, req *wire.ChangeRaftRequest) (*wire.ChangeRaftReply, error) {
	switch {
	case req.TransferLeader || req.ID != "" || req.Address != "":
		return nil, catalog.Invalidf("recover: name the servers that are lost, and nothing else")
	case len(req.Lost) > maxLost:
		return nil, catalog.Invalidf("recover: %d lost servers are named, at most %d can be", len(req.Lost), maxLost)
	case o.cfg.Recover == nil:
		return nil, catalog.Invalidf("recover: this server has no part in Raft")
	}
	r, err := o.cfg.Recover(ctx, req.Lost)
	if err != nil {
		return nil, err
	}
	return &wire.ChangeRaftReply{Recovery: r}, nil
}

// maxLost bounds how many servers can be named as lost.
const maxLost = 64

// Autopilot implements wire.Operators.
func (o *Operator) Autopilot(ctx context.Context, req *wire.AutopilotRequest) (_ *wire.AutopilotReply, err error) {
	defer o.h.metrics.count("Autopilot", &err)
	if err := o.h.authorize(req.Token, need{acl.Read, acl.Operator, ""}); err != nil {
		return nil, err
	}
	if at, err := o.leader(ctx); err != nil {
		return nil, err
	} else if at != nil {
		return at.Autopilot(ctx, req)
	}
	return o.cfg.Autopilot(ctx)
}

// SaveSnapshot implements wire.Operators. An archive holds everything, secrets of
// others included, so it takes the right to write everything.
func (o *Operator) SaveSnapshot(ctx context.Context, req *wire.SaveSnapshotRequest, send func(*wire.SnapshotPiece) error) (err error) {
	defer o.h.metrics.count("SaveSnapshot", &err)
	if err := CallerOf(ctx).operate("a snapshot"); err != nil {
		return err
	}
	if err := o.h.authorize(req.Token, need{acl.Write, acl.Operator, ""}); err != nil {
		return err
	}
	if !req.Stale {
		if at, err := o.leader(ctx); err != nil {
			return err
		} else if at != nil {
			return at.SaveSnapshot(ctx, req, send)
		}
		if _, err := o.h.readable(ctx); err != nil {
			return err
		}
	}
	meta, err := o.cfg.Raft.Describe()
	if err != nil {
		return err
	}
	backup := o.h.cfg.Store.Backup()
	w := &pieceWriter{ctx: ctx, send: send, first: wire.SnapshotPiece{Index: max(backup.Index(), 1), Meta: o.h.meta()}}
	if err := backup.WriteArchive(w, meta, o.h.cfg.Now()); err != nil {
		return err
	}
	return w.flush()
}

// pieceWriter cuts what is written into pieces.
type pieceWriter struct {
	ctx   context.Context
	send  func(*wire.SnapshotPiece) error
	first wire.SnapshotPiece
	buf   []byte
}

// Write implements io.Writer.
func (w *pieceWriter) Write(b []byte) (int, error) {
	w.buf = append(w.buf, b...)
	for len(w.buf) >= wire.PieceSize {
		if err := w.piece(w.buf[:wire.PieceSize]); err != nil {
			return 0, err
		}
		w.buf = append([]byte(nil), w.buf[wire.PieceSize:]...)
	}
	return len(b), nil
}

func (w *pieceWriter) piece(b []byte) error {
	if err := w.ctx.Err(); err != nil {
		return context.Cause(w.ctx)
	}
	p := w.first
	w.first = wire.SnapshotPiece{}
	p.Data = b
	return w.send(&p)
}

func (w *pieceWriter) flush() error {
	if len(w.buf) == 0 {
		return nil
	}
	return w.piece(w.buf)
}

// RestoreSnapshot implements wire.Operators. Nothing changes unless all of the
// archive arrived, its checksums are right and all of it can be read. What was revoked
// before stays revoked.
func (o *Operator) RestoreSnapshot(ctx context.Context, req *wire.RestoreSnapshotRequest, next func() ([]byte, error)) (_ *wire.RestoreSnapshotReply, err error) {
	defer o.h.metrics.count("RestoreSnapshot", &err)
	if err := CallerOf(ctx).operate("to restore a snapshot"); err != nil {
		return nil, err
	}
	if err := o.h.authorize(req.Token, need{acl.Write, acl.Operator, ""}); err != nil {
		return nil, err
	}
	if at, err := o.leader(ctx); err != nil {
		return nil, err
	} else if at != nil {
		return at.RestoreSnapshot(ctx, req, next)
	}
	select {
	case o.restoring <- struct{}{}:
		defer func() { <-o.restoring }()
	default:
		return nil, catalog.Conflictf("another restore is under way; wait for its end")
	}
	begin := time.Now()
	state, err := o.receive(next)
	if err != nil {
		return nil, err
	}
	defer state.discard()
	o.h.revoking.Lock()
	defer o.h.revoking.Unlock()
	if _, err := o.h.readable(ctx); err != nil { // the store has all that is revoked
		return nil, err
	}
	file, err := o.rebase(state)
	if err != nil {
		return nil, err
	}
	defer file.discard()
	before := o.h.cfg.Store.Epoch()
	// Raft goes on with it although who asked has gone, so its end is waited for.
	err = o.cfg.Raft.Restore(context.WithoutCancel(ctx), file, file.index, file.size)
	epoch := o.h.cfg.Store.Epoch()
	if epoch != before {
		o.h.log.Warn("an operator restored a snapshot", "index", o.h.cfg.Store.Index(), "epoch", epoch, "dur", time.Since(begin))
		o.cfg.Restored()
	}
	if err != nil {
		return nil, err
	}
	return &wire.RestoreSnapshotReply{Epoch: epoch}, nil
}

// receive takes the state out of an archive.
func (o *Operator) receive(next func() ([]byte, error)) (_ *scratch, err error) {
	state, err := newScratch(o.cfg.ScratchDir)
	if err != nil {
		return nil, err
	}
	if _, err = store.ReadArchive(&pieceReader{next: next}, state); err == nil {
		err = state.rewind()
	}
	if err != nil {
		state.discard()
		return nil, err
	}
	return state, nil
}

// rebase gives a state as the start of a new epoch, once all of it can be read.
func (o *Operator) rebase(state *scratch) (_ *scratch, err error) {
	rebased, err := newScratch(o.cfg.ScratchDir)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			rebased.discard()
		}
	}()
	if err := o.h.cfg.Store.Rebase(state, rebased, o.cfg.Raft.NextBackup()); err != nil {
		return nil, err
	}
	if rebased.size, err = rebased.Seek(0, io.SeekCurrent); err != nil {
		return nil, fmt.Errorf("restore: %w", err)
	}
	if err := rebased.rewind(); err != nil {
		return nil, err
	}
	if rebased.index, err = store.Verify(rebased); err != nil {
		return nil, err
	}
	return rebased, rebased.rewind()
}

// pieceReader reads pieces as one stream.
type pieceReader struct {
	next func() ([]byte, error)
	rest []byte
}

// Read implements io.Reader.
func (r *pieceReader) Read(b []byte) (int, error) {
	for len(r.rest) == 0 {
		var err error
		if r.rest, err = r.next(); err != nil {
			return 0, err
		}
	}
	n := copy(b, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}

// scratch is a file that nobody else can read and that goes when it is done with.
type scratch struct {
	*os.File
	index uint64 // of the backup in it
	size  int64
}

func newScratch(dir string) (*scratch, error) {
	f, err := os.CreateTemp(dir, "weft-restore-*")
	if err != nil {
		return nil, fmt.Errorf("restore: no place to check the snapshot: %w; free space, or set TMPDIR", err)
	}
	return &scratch{File: f}, nil
}

func (s *scratch) rewind() error {
	if _, err := s.Seek(0, io.SeekStart); err != nil {
		return fmt.Errorf("restore: %w", err)
	}
	return nil
}

func (s *scratch) discard() {
	_ = errors.Join(s.Close(), os.Remove(s.Name())) // the system clears what is left
}
