package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
)

// rawRaft is three members of Raft in this process, over TCP, with their logs in
// raft-boltdb on the disk of dir and nothing else: what the libraries alone can do.
type rawRaft struct {
	nodes  []*raft.Raft
	leader *raft.Raft
	close  []io.Closer
}

type nothing struct{}

func (nothing) Apply(*raft.Log) any                 { return nil }
func (nothing) Snapshot() (raft.FSMSnapshot, error) { return nil, errors.New("not asked for") }
func (nothing) Restore(r io.ReadCloser) error       { return r.Close() }

func startRawRaft(dir string) (*rawRaft, error) {
	r := &rawRaft{}
	var servers []raft.Server
	for i := range 3 {
		sub := filepath.Join(dir, fmt.Sprintf("raw%d", i))
		if err := os.MkdirAll(sub, 0o700); err != nil {
			return nil, err
		}
		store, err := raftboltdb.New(raftboltdb.Options{Path: filepath.Join(sub, "raft.db")})
		if err != nil {
			return nil, err
		}
		transport, err := raft.NewTCPTransport("127.0.0.1:0", nil, 3, 10*time.Second, io.Discard)
		if err != nil {
			return nil, errors.Join(err, store.Close())
		}
		r.close = append(r.close, transport, store)
		cfg := raft.DefaultConfig()
		cfg.LocalID, cfg.LogOutput, cfg.LogLevel = raft.ServerID(sub), io.Discard, "off"
		node, err := raft.NewRaft(cfg, nothing{}, store, store, raft.NewInmemSnapshotStore(), transport)
		if err != nil {
			r.stop()
			return nil, err
		}
		r.nodes = append(r.nodes, node)
		servers = append(servers, raft.Server{ID: cfg.LocalID, Address: transport.LocalAddr()})
	}
	if err := r.nodes[0].BootstrapCluster(raft.Configuration{Servers: servers}).Error(); err != nil {
		r.stop()
		return nil, err
	}
	err := until(func() error {
		for _, n := range r.nodes {
			if n.State() == raft.Leader {
				r.leader = n
				return nil
			}
		}
		return errors.New("raw Raft elects nobody")
	})
	if err != nil {
		r.stop()
		return nil, err
	}
	return r, nil
}

func (r *rawRaft) apply(context.Context, int64) error {
	return r.leader.Apply(make([]byte, 256), 10*time.Second).Error()
}

func (r *rawRaft) stop() {
	for _, n := range r.nodes {
		_ = n.Shutdown().Error()
	}
	for _, c := range r.close {
		_ = c.Close()
	}
}
