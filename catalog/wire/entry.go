package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"

	"github.com/weftmesh/weft/catalog"
)

// ErrIgnored is what DecodeEntry returns for an entry of a type that this version
// does not know and that its writer marked as safe to skip.
var ErrIgnored = errors.New("log entry of an unknown type, marked as one to ignore")

// ErrDamaged is what the checksum of a log entry says of bytes that are not those
// that were written.
var ErrDamaged = errors.New("the checksum does not match: the bytes are not those that were written")

// MaxEntry bounds a log entry: larger ones would delay the leader's heartbeats. It
// holds the largest value of a key, and the largest transaction.
const MaxEntry = 1 << 20

// The envelope of a log entry: one byte of format version, the command type in
// two bytes, one byte of flags, the CRC-32C of all the other bytes in four, and
// the encoded command. Integers have their most significant byte first.
const (
	entryVersion   = 1
	entrySum       = 4 // where the checksum stands
	entryHeader    = entrySum + crc32.Size
	flagIgnorable  = 1 << 0
	flagsWithSense = flagIgnorable
)

// Ignorable is implemented by commands that a server too old to know them may
// skip without its state going wrong. Most may not be skipped.
type Ignorable interface{ IgnoreIfUnknown() bool }

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// checksum covers everything but itself.
func checksum(b []byte) uint32 {
	return crc32.Update(crc32.Checksum(b[:entrySum], castagnoli), castagnoli, b[entryHeader:])
}

// EncodeEntry puts a command into the envelope of a log entry.
func EncodeEntry(cmd catalog.Command) ([]byte, error) {
	if cmd == nil {
		return nil, fmt.Errorf("log entry: %w: no command", catalog.ErrInvalid)
	}
	body, err := encode(cmd)
	if err != nil {
		return nil, err
	}
	if n := len(body) + entryHeader; n > MaxEntry {
		return nil, fmt.Errorf("log entry of %d bytes: %w: at most %d are allowed", n, catalog.ErrTooLarge, MaxEntry)
	}
	var flags byte
	if i, ok := cmd.(Ignorable); ok && i.IgnoreIfUnknown() {
		flags |= flagIgnorable
	}
	t := cmd.CommandType()
	b := make([]byte, entryHeader, entryHeader+len(body))
	b[0], b[1], b[2], b[3] = entryVersion, byte(t>>8), byte(t), flags
	b = append(b, body...)
	binary.BigEndian.PutUint32(b[entrySum:], checksum(b))
	return b, nil
}

// VerifyEntry tells, without decoding it, whether b is an entry as it was written,
// of whatever type. It cannot judge an entry in the format of a newer version.
func VerifyEntry(b []byte) error {
	if len(b) < entryHeader {
		return fmt.Errorf("log entry: %w: cut short at %d bytes", catalog.ErrInvalid, len(b))
	}
	if b[0] != entryVersion {
		return fmt.Errorf("log entry: %w: format %d is not known, this version reads %d; it is damaged, or of a newer version",
			catalog.ErrInvalid, b[0], entryVersion)
	}
	if binary.BigEndian.Uint32(b[entrySum:]) != checksum(b) {
		return fmt.Errorf("log entry: %w", ErrDamaged)
	}
	return nil
}

// EntryType is the type of the command in an entry that VerifyEntry found whole.
func EntryType(b []byte) catalog.CommandType {
	return catalog.CommandType(b[1])<<8 | catalog.CommandType(b[2])
}

// DecodeEntry opens the envelope. It returns ErrIgnored for what may be skipped;
// any other error means that this server cannot follow the log.
func DecodeEntry(b []byte) (catalog.Command, error) {
	if err := VerifyEntry(b); err != nil {
		return nil, err
	}
	t, flags := EntryType(b), b[3]
	if flags&^flagsWithSense != 0 {
		return nil, fmt.Errorf("log entry: %w: flags %#x are not known; run a newer version", catalog.ErrInvalid, flags)
	}
	cmd, err := catalog.NewCommand(t)
	if err != nil {
		if flags&flagIgnorable != 0 {
			return nil, fmt.Errorf("%w: %d", ErrIgnored, t)
		}
		return nil, fmt.Errorf("log entry: %w; run a newer version", err)
	}
	if err := Unmarshal(b[entryHeader:], cmd); err != nil {
		return nil, fmt.Errorf("log entry of type %d: %w", t, err)
	}
	return cmd, nil
}
