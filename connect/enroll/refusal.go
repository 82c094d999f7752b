package enroll

import (
	"errors"
	"fmt"
)

// Reason says in one word why a node was not let in.
type Reason string

// Reasons. Those that are not lasting may be gone when the node asks again.
const (
	ReasonBadRequest    Reason = "bad_request"
	ReasonBadToken      Reason = "bad_token"
	ReasonTokenExpired  Reason = "token_expired"
	ReasonTokenRevoked  Reason = "token_revoked"
	ReasonNodeRevoked   Reason = "node_revoked"
	ReasonNeedToken     Reason = "need_token"
	ReasonDatacenter    Reason = "wrong_datacenter"
	ReasonNameTaken     Reason = "name_taken"
	ReasonNodeIDInUse   Reason = "node_id_in_use"
	ReasonLimited       Reason = "limited"
	ReasonUnavailable   Reason = "unavailable"
	maxRefusalText             = 1 << 10
	refusedForNoneToSee        = "this server cannot admit nodes now; ask again, or another server"
)

// Refusal is why a node was not let in, and what to do about it.
type Refusal struct {
	Reason  Reason
	Message string
}

// Refuse makes a Refusal, for Registrars.
func Refuse(r Reason, format string, args ...any) error {
	return &Refusal{Reason: r, Message: fmt.Sprintf(format, args...)}
}

// Error implements error.
func (r *Refusal) Error() string { return "join refused (" + string(r.Reason) + "): " + r.Message }

// Lasting tells whether asking again changes nothing before somebody acts.
func (r *Refusal) Lasting() bool {
	return r.Reason != ReasonLimited && r.Reason != ReasonUnavailable
}

// ReasonOf is the reason in err, "" when there is none.
func ReasonOf(err error) Reason {
	var r *Refusal
	if errors.As(err, &r) {
		return r.Reason
	}
	return ""
}
