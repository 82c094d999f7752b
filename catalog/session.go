package catalog

import (
	"cmp"
	"time"
)

// SessionBehavior says what becomes of the keys that a session holds when it ends.
type SessionBehavior = string

// Behaviors of sessions.
const (
	// SessionRelease lets the keys be, without a holder.
	SessionRelease SessionBehavior = "release"
	// SessionDelete deletes the keys.
	SessionDelete SessionBehavior = "delete"
)

// Limits and defaults of sessions.
const (
	// DefaultLockDelay is the LockDelay of a session that names none.
	DefaultLockDelay = 15 * time.Second
	// MaxLockDelay bounds how long a key is kept from being locked.
	MaxLockDelay = time.Minute
	// MinSessionTTL and MaxSessionTTL bound the TTL of a session. Servers may be
	// configured with another least one.
	MinSessionTTL = 10 * time.Second
	MaxSessionTTL = 24 * time.Hour
	// maxSessionChecks bounds the checks that one session depends on.
	maxSessionChecks = 256
)

// Session is who may hold keys as locks. It lives on a node and ends with it, with
// any of its checks (one that turns critical or goes away), when its TTL passes
// without a renewal, or when it is destroyed.
type Session struct {
	ID   string // a UUID, made before the command enters the log
	Name string
	Node string
	// NodeChecks and ServiceChecks are checks on the node, by their IDs.
	NodeChecks    []string
	ServiceChecks []SessionCheck
	LockDelay     time.Duration
	Behavior      SessionBehavior
	// TTL is a duration as it was given, empty for none.
	TTL string
	RaftIndex
}

// SessionCheck names a check of a service.
type SessionCheck struct {
	ID        string
	Namespace string // refused unless empty or "default"
}

// Timeout is the TTL, 0 for none.
func (s *Session) Timeout() time.Duration {
	d, err := time.ParseDuration(s.TTL)
	if err != nil {
		return 0 // empty; all else was refused
	}
	return d
}

// CheckIDs lists the checks that the session depends on.
func (s *Session) CheckIDs() []string {
	out := make([]string, 0, len(s.NodeChecks)+len(s.ServiceChecks))
	out = append(out, s.NodeChecks...)
	for _, c := range s.ServiceChecks {
		out = append(out, c.ID)
	}
	return out
}

// CreateSession makes a session. It is refused when its node or one of its checks
// is not there, or a check is critical.
// Result: nil.
type CreateSession struct{ Session Session }

// DestroySessions ends sessions; one that is not there is no error.
// Result: nil.
type DestroySessions struct{ IDs []string }

// CommandType implements Command.
func (*CreateSession) CommandType() CommandType { return CmdCreateSession }

// CommandType implements Command.
func (*DestroySessions) CommandType() CommandType { return CmdDestroySessions }

// Validate implements Command.
func (c *CreateSession) Validate() error {
	s := &c.Session
	if err := validSessionID(s.ID); err != nil {
		return err
	}
	if s.Node == "" {
		return Invalidf("Must provide Node")
	}
	if err := validName("session node", s.Node); err != nil {
		return err
	}
	if err := validOptionalName("session name", s.Name); err != nil {
		return err
	}
	if s.Behavior != SessionRelease && s.Behavior != SessionDelete {
		return Invalidf("Invalid Behavior setting '%s'", s.Behavior)
	}
	if err := validTTL(s.TTL); err != nil {
		return err
	}
	return s.validChecks()
}

func validTTL(ttl string) error {
	if ttl == "" {
		return nil
	}
	d, err := time.ParseDuration(ttl)
	if err != nil {
		return Invalidf("Session TTL '%s' invalid: %w", ttl, err)
	}
	return TTLWithin(d, 0)
}

// TTLWithin refuses the TTL of a session that is below the least that a server
// takes, or too long. 0 is none. It is worded as Consul does, in nanoseconds.
func TTLWithin(d, least time.Duration) error {
	if d != 0 && (d < least || d < 0 || d > MaxSessionTTL) {
		return Invalidf("Invalid Session TTL '%d', must be between [%s=%s]", d, cmp.Or(least, MinSessionTTL), MaxSessionTTL)
	}
	return nil
}

func (s *Session) validChecks() error {
	ids := s.CheckIDs()
	if len(ids) > maxSessionChecks {
		return Invalidf("session: %d checks are named, at most %d are allowed", len(ids), maxSessionChecks)
	}
	for _, id := range ids {
		if err := validName("session check", id); err != nil {
			return err
		}
	}
	for _, c := range s.ServiceChecks {
		if c.Namespace != "" && c.Namespace != "default" {
			return Invalidf("session check %s: invalid Namespace %q: Namespaces are a Consul Enterprise feature", c.ID, c.Namespace)
		}
	}
	return nil
}

// Validate implements Command.
func (c *DestroySessions) Validate() error {
	if len(c.IDs) == 0 {
		return Invalidf("Must provide ID")
	}
	for _, id := range c.IDs {
		if err := validSessionID(id); err != nil {
			return err
		}
	}
	return nil
}

func validSessionID(id string) error { return validName("session ID", id) }
