package catalog

// CommandType numbers the commands in the log. Numbers are never reused.
type CommandType uint16

// Commands.
const (
	CmdSyncNode       CommandType = 1
	CmdRegister       CommandType = 2
	CmdDeregister     CommandType = 3
	CmdSetConfigEntry CommandType = 4
	CmdDelConfigEntry CommandType = 5
	CmdSetIntention   CommandType = 6
	CmdDelIntention   CommandType = 7
	CmdSetCAConfig    CommandType = 8
	CmdSetRoots       CommandType = 9

	CmdSetKey          CommandType = 20
	CmdDeleteKey       CommandType = 21
	CmdDeleteKeys      CommandType = 22
	CmdLockKey         CommandType = 23
	CmdUnlockKey       CommandType = 24
	CmdCreateSession   CommandType = 25
	CmdDestroySessions CommandType = 26
	CmdEndKeyDelays    CommandType = 27
	CmdTxn             CommandType = 28

	CmdSetEntryStatus       CommandType = 30
	CmdSetPreparedQuery     CommandType = 40
	CmdDelPreparedQuery     CommandType = 41
	CmdSetCoordinates       CommandType = 42
	CmdSetAutopilot         CommandType = 50
	CmdSetCertRevocation    CommandType = 70
	CmdDelCertRevocation    CommandType = 71
	CmdPruneCertRevocations CommandType = 72

	CmdSetVirtualIPs CommandType = 80

	CmdRevoke CommandType = 60
	CmdAllow  CommandType = 61
)

// Command is a change to the replicated state. It is validated before it enters
// the log; applied, it may still be refused by the state it meets (a lost
// check-and-set), and returns that as its result. Clocks and random values that
// it needs are fields, set before it enters the log.
type Command interface {
	CommandType() CommandType
	// Validate refuses what no state could accept. The error wraps ErrInvalid.
	Validate() error
}

// NewCommand returns an empty command of the type, for decoders.
func NewCommand(t CommandType) (Command, error) {
	switch t {
	case CmdSyncNode:
		return &SyncNode{}, nil
	case CmdRegister:
		return &Register{}, nil
	case CmdDeregister:
		return &Deregister{}, nil
	case CmdSetConfigEntry:
		return &SetConfigEntry{}, nil
	case CmdDelConfigEntry:
		return &DeleteConfigEntry{}, nil
	case CmdSetIntention:
		return &SetIntention{}, nil
	case CmdDelIntention:
		return &DeleteIntention{}, nil
	case CmdSetCAConfig:
		return &SetCAConfig{}, nil
	case CmdSetRoots:
		return &SetRoots{}, nil
	case CmdSetEntryStatus:
		return &SetEntryStatus{}, nil
	case CmdSetPreparedQuery:
		return &SetPreparedQuery{}, nil
	case CmdDelPreparedQuery:
		return &DeletePreparedQuery{}, nil
	case CmdSetCoordinates:
		return &SetCoordinates{}, nil
	case CmdSetAutopilot:
		return &SetAutopilot{}, nil
	case CmdSetCertRevocation:
		return &SetCertRevocation{}, nil
	case CmdDelCertRevocation:
		return &DeleteCertRevocation{}, nil
	case CmdPruneCertRevocations:
		return &PruneCertRevocations{}, nil
	case CmdSetVirtualIPs:
		return &SetVirtualIPs{}, nil
	case CmdRevoke:
		return &Revoke{}, nil
	case CmdAllow:
		return &Allow{}, nil
	case CmdSetKey:
		return &SetKey{}, nil
	case CmdDeleteKey:
		return &DeleteKey{}, nil
	case CmdDeleteKeys:
		return &DeleteKeys{}, nil
	case CmdLockKey:
		return &LockKey{}, nil
	case CmdUnlockKey:
		return &UnlockKey{}, nil
	case CmdCreateSession:
		return &CreateSession{}, nil
	case CmdDestroySessions:
		return &DestroySessions{}, nil
	case CmdEndKeyDelays:
		return &EndKeyDelays{}, nil
	case CmdTxn:
		return &Txn{}, nil
	default:
		if c := laterCommand(t); c != nil {
			return c, nil
		}
		return nil, Invalidf("command type %d is unknown", t)
	}
}

// SyncNode makes the catalog agree with what an agent says of its host: upserts
// what is there, removes services and checks of that node that are not. The node
// check and server rows, which belong to the leader, stay.
// Result: nil.
type SyncNode struct {
	State         NodeState
	laterSyncNode //nolint:unused // what a later version adds
}

// Register upserts a node and, beside it, at most one service and any checks; it
// removes nothing. Service and check names refer to the node.
// Result: nil.
type Register struct {
	// SkipNodeUpdate leaves an existing node row as it is.
	SkipNodeUpdate bool
	Node           *Node
	Service        *Service
	Checks         []*Check
}

// Deregister removes one check, one service with its checks, or, with neither
// named, a node with all that is on it. Removing what is not there is no error.
// Result: nil.
type Deregister struct {
	Node      string
	ServiceID string
	CheckID   string
}

// SetConfigEntry upserts a config entry. With CAS it applies only when the
// entry's ModifyIndex is Index (0: when there is none).
// Result: bool, false when the check-and-set lost.
type SetConfigEntry struct {
	Entry Entry
	CAS   bool
	Index uint64
}

// DeleteConfigEntry removes a config entry; one that is not there is no error.
// Result: bool, false when the check-and-set lost.
type DeleteConfigEntry struct {
	Kind  string
	Name  string
	CAS   bool
	Index uint64
}

// SetIntention upserts one source in the service-intentions entry of a
// destination, which it creates when there is none.
// Result: nil.
type SetIntention struct {
	Destination Name
	Source      SourceIntention
	// CreateOnly refuses, with ErrConflict, a pair that has an intention.
	CreateOnly bool
}

// DeleteIntention removes the source from the entry of its destination, and the
// entry with its last source. Exactly one of the pair and ID (a legacy ID) is
// set; a pair or ID that is not there is no error.
// Result: nil.
type DeleteIntention struct {
	Destination Name
	Source      Name
	SourcePeer  string
	ID          string
}

// SetCAConfig replaces the configuration of the certificate authority, keeping
// the cluster ID once there is one. With CAS as SetConfigEntry.
// Result: bool.
type SetCAConfig struct {
	Config CAConfig
	CAS    bool
	Index  uint64
}

// SetRoots replaces the set of roots, only when it was last changed at Index.
// Result: bool, false when the check-and-set lost.
type SetRoots struct {
	Roots []*Root
	Index uint64
}

// CommandType implements Command.
func (*SyncNode) CommandType() CommandType { return CmdSyncNode }

// CommandType implements Command.
func (*Register) CommandType() CommandType { return CmdRegister }

// CommandType implements Command.
func (*Deregister) CommandType() CommandType { return CmdDeregister }

// CommandType implements Command.
func (*SetConfigEntry) CommandType() CommandType { return CmdSetConfigEntry }

// CommandType implements Command.
func (*DeleteConfigEntry) CommandType() CommandType { return CmdDelConfigEntry }

// CommandType implements Command.
func (*SetIntention) CommandType() CommandType { return CmdSetIntention }

// CommandType implements Command.
func (*DeleteIntention) CommandType() CommandType { return CmdDelIntention }

// CommandType implements Command.
func (*SetCAConfig) CommandType() CommandType { return CmdSetCAConfig }

// CommandType implements Command.
func (*SetRoots) CommandType() CommandType { return CmdSetRoots }
