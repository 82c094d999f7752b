package server

import (
	"context"
	"time"

	"github.com/weftmesh/weft/catalog"
)

// noteEvery is how often a leader of the next version writes what only that knows.
const noteEvery = time.Second

// later does what only leaders of the next version do: it tries that those of this one
// follow all the same.
func (l *leader) later(ctx context.Context) {
	note := catalog.LaterNote()
	if note == nil {
		return
	}
	l.repeat(ctx, "note", noteEvery, nil, func(ctx context.Context) error {
		_, _, err := l.pruner.raft.Apply(ctx, note)
		return err
	})
}
