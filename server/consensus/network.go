package consensus

import (
	"context"
	"errors"
	"io"
	"net"
	"time"

	"github.com/hashicorp/raft"
)

const (
	// networkTimeout bounds one exchange between servers.
	networkTimeout = 10 * time.Second
	// pooledConns is how many idle connections to one server are kept: heartbeats,
	// entries, word of what is committed and questions for reads go beside each other.
	pooledConns = 4
	// redialEvery is how often a leader tries to reach a server that it cannot reach.
	redialEvery = 100 * time.Millisecond
	// vouchTimeout bounds the question to others about a server that is not known.
	vouchTimeout = 2 * time.Second
	// maxPeerConns bounds the connections of one server, maxUnjudged those of which it
	// is not known yet whether they are let in.
	maxPeerConns = 32
	maxUnjudged  = 64
)

// Network is what the transport between servers needs. All of it is called from
// many goroutines.
type Network struct {
	// Listener gives connections whose other end has proved to be a server of this
	// cluster.
	Listener net.Listener
	// Identify gives the node ID that the other end of an accepted connection proved.
	Identify func(net.Conn) (id string, err error)
	// Dial connects to the server with an ID; the other end must prove that it is it.
	Dial func(ctx context.Context, id, addr string) (net.Conn, error)
	// Address is where a server is now, "" when that is not known. Nil: the address in
	// the configuration is used.
	Address func(id string) string
	// Vouch asks the servers of the configuration, given with their addresses, whether
	// one that it lacks is theirs: this node may have been away when it came. Nil:
	// nobody vouches.
	Vouch func(ctx context.Context, id string, known map[string]string) error
	// MayVote tells whether this node may vote for a candidate whose log ends at an
	// index. A server that lost its disk must not: it may have acknowledged what the
	// candidate lacks. Nil: it may.
	MayVote func(candidate string, lastIndex uint64) bool
}

// network is the transport between servers: raft's, with node IDs beside the
// addresses, so that a connection is to the server that is meant and from one that
// takes part.
type network struct {
	*raft.NetworkTransport
	layer *streams
}

var _ Transport = (*network)(nil)

func newNetwork(cfg Config, leads func(term uint64) bool) *network {
	l := &streams{
		cfg: *cfg.Network, self: cfg.NodeID, addr: networkAddr(cfg.Addr), log: cfg.Logger,
		refusals: &repeats{seen: map[string]repeat{}},
		ready:    make(chan net.Conn), unjudged: make(chan struct{}, maxUnjudged), lost: make(chan struct{}, 1), conns: map[string]map[net.Conn]struct{}{},
		gone: map[string]bool{},
	}
	l.leading, l.prompter = leads, newPrompter(leads)
	l.ctx, l.cancel = context.WithCancel(context.Background())
	n := &network{layer: l, NetworkTransport: raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{
		Logger: newHclog(cfg.Logger), Stream: l, MaxPool: pooledConns,
		// Pipelining can wedge a follower for good; batches are what makes it fast.
		MaxRPCsInFlight: 1,
		Timeout:         networkTimeout, MsgpackUseNewTimeFormat: true,
	})}
	l.prompter.send = n.append
	return n
}

// refuses answers a candidate that this node must not vote for.
func (n *network) refuses(rpc raft.RPC) bool {
	may := n.layer.cfg.MayVote
	if may == nil {
		return false
	}
	header := raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax, ID: []byte(n.layer.self), Addr: []byte(n.layer.addr)}
	switch ask := rpc.Command.(type) {
	case *raft.RequestVoteRequest:
		if may(string(ask.ID), ask.LastLogIndex) {
			return false
		}
		rpc.Respond(&raft.RequestVoteResponse{RPCHeader: header, Term: ask.Term}, nil)
	case *raft.RequestPreVoteRequest:
		if may(string(ask.ID), ask.LastLogIndex) {
			return false
		}
		rpc.Respond(&raft.RequestPreVoteResponse{RPCHeader: header, Term: ask.Term}, nil)
	default:
		return false
	}
	if hold, _ := n.layer.refusals.again("vote", time.Now()); hold {
		return true
	}
	n.layer.log.Warn("this server has lost its log, or never had one, and votes for nobody until a leader has brought it up to date")
	return true
}

// target joins an ID to the address at which the server is now.
func (n *network) target(id raft.ServerID, addr raft.ServerAddress) raft.ServerAddress {
	if f := n.layer.cfg.Address; f != nil && string(id) != n.layer.self {
		if now := f(string(id)); now != "" {
			addr = raft.ServerAddress(now)
		}
	}
	return raft.ServerAddress(string(id) + "@" + string(addr))
}

// AppendEntries implements raft.Transport. Raft waits longer and longer before it
// sends entries to a server that could not be reached, at last 10 s, and so would
// leave one that is back without its log. Here it waits in the call until there is
// somebody to send to.
func (n *network) AppendEntries(id raft.ServerID, to raft.ServerAddress, args *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) error {
	beat := heartbeat(args)
	for {
		if !beat {
			n.layer.prompter.sending(id)
		}
		err := n.append(id, to, args, resp)
		if err == nil && !beat && resp.Success {
			n.layer.prompter.sent(id, to, args)
		}
		var unreachable *dialError
		if !errors.As(err, &unreachable) || beat || !n.layer.leads(args.Term, id) {
			return err
		}
		t := time.NewTimer(redialEvery)
		select {
		case <-t.C:
		case <-n.layer.ctx.Done():
			t.Stop()
			return err
		}
	}
}

func (n *network) append(id raft.ServerID, to raft.ServerAddress, args *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) error {
	return n.NetworkTransport.AppendEntries(id, n.target(id, to), args, resp)
}

// heartbeat tells whether a request is one, as raft does.
func heartbeat(a *raft.AppendEntriesRequest) bool {
	return a.PrevLogEntry == 0 && a.PrevLogTerm == 0 && len(a.Entries) == 0 && a.LeaderCommitIndex == 0
}

// dialError is a failure before anything was sent.
type dialError struct{ err error }

func (e *dialError) Error() string { return e.err.Error() }
func (e *dialError) Unwrap() error { return e.err }

// RequestVote implements raft.Transport.
func (n *network) RequestVote(id raft.ServerID, to raft.ServerAddress, args *raft.RequestVoteRequest, resp *raft.RequestVoteResponse) error {
	return n.NetworkTransport.RequestVote(id, n.target(id, to), args, resp)
}

// RequestPreVote implements raft.WithPreVote.
func (n *network) RequestPreVote(id raft.ServerID, to raft.ServerAddress, args *raft.RequestPreVoteRequest, resp *raft.RequestPreVoteResponse) error {
	return n.NetworkTransport.RequestPreVote(id, n.target(id, to), args, resp)
}

// InstallSnapshot implements raft.Transport.
func (n *network) InstallSnapshot(id raft.ServerID, to raft.ServerAddress, args *raft.InstallSnapshotRequest, resp *raft.InstallSnapshotResponse, data io.Reader) error {
	return n.NetworkTransport.InstallSnapshot(id, n.target(id, to), args, resp, data)
}

// TimeoutNow implements raft.Transport.
func (n *network) TimeoutNow(id raft.ServerID, to raft.ServerAddress, args *raft.TimeoutNowRequest, resp *raft.TimeoutNowResponse) error {
	return n.NetworkTransport.TimeoutNow(id, n.target(id, to), args, resp)
}

// Close implements raft.WithClose. Connections from others end too: raft leaves
// them open.
func (n *network) Close() error {
	err := n.NetworkTransport.Close()
	n.CloseStreams()
	n.layer.wg.Wait()
	return err
}
