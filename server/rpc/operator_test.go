package rpc

import (
	"bytes"
	"context"
	"errors"
	"io"
	"testing"
	"time"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/catalog/store"
	"github.com/weftmesh/weft/catalog/wire"
)

// restoring is a Raft that replaces the state at once.
type restoring struct {
	Raft
	store  *store.Store
	during func()
	err    error
}

func (r *restoring) NextBackup() uint64 { return r.store.Index() + 1 }

func (r *restoring) Restore(ctx context.Context, backup io.Reader, _ uint64, _ int64) error {
	r.during()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return errors.Join(r.store.Restore(backup), r.err)
}

func revokeRequest() *wire.ApplyRequest {
	return &wire.ApplyRequest{Command: wire.Command{Command: &catalog.Revoke{Revocation: catalog.Revocation{
		Kind: catalog.RevokedNode, ID: "b5e2f1c0-0000-4000-8000-000000000001", At: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC),
	}}}}
}

// TestRestoreGoesOn: the leader begins anew when the state was replaced, also when who
// asked for it has gone meanwhile, or when it is not known whether others have it.
func TestRestoreGoesOn(t *testing.T) {
	for _, fails := range []error{nil, errors.New("leadership lost")} {
		r := newRig(t, nil)
		ctx, cancel := context.WithCancel(t.Context())
		begun := 0
		var refused error
		during := func() {
			cancel()
			_, refused = r.Apply(t.Context(), revokeRequest())
		}
		o, err := NewOperator(OperatorConfig{
			Handler: r.Handler, Raft: &restoring{store: r.store, during: during, err: fails}, Restored: func() { begun++ }, ScratchDir: t.TempDir(),
			Autopilot: func(context.Context) (*wire.AutopilotReply, error) { return nil, nil },
		})
		if err != nil {
			t.Fatal(err)
		}
		var archive bytes.Buffer
		if err := r.store.Backup().WriteArchive(&archive, store.ArchiveMeta{}, time.Now()); err != nil {
			t.Fatal(err)
		}
		_, err = o.RestoreSnapshot(ctx, &wire.RestoreSnapshotRequest{}, func() ([]byte, error) {
			if archive.Len() == 0 {
				return nil, io.EOF
			}
			return archive.Next(1000), nil
		})
		if !errors.Is(err, fails) || begun != 1 {
			t.Errorf("the leader began anew %d times, and it ended with %v, want %v", begun, err, fails)
		}
		if !errors.Is(refused, catalog.ErrConflict) {
			t.Errorf("something was revoked meanwhile, which is undone: %v", refused)
		}
		if _, err := r.Apply(t.Context(), revokeRequest()); err != nil {
			t.Errorf("nothing can be revoked after it: %v", err)
		}
	}
}
