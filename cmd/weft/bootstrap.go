package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/catalog/wire"
)

// bootstrapRetry is the pause between attempts while there is no leader.
const bootstrapRetry = 200 * time.Millisecond

// writeEntries makes the config entries of config_entries.bootstrap that the
// cluster does not have, through the server of this process. What is there stays
// as it is, whatever the files say.
func (h *host) writeEntries(ctx context.Context) error {
	if h.server == nil || len(h.cfg.ConfigEntries) == 0 {
		return nil
	}
	conn, err := grpc.NewClient("passthrough:///server",
		grpc.WithTransportCredentials(insecure.NewCredentials()), // a pipe inside this process
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return h.server.Dial(ctx) }))
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }() // it is only ours
	servers := wire.NewClient(conn)
	// Entries need each other, in whatever order the files have them: those that are
	// refused are tried again after the others.
	for todo := h.cfg.ConfigEntries; len(todo) > 0; {
		var refused []catalog.ConfigEntry
		var why error
		for _, e := range todo {
			made, err := writeEntry(ctx, servers, e)
			if err != nil {
				err = fmt.Errorf("config_entries.bootstrap: %s/%s: %w", e.EntryKind(), e.EntryName(), err)
			}
			switch {
			case errors.Is(err, catalog.ErrInvalid):
				refused = append(refused, e)
				why = errors.Join(why, err)
			case err != nil:
				return err
			case made:
				h.log.Info("config entry written", "id", e.EntryKind()+"/"+e.EntryName())
			}
		}
		if len(refused) == len(todo) {
			return why
		}
		todo = refused
	}
	return nil
}

// writeEntry creates e where there is none, and waits for a leader to do so.
func writeEntry(ctx context.Context, servers wire.Servers, e catalog.ConfigEntry) (bool, error) {
	cmd := &catalog.SetConfigEntry{Entry: catalog.Entry{ConfigEntry: e}, CAS: true}
	for {
		try, cancel := context.WithTimeout(ctx, requestTimeout)
		r, err := servers.Apply(try, &wire.ApplyRequest{Command: wire.Command{Command: cmd}})
		cancel()
		switch {
		case err == nil:
			return r.OK, nil
		case !errors.Is(err, catalog.ErrNoLeader) && !errors.Is(err, catalog.ErrUnavailable):
			return false, err
		}
		select {
		case <-ctx.Done():
			return false, ctx.Err()
		case <-time.After(bootstrapRetry):
		}
	}
}
