package dns

import (
	"context"
	"strings"
	"time"

	"github.com/weftmesh/weft/catalog"
)

// aged is something made of whole lists of the catalog. It is made anew when it is
// asked for and old, by one caller while the others wait.
type aged[T any] struct {
	read func(context.Context) (T, error)
	turn chan struct{} // held while the rest is used

	until time.Time
	held  T
	have  bool
	err   error // of the last read
}

// The age that aged things reach: at least agedMin, and agedRest times what making
// them took, so that making them takes a small part of the time however much there is.
const (
	agedMin  = time.Second
	agedRest = 20
)

func newAged[T any](read func(context.Context) (T, error)) *aged[T] {
	return &aged[T]{read: read, turn: make(chan struct{}, 1)}
}

// get gives the newest there is; the error is for when there never was one.
func (a *aged[T]) get(ctx context.Context) (T, error) {
	select {
	case a.turn <- struct{}{}:
		defer func() { <-a.turn }()
	case <-ctx.Done():
		var none T
		return none, ctx.Err()
	}
	if began := time.Now(); began.After(a.until) {
		var made T
		rest := agedMin
		if made, a.err = a.read(ctx); a.err == nil {
			a.held, a.have = made, true
			rest = max(agedMin, agedRest*time.Since(began))
		}
		a.until = time.Now().Add(rest)
	}
	if a.have {
		return a.held, nil
	}
	return a.held, a.err
}

// folds know the names that are not in lower case: a view does not find them by
// the name that DNS gives, which has no case.
type folds struct {
	services *aged[map[string]string]
	nodes    *aged[map[string]string]
}

func newFolds(v Views) folds {
	return folds{services: newAged(foldReader(v, catalog.QueryServices)), nodes: newAged(foldReader(v, catalog.QueryNodes))}
}

// foldReader reads a list of names into a table by their lower case.
func foldReader(views Views, kind catalog.QueryKind) func(context.Context) (map[string]string, error) {
	return func(ctx context.Context) (map[string]string, error) {
		v, err := views.Read(ctx, catalog.Query{Kind: kind})
		if err != nil {
			return nil, err
		}
		written := map[string]string{}
		add := func(name string) {
			if low := strings.ToLower(name); low != name {
				written[low] = name
			}
		}
		for _, s := range v.Services {
			add(s.Name)
		}
		for _, n := range v.Nodes {
			add(n.Node)
		}
		return written, nil
	}
}

// fold gives a name of a list as it is written there, if not in lower case. missing is
// what the name as given led to: where that is an error no server answers, and the list
// is at hand or not to be had.
func (x *exchange) fold(list catalog.QueryKind, name string, missing error) (string, bool) {
	ctx := x.ctx
	if missing != nil {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, viewTimeout)
		defer cancel()
	}
	a := x.folds.services
	if list == catalog.QueryNodes {
		a = x.folds.nodes
	}
	written, err := a.get(ctx)
	if err != nil {
		x.cfg.Logger.Debug("the names of the catalog could not be listed", "err", err)
	}
	w, ok := written[name]
	return w, ok
}
