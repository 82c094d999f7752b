package enroll

import (
	"encoding/binary"
	"fmt"
	"io"

	"github.com/hashicorp/go-msgpack/v2/codec"
)

// A frame is four bytes of length, big-endian, and one msgpack map.
const (
	maxRequest = 16 << 10
	maxReply   = 64 << 10
)

// request is what a node says. Fields are only added, never renamed.
type request struct {
	Token      string
	CSR        []byte // DER
	Node       string
	NodeID     string
	Datacenter string
	Version    string
}

// reply is what a server answers: a refusal, or all the rest.
type reply struct {
	Refused     *Refusal
	Certificate []byte // DER
	Root        []byte // DER
	ClusterID   string
	GossipKeys  [][]byte // the primary first
	Servers     []string // host:port
}

func handle() *codec.MsgpackHandle {
	h := &codec.MsgpackHandle{WriteExt: true}
	h.RawToString = true
	h.MaxDepth = 8
	return h
}

func writeFrame(w io.Writer, v any, most int) error {
	b := make([]byte, 4, 1024)
	var body []byte
	if err := codec.NewEncoderBytes(&body, handle()).Encode(v); err != nil {
		return fmt.Errorf("encode a frame: %w", err)
	}
	if len(body) > most {
		return fmt.Errorf("a frame of %d bytes, at most %d are allowed", len(body), most)
	}
	binary.BigEndian.PutUint32(b, uint32(len(body)))
	_, err := w.Write(append(b, body...))
	return err
}

func readFrame(r io.Reader, v any, most int) error {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return fmt.Errorf("read a frame: %w", err)
	}
	n := binary.BigEndian.Uint32(head[:])
	if n == 0 || n > uint32(most) {
		return fmt.Errorf("a frame of %d bytes, at most %d are allowed", n, most)
	}
	body := make([]byte, n)
	if _, err := io.ReadFull(r, body); err != nil {
		return fmt.Errorf("read a frame of %d bytes: %w", n, err)
	}
	return decodeFrame(body, v)
}

func decodeFrame(body []byte, v any) (err error) {
	defer func() { // the decoder answers some input by a panic
		if p := recover(); p != nil {
			err = fmt.Errorf("decode a frame: %v", p)
		}
	}()
	d := codec.NewDecoderBytes(body, handle())
	if err := d.Decode(v); err != nil {
		return fmt.Errorf("decode a frame: %w", err)
	}
	if n := d.NumBytesRead(); n != len(body) {
		return fmt.Errorf("decode a frame: %d bytes follow it", len(body)-n)
	}
	return nil
}
