package gossip

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"time"

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
