package catalog

import (
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// Limits of the key/value store.
const (
	// MaxKey bounds the bytes of a key. Keys come in the path of a URL.
	MaxKey = 16 << 10
	// MaxValue bounds the bytes of a value, unless the agent is configured otherwise.
	MaxValue = 512 << 10
)

// KVPair is a key and its value. Session is who holds the key as a lock, and
// LockIndex counts how often it was acquired.
type KVPair struct {
	Key       string
	Value     []byte
	Flags     uint64
	LockIndex uint64
	Session   string
	RaftIndex
}

// KeyDelay keeps a key from being locked for a while after its holder's session
// ended, so that a holder which does not know yet can stop. Nobody measures the
// time while a command is applied: the leader does, and then ends the delay with
// a command. Its RaftIndex says which end of a session it is of.
type KeyDelay struct {
	Key   string
	Delay time.Duration
	RaftIndex
}

// SetKey writes a key. Whoever holds it as a lock keeps it. With CAS it applies
// only when the key was last changed at Index (0: when there is none).
// Result: bool, false when the check-and-set lost.
type SetKey struct {
	Pair  KVPair
	CAS   bool
	Index uint64
}

// DeleteKey removes a key; one that is not there is no error. With CAS it applies
// only when the key was last changed at Index.
// Result: bool, false when the check-and-set lost.
type DeleteKey struct {
	Key   string
	CAS   bool
	Index uint64
}

// DeleteKeys removes every key with the prefix; the empty one is of all keys.
// Result: nil.
type DeleteKeys struct{ Prefix string }

// LockKey writes a key and makes Pair.Session its holder. It is refused with
// ErrInvalid when there is no such session.
// Result: bool, false when another session holds the key, or a KeyDelay is on it.
type LockKey struct{ Pair KVPair }

// UnlockKey writes a key that Pair.Session holds, which then nobody does.
// Result: bool, false when that session does not hold it.
type UnlockKey struct{ Pair KVPair }

// EndKeyDelays ends delays, each only where it is still of the ModifyIndex given.
// The leader alone does that.
// Result: nil.
type EndKeyDelays struct{ Delays []KeyDelay }

// CommandType implements Command.
func (*SetKey) CommandType() CommandType { return CmdSetKey }

// CommandType implements Command.
func (*DeleteKey) CommandType() CommandType { return CmdDeleteKey }

// CommandType implements Command.
func (*DeleteKeys) CommandType() CommandType { return CmdDeleteKeys }

// CommandType implements Command.
func (*LockKey) CommandType() CommandType { return CmdLockKey }

// CommandType implements Command.
func (*UnlockKey) CommandType() CommandType { return CmdUnlockKey }

// CommandType implements Command.
func (*EndKeyDelays) CommandType() CommandType { return CmdEndKeyDelays }

// Validate implements Command.
func (c *SetKey) Validate() error { return validKey(c.Pair.Key) }

// Validate implements Command.
func (c *DeleteKey) Validate() error { return validKey(c.Key) }

// Validate implements Command.
func (c *DeleteKeys) Validate() error { return validPrefix(c.Prefix) }

// Validate implements Command.
func (c *LockKey) Validate() error { return validLock(&c.Pair) }

// Validate implements Command.
func (c *UnlockKey) Validate() error { return validLock(&c.Pair) }

// Validate implements Command.
func (c *EndKeyDelays) Validate() error {
	for _, d := range c.Delays {
		if err := validKey(d.Key); err != nil {
			return err
		}
	}
	return nil
}

func validLock(p *KVPair) error {
	if err := validKey(p.Key); err != nil {
		return err
	}
	if p.Session == "" {
		return Invalidf("key %q: no session is named that is to hold it", p.Key)
	}
	return validSessionID(p.Session)
}

func validKey(key string) error {
	if key == "" {
		return Invalidf("Must provide key")
	}
	return validPrefix(key)
}

// validPrefix is validKey where no key at all is fine too.
func validPrefix(key string) error {
	if len(key) > MaxKey {
		return Invalidf("key: it has %d bytes, at most %d are allowed", len(key), MaxKey)
	}
	// As with names: what is not UTF-8 would name another key once it was in JSON,
	// and control characters cannot come in a path.
	if !utf8.ValidString(key) || strings.ContainsFunc(key, unicode.IsControl) {
		return Invalidf("key %q: it has control characters or is not UTF-8", key)
	}
	return nil
}
