package connect

import (
	"fmt"

	"github.com/weftmesh/weft/connect/tunnel"
)

// codeOf is what the far end is told of a connection that ends here for a reason.
func codeOf(why Reason) tunnel.Code {
	switch why {
	case ReasonDenied:
		return tunnel.CodeRefused
	case ReasonPolicyChanged:
		return tunnel.CodeRevoked
	case ReasonDialFailed:
		return tunnel.CodeDialFailed
	case ReasonLimit:
		return tunnel.CodeLimit
	case ReasonDraining:
		return tunnel.CodeDraining
	case ReasonIdle:
		return tunnel.CodeIdle
	case ReasonTLSFailed, ReasonCertExpired:
		return tunnel.CodeUnauthenticated
	default:
		return tunnel.CodeCancelled
	}
}

// told is the reason that the far end gave with a reset; other stands for those that
// say no more than that it ended.
func told(c tunnel.Code, other Reason) Reason {
	switch c {
	case tunnel.CodeRefused:
		return ReasonDenied
	case tunnel.CodeRevoked:
		return ReasonPolicyChanged
	case tunnel.CodeDialFailed:
		return ReasonDialFailed
	case tunnel.CodeLimit:
		return ReasonLimit
	case tunnel.CodeDraining:
		return ReasonDraining
	case tunnel.CodeIdle:
		return ReasonIdle
	case tunnel.CodeUnauthenticated:
		return ReasonTLSFailed
	default:
		return other
	}
}

// endingOf names how a carried connection ended.
func endingOf(outbound bool, e tunnel.End) ending {
	here, there := ReasonServerClosed, ReasonClientClosed
	if outbound {
		here, there = there, here
	}
	switch e.Cause {
	case tunnel.CauseDone:
		return ending{reason: ReasonOK}
	case tunnel.CauseApp:
		return ending{reason: here, err: e.Err}
	case tunnel.CauseDial:
		return ending{reason: ReasonDialFailed, err: fmt.Errorf("the application does not answer: %w", e.Err)}
	case tunnel.CauseOwner:
		if e.Code == tunnel.CodeLimit {
			return ending{reason: ReasonLimit, err: e.Err} // of memory
		}
		return ending{reason: ReasonDraining, err: e.Err}
	case tunnel.CausePeer:
		if outbound {
			return ending{reason: told(e.Code, there), err: e.Err}
		}
		// What a source says of itself is not for our counters of refusals.
		return ending{reason: there, err: e.Err}
	default:
		return ending{reason: there, err: e.Err}
	}
}
