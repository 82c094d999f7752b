//go:build faults

package faults_test

import (
	"crypto/tls"
	"errors"
	"net"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/weftmesh/weft/cmd/meshtest/proc"
	"github.com/weftmesh/weft/connect/enroll"
)

// TestP27NoPlaintextOnAnyPort speaks to every port that a server's host and an agent's
// host open to others, but for those of HTTP and DNS, in the clear and in old TLS.
// Nothing answers a stranger in the clear; none speaks less than TLS 1.3.
func TestP27NoPlaintextOnAnyPort(t *testing.T) {
	t.Parallel()
	c := proc.StartCluster(t, proc.ClusterOptions{Servers: 1, Agents: 1})
	e := startEcho(t)
	register(t, c.Agents[0].Agent, sidecar("db", e.port()))
	proc.Eventually(t, 20*time.Second, "the port of the proxy is open", func() error {
		svc, _, err := c.Agents[0].Client.Agent().Service("db-sidecar-proxy", nil)
		if err != nil {
			return err
		}
		conn, err := net.Dial("tcp", net.JoinHostPort(c.Agents[0].Addr, strconv.Itoa(svc.Port)))
		if err != nil {
			return err
		}
		return conn.Close()
	})
	for n, least := range map[*proc.Node]int{c.Servers[0]: 2, c.Agents[0]: 2} { // RPC or a proxy, and gossip
		var others []string
		for _, addr := range listening(t, n.Addr) {
			if addr != n.HTTP {
				others = append(others, addr)
			}
		}
		if len(others) < least {
			t.Fatalf("%s listens on %v only: it was not found out where", n.Name, others)
		}
		for _, addr := range others {
			for name, say := range inTheClear {
				if got := answered(t, addr, say); got != "" && !strings.HasPrefix(got, "\x15\x03") { // but for a TLS alert
					t.Errorf("%s at %s answers %s with %q", n.Name, addr, name, got)
				}
			}
			for _, version := range []uint16{tls.VersionTLS10, tls.VersionTLS11, tls.VersionTLS12} {
				if err := shakes(addr, version); err == nil {
					t.Errorf("%s at %s speaks %s", n.Name, addr, tls.VersionName(version))
				}
			}
		}
		t.Logf("%s: %v", n.Name, others)
	}
}

// inTheClear is what a stranger might say, and somebody that is not careful might answer.
var inTheClear = map[string]string{
	"HTTP":                      "GET /v1/agent/self HTTP/1.1\r\nHost: x\r\n\r\n",
	"HTTP/2":                    "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00",
	"Raft":                      "\x01\x00\x80",
	"the byte of Consul's Raft": "\x01",
	"the byte of Consul's RPC":  "\x00",
	"memberlist's ping":         "\x00\x82\xa4Node\xa1x\xa5SeqNo\x01",
	"memberlist's state":        "\x06\x83\xa4Join\xc3\xa5Nodes\x00\xacUserStateLen\x00",
	"DNS":                       "\x00\x1d\x00\x00\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x06consul\x04node\x00\x00\x01\x00\x01",
}

// listening gives the TCP addresses of a host that are listened on.
func listening(t *testing.T, host string) []string {
	t.Helper()
	out, err := exec.Command("ss", "-Hltn").Output()
	must(t, err)
	var found []string
	for line := range strings.Lines(string(out)) {
		if f := strings.Fields(line); len(f) > 3 && strings.HasPrefix(f[3], host+":") {
			found = append(found, f[3])
		}
	}
	slices.Sort(found)
	return found
}

// answered is what addr answers within a moment.
func answered(t *testing.T, addr, say string) string {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	must(t, err)
	defer c.Close()
	if _, err := c.Write([]byte(say)); err != nil {
		return ""
	}
	must(t, c.SetReadDeadline(time.Now().Add(300*time.Millisecond)))
	b := make([]byte, 256)
	n, err := c.Read(b)
	if n == 0 && errors.Is(err, os.ErrDeadlineExceeded) {
		return "" // it waits for more
	}
	return string(b[:n])
}

// shakes tries a handshake of one version.
func shakes(addr string, version uint16) error {
	d := &net.Dialer{Timeout: 5 * time.Second}
	c, err := tls.DialWithDialer(d, "tcp", addr, &tls.Config{
		InsecureSkipVerify: true, MinVersion: version, MaxVersion: version, NextProtos: []string{enroll.ProtoRPC, enroll.ProtoRaft, enroll.ProtoJoin},
	})
	if err != nil {
		return err
	}
	return c.Close()
}
