package checks

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/weftmesh/weft/catalog"
)

// Target is what an alias check follows, at one moment.
type Target struct {
	// Exists tells whether the node, or the service on it, is there.
	Exists bool
	// Checks are those that count: of the service where one is named, and of the node.
	Checks []*catalog.Check
}

// AliasStatus is the status of an alias: the worst of its target. Checks of the
// node that are aliases themselves are left out, or two of them would hold each
// other, and one would hold itself, critical for ever. what names the target.
func AliasStatus(what string, t Target) (catalog.Status, string) {
	if !t.Exists {
		return catalog.StatusCritical, what + " could not be found."
	}
	status, output := catalog.StatusPassing, "No checks found."
	for _, c := range t.Checks {
		if c.ServiceID == "" && c.Type == TypeAlias {
			continue
		}
		if c.Status == catalog.StatusPassing {
			if status == catalog.StatusPassing {
				output = "All checks passing."
			}
			continue
		}
		if catalog.Worse(status, c.Status) != status {
			status = catalog.Worse(status, c.Status)
			output = fmt.Sprintf("Aliased check %q failing: %s", c.Name, c.Output)
		}
	}
	return status, output
}

// AliasName names the target of an alias definition, for messages.
func AliasName(def *catalog.CheckDefinition) string {
	if def.AliasService == "" {
		return "Node " + def.AliasNode
	}
	if def.AliasNode == "" {
		return "Service " + def.AliasService
	}
	return "Service " + def.AliasService + " on node " + def.AliasNode
}

// aliasRetry is the wait after the source of an alias failed.
const aliasRetry = 5 * time.Second

type alias struct {
	what    string
	maxSize int
	src     catalog.Watch[Target]
	report  Report
	log     *slog.Logger
}

func newAlias(def *catalog.CheckDefinition, o Options) (Runner, error) {
	if o.Target == nil {
		return nil, refuse("Invalid check: this agent cannot follow %s", AliasName(def))
	}
	return &alias{what: AliasName(def), maxSize: def.OutputMaxSize, src: o.Target, report: o.Report, log: o.Logger}, nil
}

// Run implements Runner.
func (a *alias) Run(ctx context.Context) {
	var after uint64
	for {
		t, index, err := a.src.Next(ctx, after)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			a.log.Warn("alias check lost its target", "check", a.what, "err", err)
			a.report(catalog.StatusCritical, fmt.Sprintf("%s cannot be followed: %v", a.what, err))
			select {
			case <-ctx.Done():
				return
			case <-time.After(aliasRetry):
			}
		default:
			after = index
			status, output := AliasStatus(a.what, t)
			a.report(status, Truncate(output, a.maxSize))
		}
	}
}
