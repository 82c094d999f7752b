package catalog

// MaxTxnOps bounds the operations of one transaction.
const MaxTxnOps = 128

// Txn does all of its operations, in order, or none of them: an operation that
// fails undoes the others, which are tried all the same so that every failure is
// told.
// Result: *TxnResult.
type Txn struct{ Ops []TxnOp }

// TxnOp is one operation; exactly one of its fields is set.
type TxnOp struct {
	KV      *KVOp      `weft:",omitempty"`
	Node    *NodeOp    `weft:",omitempty"`
	Service *ServiceOp `weft:",omitempty"`
	Check   *CheckOp   `weft:",omitempty"`
}

// TxnVerb is what an operation does.
type TxnVerb string

// Verbs. Nodes, services and checks know get, set, cas, delete and delete-cas.
const (
	TxnGet       TxnVerb = "get"
	TxnSet       TxnVerb = "set"
	TxnCAS       TxnVerb = "cas" // as set, when last changed at the index given
	TxnDelete    TxnVerb = "delete"
	TxnDeleteCAS TxnVerb = "delete-cas"

	TxnDeleteTree     TxnVerb = "delete-tree"
	TxnLock           TxnVerb = "lock"
	TxnUnlock         TxnVerb = "unlock"
	TxnGetTree        TxnVerb = "get-tree"
	TxnGetOrEmpty     TxnVerb = "get-or-empty"
	TxnCheckSession   TxnVerb = "check-session" // fails unless the session holds the key
	TxnCheckIndex     TxnVerb = "check-index"   // fails unless last changed at the index given
	TxnCheckNotExists TxnVerb = "check-not-exists"
)

// reads tells whether an operation with the verb changes nothing.
func (v TxnVerb) reads() bool {
	switch v {
	case TxnGet, TxnGetTree, TxnGetOrEmpty, TxnCheckSession, TxnCheckIndex, TxnCheckNotExists:
		return true
	default:
		return false
	}
}

var (
	kvVerbs = verbSet(TxnGet, TxnSet, TxnCAS, TxnDelete, TxnDeleteCAS, TxnDeleteTree, TxnLock, TxnUnlock, TxnGetTree,
		TxnGetOrEmpty, TxnCheckSession, TxnCheckIndex, TxnCheckNotExists)
	rowVerbs = verbSet(TxnGet, TxnSet, TxnCAS, TxnDelete, TxnDeleteCAS)
)

func verbSet(verbs ...TxnVerb) map[TxnVerb]bool {
	out := make(map[TxnVerb]bool, len(verbs))
	for _, v := range verbs {
		out[v] = true
	}
	return out
}

// KVOp is an operation on a key, or on those with a prefix. Index is for the verbs
// that compare.
type KVOp struct {
	Verb  TxnVerb
	Pair  KVPair
	Index uint64
}

// NodeOp is an operation on a node, named by its ID or its name. The verbs that
// compare look at Node.ModifyIndex.
type NodeOp struct {
	Verb TxnVerb
	Node Node
}

// ServiceOp is an operation on a service of the node that is named.
type ServiceOp struct {
	Verb    TxnVerb
	Node    string
	Service Service
}

// CheckOp is an operation on a check; its Node says where.
type CheckOp struct {
	Verb  TxnVerb
	Check Check
}

// TxnResult is what a transaction gave: results, or, when it was undone, errors.
type TxnResult struct {
	Results []TxnItem
	Errors  []TxnError
}

// TxnItem is a row that an operation read or wrote; exactly one field is set.
// Deletions and some checks have none. The value of a key is there when it was read.
type TxnItem struct {
	KV      *KVPair  `weft:",omitempty"`
	Node    *Node    `weft:",omitempty"`
	Service *Service `weft:",omitempty"`
	Check   *Check   `weft:",omitempty"`
}

// TxnError says which operation failed, counted from 0, and why.
type TxnError struct {
	OpIndex int
	What    string
}

// CommandType implements Command.
func (*Txn) CommandType() CommandType { return CmdTxn }

// Validate implements Command. What is wrong with an operation is its own failure,
// see Refused.
func (c *Txn) Validate() error {
	if len(c.Ops) > MaxTxnOps {
		return Invalidf("Transaction contains too many operations (%d > %d)", len(c.Ops), MaxTxnOps)
	}
	return nil
}

// ReadOnly tells whether no operation changes anything.
func (c *Txn) ReadOnly() bool {
	for i := range c.Ops {
		if !c.Ops[i].ReadOnly() {
			return false
		}
	}
	return true
}

// ReadOnly tells whether the operation changes nothing. One with a verb that does
// not exist does not: it is only refused.
func (o *TxnOp) ReadOnly() bool {
	switch {
	case o.KV != nil:
		return o.KV.Verb.reads() || !kvVerbs[o.KV.Verb]
	case o.Node != nil:
		return o.Node.Verb.reads()
	case o.Service != nil:
		return o.Service.Verb.reads()
	case o.Check != nil:
		return o.Check.Verb.reads()
	default:
		return true
	}
}

// Refused lists the operations that no state could accept, and those that clients may
// not write.
func (c *Txn) Refused() []TxnError {
	var out []TxnError
	for i := range c.Ops {
		op := &c.Ops[i]
		err := op.Validate()
		if n := op.Node; err == nil && n != nil && (n.Verb == TxnSet || n.Verb == TxnCAS) {
			err = ValidNodeID(n.Node.ID)
		}
		if err != nil {
			out = append(out, TxnError{i, err.Error()})
		}
	}
	return out
}

// Validate refuses an operation that no state could accept.
func (o *TxnOp) Validate() error {
	set := 0
	for _, is := range []bool{o.KV != nil, o.Node != nil, o.Service != nil, o.Check != nil} {
		if is {
			set++
		}
	}
	if set != 1 {
		return Invalidf("operation: exactly one of KV, Node, Service and Check must be there")
	}
	switch {
	case o.KV != nil:
		return o.KV.validate()
	case o.Node != nil:
		return o.Node.validate()
	case o.Service != nil:
		return o.Service.validate()
	default:
		return o.Check.validate()
	}
}

func (o *KVOp) validate() error {
	switch {
	case !kvVerbs[o.Verb]:
		return Invalidf("unknown KV operation: %s", o.Verb)
	case o.Verb == TxnDeleteTree:
		return validPrefix(o.Pair.Key)
	case o.Verb == TxnLock, o.Verb == TxnUnlock:
		return validLock(&o.Pair)
	default:
		return validKey(o.Pair.Key)
	}
}

func (o *NodeOp) validate() error {
	if !rowVerbs[o.Verb] {
		return Invalidf("unknown Node operation: %s", o.Verb)
	}
	if o.Node.Node == "" && o.Node.ID != "" && o.Verb == TxnGet {
		return validName("node ID", o.Node.ID)
	}
	return validNode(&o.Node)
}

func (o *ServiceOp) validate() error {
	if !rowVerbs[o.Verb] {
		return Invalidf("unknown Service operation: %s", o.Verb)
	}
	if o.Service.Service == "" {
		return Invalidf("Must provide service name (Service.Service) when service ID is provided")
	}
	if err := validName("service node", o.Node); err != nil {
		return err
	}
	switch o.Verb {
	case TxnSet, TxnCAS:
		return validService(&o.Service)
	default:
		return validName("service ID", o.Service.ID)
	}
}

func (o *CheckOp) validate() error {
	if !rowVerbs[o.Verb] {
		return Invalidf("unknown Check operation: %s", o.Verb)
	}
	if err := validName("check node", o.Check.Node); err != nil {
		return err
	}
	switch o.Verb {
	case TxnSet, TxnCAS:
		return validCheck(&o.Check)
	default:
		return validName("check ID", o.Check.CheckID)
	}
}
