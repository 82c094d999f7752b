package wire

import (
	"fmt"
	"reflect"

	"github.com/hashicorp/go-msgpack/v2/codec"

	"github.com/weftmesh/weft/catalog"
)

// Limits of messages. An agent states a host in one message, a server answers
// with whole views; neither may make the other allocate without bound.
const (
	// MaxRequest bounds what a server takes in one message.
	MaxRequest = 8 << 20
	// MaxReply bounds what a client takes in one message.
	MaxReply = 128 << 20

	// maxDepth bounds the nesting of opaque values.
	maxDepth = 128
	// minInit is what the decoder allocates at first on a length's word alone, in elements
	// or bytes, where the message is short; see decoder.
	minInit = 256
	// initPart is the part of a message, one of so many, that it allocates for a longer one.
	initPart = 16
)

// handle fixes every option of the encoding. Changing one is a change of the log
// format. Fields go by their Go names (no tags but weft are read), so that a change of the
// JSON of a noun never changes the log. A field with the tag weft:",omitempty" is left out
// where it has no value: rows have fifty fields, of which a few are set. Lists and maps have no such tag, as it would make empty ones nil.
// Times keep their offset, which MessagePack's
// own time does not.
var handle = newHandle(minInit)

// longHandles decode longer messages, each those of twice the length. They differ from
// handle in nothing else.
var longHandles = func() (out [12]*codec.MsgpackHandle) {
	for i := range out {
		out[i] = newHandle(minInit << (i + 1))
	}
	return out
}()

// typeInfos is what the handles know of Go's types.
var typeInfos = codec.NewTypeInfos([]string{"weft"})

// decoder reads b. The codec believes a length only so far, and makes room for bytes in
// pieces of that size, copying all that it has for each: a large value takes time by the
// square of its length unless the pieces grow with the message. Nor may a few bytes that
// announce many elements make it allocate much. So a piece is at most a sixteenth of the
// message and, up to MaxRequest, at least half of that.
func decoder(b []byte) *codec.Decoder {
	h := handle
	for _, longer := range longHandles {
		if longer.MaxInitLen > len(b)/initPart {
			break
		}
		h = longer
	}
	return codec.NewDecoderBytes(b, h)
}

func newHandle(maxInit int) *codec.MsgpackHandle {
	h := &codec.MsgpackHandle{}
	h.WriteExt = true // strings and bytes stay apart
	h.RawToString = true
	h.Canonical = true // one value, one encoding: sorted map keys
	h.TimeNotBuiltin = true
	h.SignedInteger = true
	h.MapType = reflect.TypeFor[map[string]any]()
	h.SliceType = reflect.TypeFor[[]any]()
	h.MaxInitLen = maxInit
	h.MaxDepth = maxDepth
	h.TypeInfos = typeInfos
	return h
}

// Marshal encodes v, a message or noun. Equal values have equal encodings.
func Marshal(v any) ([]byte, error) {
	head, view, err := split(v)
	if err != nil {
		return nil, err
	}
	return append(head, view...), nil
}

// split encodes v in two parts, of which the second, when there is one, is the
// encoding of a view, shared with every other message that carries it.
func split(v any) (head, view []byte, err error) {
	var carried *catalog.View
	switch m := v.(type) {
	case *ReadReply:
		carried, v = m.View, &replyHead{HasView: m.View != nil, Meta: m.Meta}
	case *WatchEvent:
		carried, v = m.View, &replyHead{HasView: m.View != nil, Meta: m.Meta, Current: m.Current, Epoch: m.Epoch, laterEvent: m.laterEvent}
	}
	if head, err = encode(v); err != nil || carried == nil {
		return head, nil, err
	}
	view, err = carried.Encoded(func(c *catalog.View) ([]byte, error) { return encode(c) })
	return head, view, err
}

// replyHead is what stands before the view in the messages that carry one.
type replyHead struct {
	HasView bool
	Meta    Meta
	Current uint64
	Epoch   string
	laterEvent
}

func encode(v any) (b []byte, err error) {
	defer recovered(&err, "encode", v)
	if err := codec.NewEncoderBytes(&b, handle).Encode(v); err != nil {
		return nil, fmt.Errorf("encode %T: %w", v, err)
	}
	return b, nil
}

// Unmarshal decodes b into v, a pointer. Fields that v does not know are skipped,
// fields that b does not have are left alone. Errors wrap catalog.ErrInvalid.
func Unmarshal(b []byte, v any) (err error) {
	defer recovered(&err, "decode", v)
	d := decoder(b)
	decode := func(into any) error {
		if err := d.Decode(into); err != nil {
			return fmt.Errorf("decode %T: %w: %w", v, catalog.ErrInvalid, err)
		}
		return nil
	}
	var head replyHead
	var view **catalog.View
	switch m := v.(type) {
	case *ReadReply:
		if err := decode(&head); err != nil {
			return err
		}
		*m = ReadReply{Meta: head.Meta}
		view = &m.View
	case *WatchEvent:
		if err := decode(&head); err != nil {
			return err
		}
		*m = WatchEvent{Meta: head.Meta, Current: head.Current, Epoch: head.Epoch, laterEvent: head.laterEvent}
		view = &m.View
	default:
		if err := decode(v); err != nil {
			return err
		}
	}
	if head.HasView {
		*view = &catalog.View{}
		if err := decode(*view); err != nil {
			return err
		}
	}
	if n := d.NumBytesRead(); n != len(b) {
		return fmt.Errorf("decode %T: %w: %d bytes after the message", v, catalog.ErrInvalid, len(b)-n)
	}
	return nil
}

// recovered turns a panic of the codec into an error: no input may end the process.
func recovered(err *error, what string, v any) {
	if r := recover(); r != nil {
		*err = fmt.Errorf("%s %T: %w: %v", what, v, catalog.ErrInvalid, r)
	}
}

// MarshalBinary implements encoding.BinaryMarshaler: the type number, then the command.
func (c Command) MarshalBinary() ([]byte, error) {
	if c.Command == nil {
		return []byte{}, nil
	}
	b, err := encode(c.Command)
	if err != nil {
		return nil, err
	}
	t := c.CommandType()
	return append([]byte{byte(t >> 8), byte(t)}, b...), nil
}

// UnmarshalBinary implements encoding.BinaryUnmarshaler.
func (c *Command) UnmarshalBinary(b []byte) error {
	if len(b) == 0 {
		c.Command = nil
		return nil
	}
	if len(b) < 2 {
		return fmt.Errorf("command: %w: cut short", catalog.ErrInvalid)
	}
	cmd, err := catalog.NewCommand(catalog.CommandType(b[0])<<8 | catalog.CommandType(b[1]))
	if err != nil {
		return err
	}
	if err := Unmarshal(b[2:], cmd); err != nil {
		return err
	}
	c.Command = cmd
	return nil
}
