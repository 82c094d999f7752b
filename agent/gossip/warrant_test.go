package gossip

import (
	"bytes"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/weftmesh/weft/catalog"
)

// seal is a Warrant of tests: who has it signs, and all verify.
type seal struct{ may bool }

func (s seal) Sign(b []byte) ([]byte, error) {
	if !s.may {
		return nil, errors.New("this is no server")
	}
	return append([]byte("sealed "), b...), nil
}

func (s seal) Verify(b, proof []byte) error {
	if !bytes.Equal(proof, append([]byte("sealed "), b...)) {
		return errors.New("it is not sealed")
	}
	return nil
}

// TestKeysAreForServers: an agent changes no key, neither by asking its own process nor
// by the message that a server would send; it may look.
func TestKeysAreForServers(t *testing.T) {
	old, fresh := bytes.Repeat([]byte{1}, 32), bytes.Repeat([]byte{2}, 32)
	with := func(may bool) func(*Config) {
		return func(c *Config) { c.SecretKeys, c.Warrant = [][]byte{old}, seal{may} }
	}
	server, stopServer := start(t, "server", with(true))
	defer stopServer()
	agent, stopAgent := start(t, "agent", with(false))
	defer stopAgent()
	if _, err := agent.Join(t.Context(), []string{server.Addr()}); err != nil {
		t.Fatal(err)
	}
	for _, g := range []*Gossip{server, agent} {
		eventually(t, 10*time.Second, "both are alive", func() bool { return len(g.table.alive()) == 2 })
	}
	if _, err := agent.Keyring(t.Context(), catalog.KeyringInstall, text(fresh)); !errors.Is(err, catalog.ErrDenied) || !strings.Contains(err.Error(), "server's host") {
		t.Errorf("an agent installs a key: %v", err)
	}
	// An agent that somebody changed asks all the same.
	for _, op := range []catalog.KeyringOp{catalog.KeyringInstall, catalog.KeyringList} {
		q := keysMessage{ID: string(op), From: "agent", Op: op, Key: text(fresh), At: time.Now().UnixMilli()}
		replies := agent.keys.expect(q.ID, 1)
		if err := agent.sendTo("server", msgKeys, q); err != nil {
			t.Fatal(err)
		}
		select {
		case r := <-replies:
			if !strings.Contains(r.Err, "by servers only") || len(r.Keys) > 0 {
				t.Errorf("%s: the server answers %+v", op, r)
			}
		case <-time.After(10 * time.Second):
			t.Error("the server does not answer")
		}
	}
	for asked, want := range map[*Gossip]int{agent: 1, server: 2} {
		if r, err := asked.Keyring(t.Context(), catalog.KeyringList, ""); err != nil || len(r.Errors) != 0 || len(r.Keys) != want {
			t.Errorf("%s looks: %+v, %v", asked.cfg.NodeName, r, err)
		}
	}
	for _, op := range []catalog.KeyringOp{catalog.KeyringInstall, catalog.KeyringUse} {
		if r, err := server.Keyring(t.Context(), op, text(fresh)); err != nil || len(r.Errors) != 0 {
			t.Errorf("a server: %+v, %v", r, err)
		}
	}
}

// TestWarrantsEnd: a change is carried out once, and while it is new.
func TestWarrantsEnd(t *testing.T) {
	g := &Gossip{cfg: Config{Warrant: seal{true}}, keys: &keyring{}}
	now := time.Now()
	change := func(id string, at time.Time) *keysMessage {
		q := &keysMessage{ID: id, From: "server", Op: catalog.KeyringRemove, Key: "k", At: at.UnixMilli()}
		if err := g.sign(q); err != nil {
			t.Fatal(err)
		}
		return q
	}
	q := change("1", now)
	if err := g.warranted(q, now); err != nil {
		t.Fatal(err)
	}
	for name, q := range map[string]*keysMessage{
		"twice":      q,
		"too old":    change("2", now.Add(-warrantAge-time.Minute)),
		"too new":    change("3", now.Add(warrantAge+time.Minute)),
		"of no time": change("4", time.UnixMilli(0)),
	} {
		if err := g.warranted(q, now); !errors.Is(err, catalog.ErrDenied) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, alter := range map[string]func(*keysMessage){
		"key":  func(q *keysMessage) { q.Key = "other" },
		"op":   func(q *keysMessage) { q.Op = catalog.KeyringUse },
		"from": func(q *keysMessage) { q.From = "agent" },
		"at":   func(q *keysMessage) { q.At++ },
		"ID":   func(q *keysMessage) { q.ID = "6" },
	} {
		q := change("5", now)
		alter(q)
		if err := g.warranted(q, now); !errors.Is(err, catalog.ErrDenied) {
			t.Errorf("another %s: %v", name, err)
		}
	}
	later := now.Add(3 * warrantAge)
	if err := g.warranted(change("7", later), later); err != nil || len(g.keys.done) != 1 {
		t.Errorf("%v; %d changes are remembered", err, len(g.keys.done))
	}
}

// lineCount counts what is written.
type lineCount struct{ n atomic.Int64 }

func (c *lineCount) Write(b []byte) (int, error) {
	c.n.Add(int64(bytes.Count(b, []byte{'\n'})))
	return len(b), nil
}

// deafPort is a port of loopback whose queue is full: who connects hears nothing, until
// it is closed.
func deafPort(t *testing.T) (port int, closePort func()) {
	t.Helper()
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}), syscall.Listen(fd, 0)); err != nil {
		t.Fatal(err)
	}
	sa, err := syscall.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	port = sa.(*syscall.SockaddrInet4).Port
	for {
		c, err := net.DialTimeout("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)), 200*time.Millisecond)
		if err != nil {
			return port, func() { _ = syscall.Close(fd) }
		}
		t.Cleanup(func() { c.Close() })
	}
}

// TestRefusalsAreBounded: a host that may not ask, asks for an address where nobody takes
// the answer, ever again. What that costs is bounded, and servers are answered.
func TestRefusalsAreBounded(t *testing.T) {
	key := bytes.Repeat([]byte{1}, 32)
	var lines lineCount
	with := func(may bool) func(*Config) {
		return func(c *Config) {
			c.SecretKeys, c.Warrant = [][]byte{key}, seal{may}
			c.Logger = slog.New(slog.NewTextHandler(&lines, &slog.HandlerOptions{Level: slog.LevelInfo}))
		}
	}
	asked, stopAsked := start(t, "asked", with(true))
	defer stopAsked()
	server, stopServer := start(t, "server", with(true))
	defer stopServer()
	port, closePort := deafPort(t)
	bad, stopBad := start(t, "bad", func(c *Config) {
		with(false)(c)
		c.AdvertiseAddr, c.AdvertisePort, c.BindAddr, c.BindPort = "127.0.0.1", port, "127.0.0.2", port
	})
	defer func() { closePort(); stopBad() }() // the others wait for their answers
	for _, g := range []*Gossip{server, bad} {
		if _, err := g.Join(t.Context(), []string{asked.Addr()}); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, 10*time.Second, "all are alive", func() bool { return len(asked.table.alive()) == 3 && len(server.table.alive()) == 3 })
	before, i := lines.n.Load(), slices.IndexFunc(bad.list.Members(), func(n *memberlist.Node) bool { return nameOf(n.Name) == "asked" })
	to := bad.list.Members()[i]
	ask := func(id string) {
		b, err := json.Marshal(keysMessage{ID: id, From: "bad", Op: catalog.KeyringInstall, Key: text(key), At: 1})
		if err != nil {
			t.Fatal(err)
		}
		if err := bad.list.SendReliable(to, append([]byte{msgKeys}, b...)); err != nil {
			t.Fatal(err)
		}
	}
	for n := range 200 {
		ask(strconv.Itoa(n))
	}
	eventually(t, 10*time.Second, "all places are taken", func() bool { return len(asked.keys.refusals) == maxRefusals })
	if n := lines.n.Load() - before; n > 60 {
		t.Errorf("%d lines for 200 questions", n)
	}
	q := keysMessage{ID: "of a server", From: "server", Op: catalog.KeyringList, At: time.Now().UnixMilli()}
	if err := server.sign(&q); err != nil {
		t.Fatal(err)
	}
	replies := server.keys.expect(q.ID, 1)
	if err := server.sendTo("asked", msgKeys, q); err != nil {
		t.Fatal(err)
	}
	select {
	case r := <-replies:
		if len(r.Keys) != 1 || r.Err != "" {
			t.Errorf("a server is answered %+v", r)
		}
	case <-time.After(5 * time.Second):
		t.Error("a server is not answered")
	}
}
