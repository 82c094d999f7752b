//go:build faults

package faults_test

import (
	"errors"
	"io"
	"net"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/weftmesh/weft/cmd/meshtest/proc"
)

// TestKillIsNoEnd: what an application had received when its agent was killed does
// not look complete.
func TestKillIsNoEnd(t *testing.T) {
	t.Parallel()
	a := proc.StartAgent(t)
	e := startEcho(t)
	up := proc.FreePorts(t, 1)[0]
	register(t, a, sidecar("db", e.port()))
	register(t, a, sidecar("web", 1, api.Upstream{DestinationName: "db", LocalBindPort: up}))
	intend(t, a, "web", "db", api.IntentionActionAllow)
	through(t, net.JoinHostPort("127.0.0.1", strconv.Itoa(up)))
	c, err := net.Dial("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(up)))
	must(t, err)
	defer c.Close()
	must(t, c.SetDeadline(time.Now().Add(20*time.Second)))
	_, err = io.WriteString(c, "half of an answer")
	must(t, err)
	_, err = io.ReadFull(c, make([]byte, len("half of an answer")))
	must(t, err)
	a.Kill()
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the application sees %v, want a reset", err)
	}
}
