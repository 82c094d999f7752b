package wire

import (
	"context"
	"errors"
	"io"
	"time"

	"google.golang.org/grpc"

	"github.com/weftmesh/weft/catalog"
)

// Operators is what a server offers to those who look after the servers. As
// Servers, it is the same on both sides of the wire.
type Operators interface {
	// RaftPeers lists the servers that take part in Raft.
	RaftPeers(ctx context.Context, req *RaftPeersRequest) (*RaftPeersReply, error)
	// ChangeRaft removes a server from Raft or hands leadership over, or goes on
	// without servers that are lost for ever.
	ChangeRaft(ctx context.Context, req *ChangeRaftRequest) (*ChangeRaftReply, error)
	// Autopilot tells how healthy the servers are.
	Autopilot(ctx context.Context, req *AutopilotRequest) (*AutopilotReply, error)
	// SaveSnapshot sends an archive of the whole state, piece by piece. The first
	// piece carries its index.
	SaveSnapshot(ctx context.Context, req *SaveSnapshotRequest, send func(*SnapshotPiece) error) error
	// RestoreSnapshot replaces the whole state by an archive. next gives its pieces
	// and io.EOF at the end.
	RestoreSnapshot(ctx context.Context, req *RestoreSnapshotRequest, next func() ([]byte, error)) (*RestoreSnapshotReply, error)
}

// RaftPeersRequest asks for the servers. With Stale any server answers.
type RaftPeersRequest struct {
	Token string
	Stale bool
}

// RaftPeer is a server in Raft.
type RaftPeer struct {
	ID, Node, Address string
	Leader, Voter     bool
	ProtocolVersion   string
	LastIndex         uint64
}

// RaftPeersReply answers a RaftPeersRequest.
type RaftPeersReply struct{ Peers []RaftPeer }

// ChangeRaftRequest either removes the server with an ID or, where that is empty, an
// address, or hands leadership over, to the server with the ID where one is given.
type ChangeRaftRequest struct {
	Token          string
	TransferLeader bool
	ID, Address    string
	// Lost are the IDs of servers that are lost for ever, where those that are left
	// are no majority. The server that is asked goes on without them; nothing else
	// may be set.
	Lost []string
}

// ChangeRaftReply answers a ChangeRaftRequest.
type ChangeRaftReply struct {
	Recovery *RaftRecovery // for Lost
}

// RaftRecovery is what going on without lost servers found. Entries above
// KnownIndex, up to LastIndex, are kept though nobody may have been told that they
// were written; what only the lost servers had is gone.
type RaftRecovery struct {
	Server                string // that went on
	Removed, Servers      []string
	LastIndex, KnownIndex uint64
	LastContact           time.Duration // since a leader was heard; negative: never
}

// AutopilotRequest asks how the servers are.
type AutopilotRequest struct{ Token string }

// AutopilotReply is the state of the servers as the leader sees it.
type AutopilotReply struct {
	Healthy                    bool
	FailureTolerance           int
	OptimisticFailureTolerance int
	Leader                     string
	Voters                     []string
	Servers                    []ServerHealth
}

// ServerHealth is the state of one server.
type ServerHealth struct {
	ID, Name, Address string
	NodeStatus        string // of gossip: alive, failed, left, unknown
	Version           string
	Status            string // leader, voter, non-voter, staging, none
	NodeType          string
	LastContact       time.Duration // negative: never
	LastTerm          uint64
	LastIndex         uint64
	Healthy           bool
	StableSince       time.Time
	Meta              map[string]string
}

// SaveSnapshotRequest asks for an archive. With Stale any server gives its own.
type SaveSnapshotRequest struct {
	Token string
	Stale bool
}

// SnapshotPiece is a piece of an archive.
type SnapshotPiece struct {
	Data []byte
	// Index and Meta are those of the state; they come with the first piece.
	Index uint64
	Meta  Meta
}

// RestoreSnapshotRequest announces an archive.
type RestoreSnapshotRequest struct{ Token string }

// RestoreSnapshotReply gives the epoch that began.
type RestoreSnapshotReply struct{ Epoch string }

// restoreMessage is what a client sends to restore: the request first, pieces after.
type restoreMessage struct {
	Request *RestoreSnapshotRequest
	Data    []byte
}

// PieceSize is how much of an archive goes into one message.
const PieceSize = 256 << 10

const operatorsName = "weft.Operators"

var operatorsDescription = grpc.ServiceDesc{
	ServiceName: operatorsName,
	HandlerType: (*Operators)(nil),
	Methods: []grpc.MethodDesc{
		unaryOf(operatorsName, "RaftPeers", Operators.RaftPeers),
		unaryOf(operatorsName, "ChangeRaft", Operators.ChangeRaft),
		unaryOf(operatorsName, "Autopilot", Operators.Autopilot),
	},
	Streams: []grpc.StreamDesc{
		{StreamName: "SaveSnapshot", Handler: handleSave, ServerStreams: true},
		{StreamName: "RestoreSnapshot", Handler: handleRestore, ClientStreams: true},
	},
}

// RegisterOperators offers impl to the clients of s.
func RegisterOperators(s grpc.ServiceRegistrar, impl Operators) {
	s.RegisterService(&operatorsDescription, impl)
}

func handleSave(srv any, stream grpc.ServerStream) error {
	req := new(SaveSnapshotRequest)
	if err := stream.RecvMsg(req); err != nil {
		return err
	}
	send := func(p *SnapshotPiece) error { return stream.SendMsg(p) }
	return ToStatus(srv.(Operators).SaveSnapshot(stream.Context(), req, send))
}

func handleRestore(srv any, stream grpc.ServerStream) error {
	first := new(restoreMessage)
	if err := stream.RecvMsg(first); err != nil {
		return err
	}
	if first.Request == nil {
		return ToStatus(catalog.Invalidf("restore: the first message is no request"))
	}
	next := func() ([]byte, error) {
		m := new(restoreMessage)
		if err := stream.RecvMsg(m); err != nil {
			return nil, err
		}
		return m.Data, nil
	}
	rep, err := srv.(Operators).RestoreSnapshot(stream.Context(), first.Request, next)
	if err != nil {
		return ToStatus(err)
	}
	return stream.SendMsg(rep)
}

// NewOperatorsClient returns the client side: Operators over a connection.
func NewOperatorsClient(cc grpc.ClientConnInterface) Operators { return &operatorsClient{cc: cc} }

type operatorsClient struct{ cc grpc.ClientConnInterface }

// RaftPeers implements Operators.
func (c *operatorsClient) RaftPeers(ctx context.Context, req *RaftPeersRequest) (*RaftPeersReply, error) {
	return invokeOf[RaftPeersReply](ctx, c.cc, operatorsName, "RaftPeers", req)
}

// ChangeRaft implements Operators.
func (c *operatorsClient) ChangeRaft(ctx context.Context, req *ChangeRaftRequest) (*ChangeRaftReply, error) {
	return invokeOf[ChangeRaftReply](ctx, c.cc, operatorsName, "ChangeRaft", req)
}

// Autopilot implements Operators.
func (c *operatorsClient) Autopilot(ctx context.Context, req *AutopilotRequest) (*AutopilotReply, error) {
	return invokeOf[AutopilotReply](ctx, c.cc, operatorsName, "Autopilot", req)
}

// SaveSnapshot implements Operators.
func (c *operatorsClient) SaveSnapshot(ctx context.Context, req *SaveSnapshotRequest, send func(*SnapshotPiece) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // ends the stream in whatever state it is
	stream, err := c.cc.NewStream(ctx, &operatorsDescription.Streams[0], methodOf(operatorsName, "SaveSnapshot"), callOptions...)
	if err != nil {
		return FromStatus(err)
	}
	if err := errors.Join(ignoreEOF(stream.SendMsg(req)), stream.CloseSend()); err != nil {
		return FromStatus(err)
	}
	for {
		p := new(SnapshotPiece)
		err := stream.RecvMsg(p)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return FromStatus(err)
		}
		if err := send(p); err != nil {
			return err
		}
	}
}

// RestoreSnapshot implements Operators. An error of next cancels it.
func (c *operatorsClient) RestoreSnapshot(ctx context.Context, req *RestoreSnapshotRequest, next func() ([]byte, error)) (*RestoreSnapshotReply, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := c.cc.NewStream(ctx, &operatorsDescription.Streams[1], methodOf(operatorsName, "RestoreSnapshot"), callOptions...)
	if err != nil {
		return nil, FromStatus(err)
	}
	err = stream.SendMsg(&restoreMessage{Request: req})
	for err == nil {
		var data []byte
		if data, err = next(); errors.Is(err, io.EOF) {
			err = stream.CloseSend()
			break
		} else if err != nil {
			return nil, err
		}
		err = stream.SendMsg(&restoreMessage{Data: data})
	}
	if ignoreEOF(err) != nil {
		return nil, FromStatus(err)
	}
	// After a failed send the reason is in RecvMsg.
	rep := new(RestoreSnapshotReply)
	if err := stream.RecvMsg(rep); err != nil {
		return nil, FromStatus(err)
	}
	return rep, nil
}

func ignoreEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}
