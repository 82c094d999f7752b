package httpapi

import (
	"errors"
	"io"
	"net/http"
	"strconv"
	"time"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/catalog/acl"
	"github.com/weftmesh/weft/catalog/wire"
)

// snapshotAPI saves and restores the whole state of the servers.
type snapshotAPI struct{ cfg Config }

func (a snapshotAPI) routes() []Route {
	const path = "/v1/snapshot"
	all := Permission{acl.Write, acl.Operator, ""}
	return []Route{
		{
			Method: http.MethodGet, Path: path, Summary: "an archive of the whole state of the servers, with checksums",
			Permission: all, MaxBody: bodyNone, params: paramsConsistency, invalid: http.StatusInternalServerError,
			stream: true, handle: a.save,
		},
		{
			Method: http.MethodPut, Path: path, Summary: "replace the whole state of the servers by that of an archive, if all of it can be read; what is revoked stays revoked",
			Body: "such an archive", Permission: all, MaxBody: bodySnapshot, params: paramsWrite,
			invalid: http.StatusInternalServerError, handle: a.restore,
		},
	}
}

// save streams. What goes wrong after the first piece cuts the answer off, so that
// nobody takes half an archive for a whole one.
func (a snapshotAPI) save(c *call) (any, error) {
	if a.cfg.Operators == nil {
		return nil, errNotOffered("snapshots")
	}
	begun := false
	err := a.cfg.Operators.SaveSnapshot(c.ctx(), &wire.SaveSnapshotRequest{Token: c.token, Stale: c.stale()}, func(p *wire.SnapshotPiece) error {
		if !begun {
			begun = true
			h := c.w.Header()
			h.Set("Content-Type", "application/x-gzip")
			h.Set("X-Consul-Index", strconv.FormatUint(max(p.Index, 1), 10))
			h.Set("X-Consul-KnownLeader", strconv.FormatBool(p.Meta.KnownLeader))
			h.Set("X-Consul-LastContact", strconv.FormatInt(p.Meta.LastContact.Milliseconds(), 10))
			h.Set("X-Consul-Query-Backend", "blocking-query")
			c.w.WriteHeader(http.StatusOK)
		}
		setWriteDeadline(c.w, time.Now().Add(writeTimeout))
		_, err := c.w.Write(p.Data)
		return err
	})
	if err != nil && begun {
		setWriteDeadline(c.w, time.Unix(1, 0))
	}
	return nil, err
}

func (a snapshotAPI) restore(c *call) (any, error) {
	if a.cfg.Operators == nil {
		return nil, errNotOffered("snapshots")
	}
	done := false
	next := func() ([]byte, error) {
		if done {
			return nil, io.EOF
		}
		setReadDeadline(c.w, time.Now().Add(a.cfg.BodyTimeout))
		buf := make([]byte, wire.PieceSize)
		n, err := io.ReadFull(c.r.Body, buf)
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			done = true
			setReadDeadline(c.w, time.Time{})
			if n == 0 {
				return nil, io.EOF
			}
			return buf[:n], nil
		}
		return buf[:n], err
	}
	_, err := a.cfg.Operators.RestoreSnapshot(c.ctx(), &wire.RestoreSnapshotRequest{Token: c.token}, next)
	if errors.Is(err, catalog.ErrTooLarge) {
		return nil, internal(err.Error())
	}
	if err != nil {
		return nil, err
	}
	return raw{contentType: "application/octet-stream"}, nil
}
