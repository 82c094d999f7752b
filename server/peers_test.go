package server

import (
	"context"
	"errors"
	"net"
	"testing"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/catalog/wire"
)

// TestCallThatWasNotSentMayBeMadeAgain covers a server that stops between the moment
// its connection was there and that of the call: what takes the connection then
// hangs up before a word of it was sent.
func TestCallThatWasNotSentMayBeMadeAgain(t *testing.T) {
	t.Parallel()
	p := newPeers(func(context.Context, string, string) (net.Conn, error) {
		here, there := net.Pipe()
		return here, there.Close()
	})
	defer p.close()
	c, err := p.at("id", "server-1:8300")
	if err != nil {
		t.Fatal(err)
	}
	err = c.send(t.Context(), "/weft.Peers/ReadIndex", &wire.ReadIndexRequest{}, &wire.ReadIndexReply{})
	if !errors.Is(err, catalog.ErrNoLeader) {
		t.Errorf("a call that nobody got ended with %v, which is not %v", err, catalog.ErrNoLeader)
	}
}
