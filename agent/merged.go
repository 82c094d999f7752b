package agent

import (
	"context"

	"github.com/weftmesh/weft/agent/central"
	"github.com/weftmesh/weft/agent/httpapi"
	"github.com/weftmesh/weft/agent/local"
	"github.com/weftmesh/weft/catalog"
)

// mergedHost is the state of this host, read with its central configuration.
type mergedHost struct {
	*local.State
	central *central.Merger
}

// Host implements httpapi.LocalState. It never lags behind a registration.
func (m mergedHost) Host() *local.Host { return m.central.Merge(m.State.Host()) }

// Watch implements httpapi.LocalState.
func (m mergedHost) Watch() catalog.Watch[*local.Host] { return m.central.Watch() }

// newCentral makes the merger, unless it is not wanted, and the way of statements.
func newCentral(cfg Config, to local.Syncer, views func(catalog.Query) catalog.Watch[*catalog.View]) (*central.Merger, local.Syncer, error) {
	if cfg.NoCentralConfig {
		return nil, to, nil
	}
	m, err := central.New(central.Config{Views: views, DataDir: cfg.DataDir, Logger: cfg.Logger})
	if err != nil {
		return nil, nil, err
	}
	return m, m.Syncer(to), nil
}

// merged is what this host says of itself, as the other components see it.
func merged(s *local.State, m *central.Merger) httpapi.Local {
	if m == nil {
		return s
	}
	return mergedHost{s, m}
}

// merging runs m, or nothing where there is none.
func merging(s *local.State, m *central.Merger) func(context.Context) error {
	return func(ctx context.Context) error {
		if m == nil {
			<-ctx.Done()
			return nil
		}
		return m.Run(ctx, s.Watch(), s.Restate)
	}
}
