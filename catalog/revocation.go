package catalog

import (
	"strings"
	"time"
)

// What can be revoked.
const (
	RevokedToken = "token" // a join token, by its ID
	RevokedNode  = "node"  // a node, by its node ID
)

// Revocation bars a join token, or a node with whatever certificate it holds, from
// the cluster.
type Revocation struct {
	Kind string
	ID   string
	// Node is the name that a revoked node had, for people.
	Node string
	At   time.Time
	// Expires is when the revocation may be forgotten, well after the thing has ended by
	// itself; zero for a node, which has to be allowed again.
	Expires time.Time
	RaftIndex
}

// Revoke adds a revocation; one that is there stays as it is. Revocations whose
// Expires is before the new one's At are forgotten.
// Result: bool, false when it was revoked already.
type Revoke struct{ Revocation Revocation }

// Allow takes a revocation back. One that is not there is no error.
// Result: bool, false when there was none.
type Allow struct{ Kind, ID string }

// CommandType implements Command.
func (*Revoke) CommandType() CommandType { return CmdRevoke }

// CommandType implements Command.
func (*Allow) CommandType() CommandType { return CmdAllow }

// Validate implements Command.
func (c *Revoke) Validate() error {
	r := c.Revocation
	if err := validRevoked(r.Kind, r.ID); err != nil {
		return err
	}
	if err := validOptionalName("revocation of "+r.Kind+" "+r.ID, r.Node); err != nil {
		return err
	}
	switch {
	case r.At.IsZero():
		return Invalidf("revocation of %s %s: it has no time", r.Kind, r.ID)
	case r.Kind == RevokedNode && !r.Expires.IsZero():
		return Invalidf("revocation of node %s: it does not end by itself", r.ID)
	case r.Kind == RevokedToken && r.Expires.IsZero():
		return Invalidf("revocation of token %s: it does not say when the token ends", r.ID)
	}
	return nil
}

// Validate implements Command.
func (c *Allow) Validate() error { return validRevoked(c.Kind, c.ID) }

func validRevoked(kind, id string) error {
	if kind != RevokedToken && kind != RevokedNode {
		return Invalidf("revocation: %q is neither %q nor %q", kind, RevokedToken, RevokedNode)
	}
	if err := validName("revocation of a "+kind, id); err != nil {
		return err
	}
	if id != strings.ToLower(id) {
		return Invalidf("revocation of %s %s: IDs are in lower case", kind, id)
	}
	return nil
}

// Revoked tells whether the view of QueryRevocations bars the thing. It is quick
// enough to be asked of each connection: the rows are in order.
func (v *View) Revoked(kind, id string) bool {
	if v == nil || len(v.Revocations) == 0 {
		return false
	}
	_, ok := revocationList.find(v.Revocations, Key{A: kind, B: strings.ToLower(id)})
	return ok
}
