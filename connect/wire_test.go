package connect

import (
	"bytes"
	"net"
	"slices"
	"testing"
)

// atOnce is a connection on which everything has come already.
type atOnce struct {
	net.Conn
	said *bytes.Reader
}

func (c atOnce) Read(p []byte) (int, error) { return c.said.Read(p) }

func TestFirstRecordIsReadAlone(t *testing.T) {
	said := []byte{22, 3, 3, 0, 4, 'a', 'b', 'c', 'd', 20, 3, 3, 0, 1, 1, 23}
	for _, of := range []struct {
		said  []byte
		alone bool
		want  []int
	}{
		{said, false, []int{len(said)}},
		{said, true, []int{5, 4, len(said) - 9}},
		{said[:3], true, []int{3}}, // it ends in the header
		{said[:7], true, []int{5, 2}},
	} {
		w := newWire(atOnce{said: bytes.NewReader(of.said)})
		w.alone = of.alone
		var got []int
		var heard []byte
		for p := make([]byte, 512); ; {
			n, err := w.Read(p)
			if err != nil {
				break
			}
			got, heard = append(got, n), append(heard, p[:n]...)
		}
		if !slices.Equal(got, of.want) || !bytes.Equal(heard, of.said) {
			t.Errorf("alone %t: read %v of %d bytes, expected %v", of.alone, got, len(of.said), of.want)
		}
	}
}
