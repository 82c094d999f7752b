package rpc

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
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

// TestRestoreGoesOn: the leader begins anew when the state was replaced, also when who
// asked for it has gone meanwhile, or when it is not known whether others have it.
func TestRestoreGoesOn(t *testing.T) {
	for _, fails := range []error{nil, errors.New("leadership lost")} {
		r := newRig(t, nil)
		ctx, cancel := context.WithCancel(t.Context())
		begun := 0
		o, err := NewOperator(OperatorConfig{
			Handler: r.Handler, Raft: &restoring{store: r.store, during: cancel, err: fails}, Restored: func() { begun++ }, ScratchDir: t.TempDir(),
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
	}
}

// TestRestoreRevokesAgain: what was revoked before a restore is revoked after it, and
// where that fails the error names it.
func TestRestoreRevokesAgain(t *testing.T) {
	const node, late = "b5e2f1c0-0000-4000-8000-000000000001", "b5e2f1c0-0000-4000-8000-000000000002"
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for _, fails := range []bool{false, true} {
		r := newRig(t, nil)
		during := func() {}
		if fails {
			during = func() { r.log.lead("") }
		}
		o, err := NewOperator(OperatorConfig{
			Handler: r.Handler, Raft: &restoring{store: r.store, during: during}, ScratchDir: t.TempDir(),
			Autopilot: func(context.Context) (*wire.AutopilotReply, error) { return nil, nil },
		})
		if err != nil {
			t.Fatal(err)
		}
		for _, cmd := range []catalog.Command{
			&catalog.Revoke{Revocation: catalog.Revocation{Kind: catalog.RevokedNode, ID: node, Node: "web1", At: at}},
			&catalog.Allow{Kind: catalog.RevokedNode, ID: late},
		} {
			r.apply(t, cmd)
		}
		var archive bytes.Buffer
		if err := r.store.Backup().WriteArchive(&archive, store.ArchiveMeta{}, time.Now()); err != nil {
			t.Fatal(err)
		}
		r.apply(t, &catalog.Allow{Kind: catalog.RevokedNode, ID: node}) // the backup has it revoked
		r.apply(t, &catalog.Revoke{Revocation: catalog.Revocation{Kind: catalog.RevokedNode, ID: late, Node: "web2", At: at}})
		r.apply(t, &catalog.Revoke{Revocation: catalog.Revocation{Kind: catalog.RevokedToken, ID: "00ff00ff00ff00ff", At: at, Expires: at.Add(time.Hour)}})
		r.apply(t, &catalog.SetCertRevocation{Revocation: catalog.CertRevocation{Serial: "0a:1b", Description: "stolen"}})
		certs, err := r.store.Read(catalog.Query{Kind: catalog.QueryCertRevocations})
		if err != nil || len(certs.RevokedCerts) != 1 {
			t.Fatal(certs, err)
		}
		_, err = o.RestoreSnapshot(t.Context(), &wire.RestoreSnapshotRequest{}, func() ([]byte, error) {
			if archive.Len() == 0 {
				return nil, io.EOF
			}
			return archive.Next(1000), nil
		})
		v, _ := r.store.Read(catalog.Query{Kind: catalog.QueryRevocations})
		if fails {
			if err == nil || errors.Is(err, catalog.ErrNoLeader) || v.Revoked(catalog.RevokedNode, late) {
				t.Fatalf("%v; %+v", err, v.Revocations)
			}
			for _, part := range []string{"was restored", "node " + late, "token 00ff00ff00ff00ff", "certificate 0a:1b"} {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("%q is not in: %v", part, err)
				}
			}
			continue
		}
		if err != nil || !v.Revoked(catalog.RevokedNode, node) || !v.Revoked(catalog.RevokedNode, late) || !v.Revoked(catalog.RevokedToken, "00ff00ff00ff00ff") {
			t.Errorf("%v; %+v", err, v.Revocations)
		}
		if r := v.Revocations[1]; r.Node != "web2" || !r.At.Equal(at) {
			t.Errorf("%+v", r)
		}
		again, err := r.store.Read(catalog.Query{Kind: catalog.QueryCertRevocations})
		if err != nil || len(again.RevokedCerts) != 1 || again.RevokedCerts[0].Description != "stolen" || !again.RevokedCerts[0].RevokedAt.Equal(certs.RevokedCerts[0].RevokedAt) {
			t.Errorf("%+v, %v", again, err)
		}
	}
}
