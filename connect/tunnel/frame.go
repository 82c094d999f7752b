package tunnel

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// A frame is a header of eight bytes and its payload, all big-endian:
//
//	type 1 | payload length 3 | stream id 4 | payload
//
// Types from typeIgnorable up may be skipped by who does not know them; any other
// unknown type is a violation.
const headerSize = 8

const (
	typeHello  = 0x01 // id 0; window 4, streams 4, reserved 4; first frame of each side
	typeOpen   = 0x02 // payload: the opener's metadata; client only
	typeData   = 0x03 // payload: 1 to MaxData bytes of the stream
	typeFin    = 0x04 // no payload: the sender's direction is complete
	typeReset  = 0x05 // code 4: what is not complete never will be; see unseenBit
	typeCredit = 0x06 // bytes 4 that may be sent beyond what was granted before
	typeGoaway = 0x07 // id 0; last id 4, code 4: open no more; ids after last are not looked at
	typePing   = 0x08 // id 0; 8 bytes, sent back
	typePong   = 0x09 // id 0; the 8 bytes of the ping

	typeIgnorable = 0x80

	typeRecall = 0x81 // bytes 4 of credit that the sender would have back, as far as it is not used
	typeReturn = 0x82 // bytes 4: the answer to each RECALL, of what the sender no longer has
)

// isCredit tells whether a frame is one of those that move credit back. A peer that does
// not know them ignores them, and keeps what it was granted.
func isCredit(typ byte) bool { return typ == typeRecall || typ == typeReturn }

// unseenBit, in the code of a RESET, says that the application saw nothing of the
// stream, so that it can be opened elsewhere though it carried data.
const unseenBit = 1 << 31

const (
	// ALPN is the protocol name in the TLS handshake.
	ALPN = "weft-tunnel/1"
	// MaxMeta bounds the metadata of a stream.
	MaxMeta = 1024
	// MaxData bounds the payload of one DATA frame.
	MaxData = 64 << 10

	helloSize   = 12
	maxHello    = 256     // a later version may append fields
	maxWindow   = 1 << 30 // of credit outstanding
	maxIgnored  = 64 << 10
	scratchSize = 8 // the largest fixed payload after the greeting
)

// ErrProtocol is wrapped by every error that says the peer broke the protocol.
var ErrProtocol = errors.New("tunnel protocol violation")

// ProtocolError says what the peer did. The tunnel is of no use after it.
type ProtocolError struct {
	What string
	Type byte
	ID   uint32
}

// Error implements error.
func (e *ProtocolError) Error() string {
	return fmt.Sprintf("%s: %s (frame type %#02x, stream %d); the peer's implementation is broken or hostile", ErrProtocol, e.What, e.Type, e.ID)
}

// Unwrap gives ErrProtocol.
func (e *ProtocolError) Unwrap() error { return ErrProtocol }

func putHeader(b []byte, typ byte, n int, id uint32) {
	binary.BigEndian.PutUint32(b, uint32(typ)<<24|uint32(n))
	binary.BigEndian.PutUint32(b[4:], id)
}

func appendHeader(dst []byte, typ byte, n int, id uint32) []byte {
	dst = binary.BigEndian.AppendUint32(dst, uint32(typ)<<24|uint32(n))
	return binary.BigEndian.AppendUint32(dst, id)
}

func appendWord(dst []byte, typ byte, id, v uint32) []byte {
	return binary.BigEndian.AppendUint32(appendHeader(dst, typ, 4, id), v)
}

// hello is what each side says of itself before anything else.
type hello struct {
	window  uint32 // what the other side may send on a fresh stream
	streams uint32 // how many streams the other side may have open
}

//nolint:unparam // appends, as the frames do
func (h hello) append(dst []byte) []byte {
	dst = appendHeader(dst, typeHello, helloSize, 0)
	dst = binary.BigEndian.AppendUint32(dst, h.window)
	dst = binary.BigEndian.AppendUint32(dst, h.streams)
	return binary.BigEndian.AppendUint32(dst, 0)
}

// helloLength checks the header of a greeting and returns the payload's length.
func helloLength(b []byte) (int, error) {
	word, id := binary.BigEndian.Uint32(b), binary.BigEndian.Uint32(b[4:])
	typ, n := byte(word>>24), int(word&0xffffff)
	if typ != typeHello || id != 0 || n < helloSize || n > maxHello {
		return 0, &ProtocolError{What: "the first frame is no greeting", Type: typ, ID: id}
	}
	return n, nil
}

func parseHello(payload []byte) (hello, error) {
	h := hello{window: binary.BigEndian.Uint32(payload), streams: binary.BigEndian.Uint32(payload[4:])}
	if h.window == 0 || h.window > maxWindow || h.streams == 0 {
		return h, &ProtocolError{What: fmt.Sprintf("greeting with window %d and %d streams", h.window, h.streams), Type: typeHello}
	}
	return h, nil
}
