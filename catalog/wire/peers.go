package wire

import (
	"context"
	"time"

	"google.golang.org/grpc"
)

// Peers is what servers offer each other, and nobody else. As Servers, it is the
// same on both sides of the wire.
type Peers interface {
	// Standing tells where a server is in Raft.
	Standing(ctx context.Context, req *StandingRequest) (*StandingReply, error)
	// Promise asks a server that is in no cluster yet to begin one with the founder
	// that asks, and with no other for a while.
	Promise(ctx context.Context, req *PromiseRequest) (*PromiseReply, error)
	// ReadIndex asks the leader for an index that shows all that was acknowledged.
	ReadIndex(ctx context.Context, req *ReadIndexRequest) (*ReadIndexReply, error)
	// Lost tells the leader that a host's connection broke.
	Lost(ctx context.Context, req *LostRequest) (*LostReply, error)
}

// StandingRequest asks a server about itself. Marks come only where they are asked for.
type StandingRequest struct{ Marks bool }

// StandingReply is where a server is in Raft.
type StandingReply struct {
	NodeID, Node, Version string
	// Fresh: it has no log and is in no cluster. Dismissed: it was removed while it
	// ran, and takes part again only after a restart.
	Fresh, Dismissed bool
	LastTerm         uint64
	LastIndex        uint64
	Applied          uint64
	// ConfigIndex is the index of its latest list of servers, which is Peers.
	ConfigIndex uint64
	Peers       []RaftPeer
	// Marks are some entries of its log, in their order.
	Marks       []LogMark
	LeaderID    string
	LastContact time.Duration // with the leader; negative: never
}

// LogMark tells a log entry from those of other histories.
type LogMark struct {
	Index, Term uint64
	Sum         uint32 // CRC-32C of its data
}

// PromiseRequest is a founder's plan.
type PromiseRequest struct {
	Founder string   // its node ID
	Voters  []string // node IDs, sorted
}

// PromiseReply is a promise given.
type PromiseReply struct{}

// ReadIndexRequest asks the leader. Term is the one that the asker is in, after those
// for whom it asks came to it; 0: it does not say.
type ReadIndexRequest struct{ Term uint64 }

// ReadIndexReply answers a ReadIndexRequest.
type ReadIndexReply struct{ Index uint64 }

// LostRequest names a host whose connection broke.
type LostRequest struct{ Node, NodeID string }

// LostReply answers a LostRequest.
type LostReply struct{}

const peersName = "weft.Peers"

var peersDescription = grpc.ServiceDesc{
	ServiceName: peersName,
	HandlerType: (*Peers)(nil),
	Methods: []grpc.MethodDesc{
		unaryOf(peersName, "Standing", Peers.Standing),
		unaryOf(peersName, "Promise", Peers.Promise),
		unaryOf(peersName, "ReadIndex", Peers.ReadIndex),
		unaryOf(peersName, "Lost", Peers.Lost),
	},
}

// PeersPrefix is how the full names of the methods begin that are for servers only.
const PeersPrefix = "/" + peersName + "/"

// RegisterPeers offers impl to the clients of s.
func RegisterPeers(s grpc.ServiceRegistrar, impl Peers) { s.RegisterService(&peersDescription, impl) }

// NewPeersClient returns the client side: Peers over a connection.
func NewPeersClient(cc grpc.ClientConnInterface) Peers { return &peersClient{cc: cc} }

type peersClient struct{ cc grpc.ClientConnInterface }

// Standing implements Peers.
func (c *peersClient) Standing(ctx context.Context, req *StandingRequest) (*StandingReply, error) {
	return invokeOf[StandingReply](ctx, c.cc, peersName, "Standing", req)
}

// Promise implements Peers.
func (c *peersClient) Promise(ctx context.Context, req *PromiseRequest) (*PromiseReply, error) {
	return invokeOf[PromiseReply](ctx, c.cc, peersName, "Promise", req)
}

// ReadIndex implements Peers.
func (c *peersClient) ReadIndex(ctx context.Context, req *ReadIndexRequest) (*ReadIndexReply, error) {
	return invokeOf[ReadIndexReply](ctx, c.cc, peersName, "ReadIndex", req)
}

// Lost implements Peers.
func (c *peersClient) Lost(ctx context.Context, req *LostRequest) (*LostReply, error) {
	return invokeOf[LostReply](ctx, c.cc, peersName, "Lost", req)
}
