package rpc

import (
	"errors"
	"testing"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/catalog/acl"
	"github.com/weftmesh/weft/catalog/wire"
)

// only may do what is listed, as "verb resource name".
type only map[string]bool

func (o only) Allowed(verb acl.Verb, res acl.Resource, name string) bool {
	return o[string(verb)+" "+string(res)+" "+name]
}

type ended struct{ id string }

func (e ended) Renew(id string) bool { return id != e.id }

// newKVRig has a host with a service and two sessions, of which one is about to end.
func newKVRig(t *testing.T) *rig {
	t.Helper()
	tokens := map[string]only{
		"":    nil,
		"app": {"write key app/k": true, "read key app/k": true, "write session n": true},
		"ops": {"write node n": true, "write service web": true},
	}
	r := newRig(t, func(c *Config) {
		c.Sessions = ended{"over"}
		c.Authorizer = func(token string) (acl.Authorizer, error) { return tokens[token], nil }
	})
	for _, c := range []catalog.Command{
		&catalog.Register{Node: &catalog.Node{Node: "n"}, Service: &catalog.Service{ID: "s", Service: "web"}, Checks: []*catalog.Check{{CheckID: "c", ServiceID: "s", Status: catalog.StatusPassing}}},
		&catalog.CreateSession{Session: catalog.Session{ID: "live", Node: "n", Behavior: catalog.SessionRelease}},
		&catalog.CreateSession{Session: catalog.Session{ID: "over", Node: "n", Behavior: catalog.SessionRelease}},
	} {
		if _, _, err := r.log.Apply(t.Context(), c); err != nil {
			t.Fatal(err)
		}
	}
	r.log.count.Store(0)
	return r
}

func TestWhoMayTouchKeysAndSessions(t *testing.T) {
	h := newKVRig(t)
	pair := catalog.KVPair{Key: "app/k", Session: "live"}
	session := catalog.Session{ID: "new", Node: "n", Behavior: catalog.SessionRelease}
	for _, tc := range []struct {
		token string
		cmd   catalog.Command
		want  error
	}{
		{"app", &catalog.SetKey{Pair: pair}, nil},
		{"", &catalog.SetKey{Pair: pair}, catalog.ErrDenied},
		{"app", &catalog.SetKey{Pair: catalog.KVPair{Key: "other"}}, catalog.ErrDenied},
		{"app", &catalog.LockKey{Pair: pair}, nil},
		{"ops", &catalog.LockKey{Pair: pair}, catalog.ErrDenied},
		{"app", &catalog.UnlockKey{Pair: pair}, nil},
		{"ops", &catalog.UnlockKey{Pair: pair}, catalog.ErrDenied},
		{"app", &catalog.DeleteKey{Key: "app/k"}, nil},
		{"ops", &catalog.DeleteKey{Key: "app/k"}, catalog.ErrDenied},
		{"app", &catalog.DeleteKeys{Prefix: "app/"}, catalog.ErrDenied},
		{"app", &catalog.CreateSession{Session: session}, nil},
		{"ops", &catalog.CreateSession{Session: session}, catalog.ErrDenied},
		{"ops", &catalog.DestroySessions{IDs: []string{"new"}}, catalog.ErrDenied},
		{"app", &catalog.DestroySessions{IDs: []string{"new"}}, nil},
		{"", &catalog.DestroySessions{IDs: []string{"never was"}}, nil},
		{"app", &catalog.EndKeyDelays{Delays: []catalog.KeyDelay{{Key: "app/k"}}}, catalog.ErrDenied},
		{"app", &catalog.Txn{}, catalog.ErrInvalid},
	} {
		_, err := h.Apply(t.Context(), &wire.ApplyRequest{Token: tc.token, Command: wire.Command{Command: tc.cmd}})
		if (tc.want == nil) != (err == nil) || !errors.Is(err, tc.want) {
			t.Errorf("%q %T: %v, want %v", tc.token, tc.cmd, err, tc.want)
		}
	}
	for q, want := range map[catalog.Query]error{
		{Kind: catalog.QueryKey, Name: "app/k"}:   nil,
		{Kind: catalog.QueryKeyTree, Name: "app"}: catalog.ErrDenied,
		{Kind: catalog.QueryKeyNames}:             catalog.ErrDenied,
		{Kind: catalog.QueryKeyDelays}:            catalog.ErrDenied,
		{Kind: catalog.QuerySessions}:             catalog.ErrDenied,
	} {
		if _, err := h.Read(t.Context(), &wire.ReadRequest{Token: "app", Query: q}); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", q, err, want)
		}
	}
	h.log.count.Store(0)
	short := session
	short.TTL = "1s"
	if _, err := h.Apply(t.Context(), &wire.ApplyRequest{Token: "app", Command: wire.Command{Command: &catalog.CreateSession{Session: short}}}); !errors.Is(err, catalog.ErrInvalid) || h.log.count.Load() != 0 {
		t.Errorf("a TTL that is too short: %v", err)
	}
}

func TestTransactionsAskForEachOperation(t *testing.T) {
	h := newKVRig(t)
	get := catalog.TxnOp{KV: &catalog.KVOp{Verb: catalog.TxnGetOrEmpty, Pair: catalog.KVPair{Key: "app/k"}}}
	set := catalog.TxnOp{KV: &catalog.KVOp{Verb: catalog.TxnSet, Pair: catalog.KVPair{Key: "app/k"}}}
	// The service that is there counts, not the name that the caller gives it.
	service := catalog.TxnOp{Service: &catalog.ServiceOp{Verb: catalog.TxnDelete, Node: "n", Service: catalog.Service{ID: "s", Service: "web"}}}
	renamed := catalog.TxnOp{Service: &catalog.ServiceOp{Verb: catalog.TxnSet, Node: "n", Service: catalog.Service{ID: "s", Service: "mine"}}}
	check := catalog.TxnOp{Check: &catalog.CheckOp{Verb: catalog.TxnDelete, Check: catalog.Check{Node: "n", CheckID: "c"}}}
	node := catalog.TxnOp{Node: &catalog.NodeOp{Verb: catalog.TxnGet, Node: catalog.Node{Node: "n"}}}
	do := func(token string, ops ...catalog.TxnOp) (*wire.TxnReply, error) {
		return h.Txn(t.Context(), &wire.TxnRequest{Token: token, Txn: catalog.Txn{Ops: ops}})
	}
	for _, tc := range []struct {
		token string
		ops   []catalog.TxnOp
		want  error
	}{
		{"app", []catalog.TxnOp{get, set}, nil},
		{"", []catalog.TxnOp{get}, catalog.ErrDenied},
		{"app", []catalog.TxnOp{set, check}, catalog.ErrDenied},
		{"app", []catalog.TxnOp{node}, catalog.ErrDenied},
		{"ops", []catalog.TxnOp{renamed}, catalog.ErrDenied},
		{"ops", []catalog.TxnOp{check, service}, nil},
		{"ops", make([]catalog.TxnOp, catalog.MaxTxnOps+1), catalog.ErrInvalid},
	} {
		if _, err := do(tc.token, tc.ops...); (tc.want == nil) != (err == nil) || !errors.Is(err, tc.want) {
			t.Errorf("%q: %v, want %v", tc.token, err, tc.want)
		}
	}
	h.log.count.Store(0)
	if rep, err := do("app", get, get); err != nil || len(rep.Result.Results) != 2 || rep.Index == 0 || h.log.count.Load() != 0 {
		t.Errorf("a read: %+v, %v, %d entries", rep, err, h.log.count.Load())
	}
	if rep, err := do("", catalog.TxnOp{KV: &catalog.KVOp{Verb: "bogus"}}); err != nil || len(rep.Result.Errors) != 1 || rep.Index != 0 || h.log.count.Load() != 0 {
		t.Errorf("what cannot be: %+v, %v, %d entries", rep, err, h.log.count.Load())
	}
}

func TestRenewals(t *testing.T) {
	h := newKVRig(t)
	renew := func(token, id string) error {
		_, err := h.RenewSession(t.Context(), &wire.RenewSessionRequest{Token: token, ID: id})
		return err
	}
	for _, tc := range []struct {
		token, id string
		want      error
	}{
		{"app", "live", nil},
		{"ops", "live", catalog.ErrDenied},
		{"app", "over", catalog.ErrNotFound}, // its end is on the way
		{"app", "never", catalog.ErrNotFound},
		{"app", "", catalog.ErrInvalid},
	} {
		if err := renew(tc.token, tc.id); (tc.want == nil) != (err == nil) || !errors.Is(err, tc.want) {
			t.Errorf("%q %q: %v, want %v", tc.token, tc.id, err, tc.want)
		}
	}
}
