package wire

import (
	"context"
	"time"

	"github.com/weftmesh/weft/catalog"
)

// Consistency is how fresh an answer must be.
type Consistency string

// Consistency modes. Default is linearizable too; Consistent differs only in the
// header that names it. Stale answers from any server, however old.
const (
	Default    Consistency = ""
	Consistent Consistency = "consistent"
	Stale      Consistency = "stale"
)

// Servers is what a server offers to agents and to other servers, and what the
// client side of this package gives back. Errors wrap the sentinels of catalog
// on both sides.
type Servers interface {
	// Sync states the whole of a host. Equal to the store, it writes no log entry.
	Sync(ctx context.Context, req *SyncRequest) (*SyncReply, error)
	// Apply puts a command through the log.
	Apply(ctx context.Context, req *ApplyRequest) (*ApplyReply, error)
	// Read answers a query once. With MinIndex it waits, up to MaxWait, for an
	// answer newer than that, and then gives the one there is.
	Read(ctx context.Context, req *ReadRequest) (*ReadReply, error)
	// Watch sends the answer to a query and every later version of it until ctx
	// ends, skipping versions that the reader is too slow for.
	Watch(ctx context.Context, req *WatchRequest, send func(*WatchEvent) error) error
	// Sign issues a leaf certificate for the service that the CSR's one URI names.
	Sign(ctx context.Context, req *SignRequest) (*SignReply, error)
	// SetCAConfig changes the certificate authority, rotating its root where needed.
	SetCAConfig(ctx context.Context, req *SetCAConfigRequest) (*SetCAConfigReply, error)
	// Txn does a transaction. One that only reads writes no log entry.
	Txn(ctx context.Context, req *TxnRequest) (*TxnReply, error)
	// RenewSession lets the TTL of a session begin anew; ErrNotFound when it ended.
	RenewSession(ctx context.Context, req *RenewSessionRequest) (*RenewSessionReply, error)
	// Status says who leads, who votes, and what this server has to report.
	Status(ctx context.Context, req *StatusRequest) (*StatusReply, error)
}

// Meta says how good an answer is.
type Meta struct {
	KnownLeader bool
	// LastContact is the time since the answering server heard from the leader; 0 on the leader.
	LastContact time.Duration
}

// SyncRequest states what is on a host.
type SyncRequest struct {
	Token string
	State catalog.NodeState
}

// SyncReply gives the index at which the catalog agrees.
type SyncReply struct{ Index uint64 }

// ApplyRequest carries one command.
type ApplyRequest struct {
	Token   string
	Command Command
}

// ApplyReply gives the index of the log entry and the command's result.
type ApplyReply struct {
	Index uint64
	// OK is the result of commands that answer true or false; true for all others.
	OK bool
	// Names are those of the services that SetVirtualIPs took addresses from.
	Names []string
}

// ReadRequest asks a query once.
type ReadRequest struct {
	Token       string
	Query       catalog.Query
	Consistency Consistency
	MinIndex    uint64
	MaxWait     time.Duration
}

// ReadReply answers a ReadRequest.
type ReadReply struct {
	View *catalog.View
	Meta Meta
}

// WatchRequest opens a stream of views. After and Epoch are those of the view
// that the reader holds, zero for none.
type WatchRequest struct {
	Token string
	Query catalog.Query
	After uint64
	Epoch string
}

// WatchEvent is a new view, or, with View nil, word that nothing changed.
type WatchEvent struct {
	View *catalog.View
	// Current is the index up to which the reader now knows everything.
	Current uint64
	Epoch   string
	Meta    Meta
	laterEvent
}

// SignRequest asks for a leaf certificate.
type SignRequest struct {
	Token string
	CSR   []byte // PKCS #10, DER
}

// SignReply is the certificate; the key stays with who made the CSR.
type SignReply struct{ Leaf catalog.Leaf }

// SetCAConfigRequest replaces the CA's configuration.
type SetCAConfigRequest struct {
	Token  string
	Config catalog.CAConfig
}

// SetCAConfigReply gives the index of the change.
type SetCAConfigReply struct{ Index uint64 }

// TxnRequest asks for a transaction. Consistency is for one that only reads.
type TxnRequest struct {
	Token       string
	Txn         catalog.Txn
	Consistency Consistency
}

// TxnReply gives the results of a transaction or what failed. Index is that of the
// log entry, or of what was read; it and Meta are zero when an operation was refused
// before anything was looked at.
type TxnReply struct {
	Result catalog.TxnResult
	Index  uint64
	Meta   Meta
}

// RenewSessionRequest names a session.
type RenewSessionRequest struct {
	Token string
	ID    string
}

// RenewSessionReply is the session that was renewed.
type RenewSessionReply struct{ Session *catalog.Session }

// StatusRequest asks a server about itself and the cluster.
type StatusRequest struct {
	Token string
	// Fingerprint asks for the digest of the server's store too, which reads all of it.
	Fingerprint bool
}

// StatusReply answers a StatusRequest.
type StatusReply struct {
	// Leader is the leader's server address, empty when none is known.
	Leader string
	// Peers are the addresses of all Raft peers.
	Peers []string
	// LeaderSelf tells whether the answering server leads.
	LeaderSelf bool
	// Stats are counters of the server by section, as `weft info` shows them; that of
	// StatsState is in words.
	Stats map[string]map[string]string
	// Fingerprint is a digest of all that the server has stored: servers that applied
	// the same log have the same one.
	Fingerprint string
	// Index is that of the store.
	Index uint64
}

// StatsState is the section of Stats that says in words how a host fares: by part, and
// what to do about it under the part's name and StatsHint.
const (
	StatsState = "state"
	StatsHint  = "_hint"
)

// Stated adds to the section StatsState of one part what it is like, and the hint
// unless that is empty.
func Stated(to map[string]string, part, what, hint string) {
	to[part] = what
	if hint != "" {
		to[part+StatsHint] = hint
	}
}

// Command boxes a catalog.Command so that codecs carry its type with it.
type Command struct{ catalog.Command }
