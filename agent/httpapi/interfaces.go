package httpapi

import (
	"context"
	"io"
	"log/slog"

	"github.com/weftmesh/weft/agent/local"
	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/catalog/acl"
	"github.com/weftmesh/weft/catalog/wire"
	"github.com/weftmesh/weft/connect"
)

// Servers is the way to the servers (agent/remote). Errors wrap the sentinels of
// catalog.
type Servers interface {
	Keys
	Read(ctx context.Context, req *wire.ReadRequest) (*wire.ReadReply, error)
	Apply(ctx context.Context, req *wire.ApplyRequest) (*wire.ApplyReply, error)
	Sign(ctx context.Context, req *wire.SignRequest) (*wire.SignReply, error)
	SetCAConfig(ctx context.Context, req *wire.SetCAConfigRequest) (*wire.SetCAConfigReply, error)
	Status(ctx context.Context, req *wire.StatusRequest) (*wire.StatusReply, error)
}

// Keys is the part of Servers that is about keys and sessions alone.
type Keys interface {
	Txn(ctx context.Context, req *wire.TxnRequest) (*wire.TxnReply, error)
	RenewSession(ctx context.Context, req *wire.RenewSessionRequest) (*wire.RenewSessionReply, error)
}

// Local is what this host says of itself (agent/local).
type Local interface {
	LocalState
	LocalServices
	LocalChecks
}

// LocalState reads the host.
type LocalState interface {
	Host() *local.Host
	Watch() catalog.Watch[*local.Host]
	NodeMaintenance(on bool, reason string) error
}

// LocalServices changes the services of the host.
type LocalServices interface {
	Register(ctx context.Context, reg *catalog.ServiceRegistration, opt local.RegisterOptions) (warnings []string, err error)
	Deregister(ctx context.Context, id string) error
	ServiceMaintenance(id string, on bool, reason string) error
}

// LocalChecks changes the checks of the host.
type LocalChecks interface {
	RegisterCheck(ctx context.Context, def *catalog.CheckDefinition) (warnings []string, err error)
	DeregisterCheck(ctx context.Context, id string) error
	UpdateTTL(id string, status catalog.Status, output string) error
}

// Members lists the participants in gossip (agent/gossip).
type Members interface {
	Members() []catalog.Member
}

// Proxies are the sidecars of this host (agent/sidecar).
type Proxies interface {
	// Snapshot watches what a proxy that runs outside this process enforces. The
	// watch fails with ErrNotFound when there is no such proxy.
	Snapshot(proxyID string) catalog.Watch[*connect.Snapshot]
	// Status shows every proxy of this host, sorted by ID.
	Status() []connect.Status
	// Tell takes what a proxy that runs outside this process says of itself and, unless it
	// is nil, what it has counted. It fails with ErrNotFound when there is no such proxy.
	Tell(proxyID string, st connect.Status, counts *connect.Counts) error
}

// Policies knows which proxies of the cluster enforce a policy (agent/remote).
type Policies interface {
	Enforced(ctx context.Context, req *wire.EnforcedRequest) (*wire.EnforcedReply, error)
}

// Operators is what the servers offer to those who look after them (agent/remote).
type Operators = wire.Operators

// Keyring changes the keys that encrypt gossip, on all members (agent/gossip).
type Keyring interface {
	Keyring(ctx context.Context, op catalog.KeyringOp, key string) (*catalog.KeyringReport, error)
}

// Leaves gives native applications a certificate with its key.
type Leaves interface {
	// Leaf returns the certificate of a service and its private key in PEM once
	// its ModifyIndex is above after.
	Leaf(ctx context.Context, service catalog.Name, token string, after uint64) (*catalog.Leaf, string, error)
}

// Events are the user events of this host (agent/events).
type Events interface {
	// Fire sends an event to every agent, and fills in its ID.
	Fire(ctx context.Context, e *catalog.UserEvent) error
	// Watch gives the last events that this host was meant to hear, the oldest first.
	Watch() catalog.Watch[[]*catalog.UserEvent]
}

// Control is what may be asked of the agent as a whole.
type Control interface {
	// Reload reads the configuration again.
	Reload(ctx context.Context) error
	// Leave starts a graceful leave and returns without waiting for its end.
	Leave(ctx context.Context) error
	// Join adds this agent to the gossip of the one at addr.
	Join(ctx context.Context, addr string, wan bool) error
	// ForceLeave declares a failed member gone; prune forgets it too.
	ForceLeave(ctx context.Context, node string, prune bool) error
}

// Monitor streams the agent's log. LogTap is one.
type Monitor interface {
	// Monitor writes each record at or above level to w as a line, until ctx ends
	// or w fails.
	Monitor(ctx context.Context, level slog.Level, asJSON bool, w io.Writer) error
}

// Authorizer gives the rights of the holder of a token. The error wraps ErrDenied
// when there is no such token.
type Authorizer func(token string) (acl.Authorizer, error)
