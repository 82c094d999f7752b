package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/weftmesh/weft/catalog"
)

func setKey(key, value string) *catalog.SetKey {
	return &catalog.SetKey{Pair: catalog.KVPair{Key: key, Value: []byte(value)}}
}

func TestKeysLeaveNoRowsBehind(t *testing.T) {
	s := newStore(t, Config{})
	rows := func() int { return len(all[any](s.state.Load().read(), tableIndex, byID)) }
	for i := range 3000 {
		apply(t, s, setKey(fmt.Sprintf("app-%d/very/deep/%d-key-with-a-long-name", i, i), "v"))
		if i%2 == 0 {
			apply(t, s, &catalog.DeleteKeys{Prefix: "app-"})
		}
	}
	apply(t, s, &catalog.DeleteKeys{})
	if n := rows(); n > goneBuckets+2*extinctBuckets+10 {
		t.Fatalf("%d index rows are left of nothing", n)
	}
}

func TestKeyOfSlashesIsAsCheapAsAnother(t *testing.T) {
	s := newStore(t, Config{})
	key := strings.Repeat("/", catalog.MaxKey)
	apply(t, s, setKey(key, "v"))
	rows := all[any](s.state.Load().read(), tableIndex, byID)
	if len(rows) > maxFolders+1 {
		t.Fatalf("one key has %d index rows", len(rows))
	}
	for _, prefix := range []string{key, key[:len(key)-1], key[:maxFolders+3], key[:maxFolders], key[:2], ""} {
		v := read(t, s, catalog.Query{Kind: catalog.QueryKeyTree, Name: prefix})
		if len(v.Pairs) != 1 || v.Index != s.Index() {
			t.Fatalf("below %d slashes there are %d keys, at index %d", len(prefix), len(v.Pairs), v.Index)
		}
	}
	apply(t, s, &catalog.DeleteKey{Key: key})
	for _, prefix := range []string{key, key[:maxFolders+3], key[:2], ""} {
		if v := read(t, s, catalog.Query{Kind: catalog.QueryKeyTree, Name: prefix}); len(v.Pairs) != 0 || v.Index != s.Index() {
			t.Fatalf("below %d slashes there are %d keys after deletion, at index %d", len(prefix), len(v.Pairs), v.Index)
		}
	}
}

// TestWaitersForOtherKeysSleep: who waits for a key or prefix is not woken by others.
func TestWaitersForOtherKeysSleep(t *testing.T) {
	s := newStore(t, Config{Coalesce: time.Nanosecond})
	t.Cleanup(s.Close)
	for _, k := range []string{"a/b/c", "a/b/d", "a/x", "service/web", "service-old"} {
		apply(t, s, setKey(k, "1"))
	}
	quiet := []catalog.Query{
		{Kind: catalog.QueryKey, Name: "a/b/c"},
		{Kind: catalog.QueryKeyTree, Name: "a/b/"},
		{Kind: catalog.QueryKeyTree, Name: "a/b"},
		{Kind: catalog.QueryKeyTree, Name: "service"},
		{Kind: catalog.QueryKeyNames, Name: "a/b/"},
	}
	indexes := map[catalog.Query]uint64{}
	for _, q := range quiet {
		indexes[q] = read(t, s, q).Index
	}
	for i := range 50 {
		apply(t, s, setKey("a/x", fmt.Sprint(i)))
		apply(t, s, setKey(fmt.Sprintf("other/%d", i), "1"))
		apply(t, s, &catalog.DeleteKey{Key: "a/bz"}) // never was
	}
	apply(t, s, &catalog.DeleteKeys{Prefix: "other/"})
	for _, q := range quiet {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
		_, at, err := s.Watch(q).Next(ctx, indexes[q])
		cancel()
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s woke at %d: %v", q, at, err)
		}
	}
	woken := make(chan uint64, len(quiet))
	for _, q := range quiet {
		go func() {
			_, at, err := s.Watch(q).Next(t.Context(), indexes[q])
			if err != nil {
				t.Errorf("%s: %v", q, err)
			}
			woken <- at
		}()
	}
	apply(t, s, &catalog.Txn{Ops: []catalog.TxnOp{
		{KV: &catalog.KVOp{Verb: catalog.TxnDelete, Pair: catalog.KVPair{Key: "a/b/c"}}},
		{KV: &catalog.KVOp{Verb: catalog.TxnSet, Pair: catalog.KVPair{Key: "service/db"}}},
	}})
	for range quiet {
		if at := <-woken; at != s.Index() {
			t.Errorf("woken at %d, want %d", at, s.Index())
		}
	}
}

func TestTransactionsReadAndUndo(t *testing.T) {
	s := newStore(t, Config{})
	apply(t, s, setKey("a", "1"))
	before := s.Fingerprint()
	get := func(k string) catalog.TxnOp {
		return catalog.TxnOp{KV: &catalog.KVOp{Verb: catalog.TxnGet, Pair: catalog.KVPair{Key: k}}}
	}
	res, index, err := s.ReadTxn(&catalog.Txn{Ops: []catalog.TxnOp{get("a"), get("b")}})
	if err != nil || index != s.Index() || len(res.Errors) != 1 || res.Errors[0] != (catalog.TxnError{OpIndex: 1, What: `key "b" doesn't exist`}) {
		t.Fatalf("%+v at %d: %v", res, index, err)
	}
	if _, _, err := s.ReadTxn(&catalog.Txn{Ops: []catalog.TxnOp{{KV: &catalog.KVOp{Verb: catalog.TxnSet, Pair: catalog.KVPair{Key: "a"}}}}}); !errors.Is(err, catalog.ErrInvalid) {
		t.Fatalf("a write was read: %v", err)
	}
	if s.Fingerprint() != before {
		t.Fatal("reading changed the store")
	}
	// Whatever an operation holds, it fails by itself.
	bad := []catalog.TxnOp{
		{},
		{KV: &catalog.KVOp{}},
		{Node: &catalog.NodeOp{}},
		{Service: &catalog.ServiceOp{}},
		{Check: &catalog.CheckOp{}},
		{Node: &catalog.NodeOp{Verb: catalog.TxnLock}},
		{KV: &catalog.KVOp{Verb: catalog.TxnSet}, Node: &catalog.NodeOp{}},
		{Service: &catalog.ServiceOp{Verb: catalog.TxnSet, Node: "none", Service: catalog.Service{ID: "x", Service: "x"}}},
		{Check: &catalog.CheckOp{Verb: catalog.TxnSet, Check: catalog.Check{Node: "none", CheckID: "x", Status: "passing"}}},
		{KV: &catalog.KVOp{Verb: catalog.TxnLock, Pair: catalog.KVPair{Key: "a", Session: "none"}}},
	}
	got := apply(t, s, &catalog.Txn{Ops: append([]catalog.TxnOp{{KV: &catalog.KVOp{Verb: catalog.TxnDeleteTree}}}, bad...)}).(*catalog.TxnResult)
	if len(got.Errors) != len(bad) || got.Results != nil {
		t.Fatalf("%+v", got)
	}
	if v := read(t, s, catalog.Query{Kind: catalog.QueryKey, Name: "a"}); len(v.Pairs) != 1 {
		t.Fatal("a transaction that failed deleted a key")
	}
}

func TestTransactionsOnRows(t *testing.T) {
	s := newStore(t, Config{})
	node, svc := catalog.Node{Node: "n", ID: "5f5b1b1e-0c0a-4b3e-9e57-2d6c0a6d1f01", Address: "10.0.0.1"}, catalog.Service{ID: "s", Service: "svc"}
	check := catalog.Check{Node: "n", CheckID: "c", ServiceID: "s", Status: catalog.StatusPassing}
	all := func(verb catalog.TxnVerb, index uint64) *catalog.Txn {
		n, sv, c := node, svc, check
		n.ModifyIndex, sv.ModifyIndex, c.ModifyIndex = index, index, index
		return &catalog.Txn{Ops: []catalog.TxnOp{
			{Node: &catalog.NodeOp{Verb: verb, Node: n}},
			{Service: &catalog.ServiceOp{Verb: verb, Node: "n", Service: sv}},
			{Check: &catalog.CheckOp{Verb: verb, Check: c}},
		}}
	}
	do := func(c *catalog.Txn) *catalog.TxnResult { return apply(t, s, c).(*catalog.TxnResult) }
	if r := do(all(catalog.TxnGet, 0)); len(r.Errors) != 3 {
		t.Fatalf("got what is not there: %+v", r)
	}
	if r := do(all(catalog.TxnCAS, 7)); len(r.Errors) != 3 {
		t.Fatalf("cas of what is not there: %+v", r)
	}
	r := do(all(catalog.TxnCAS, 0))
	if len(r.Errors) != 0 || len(r.Results) != 3 || r.Results[2].Check.ServiceName != "svc" {
		t.Fatalf("%+v", r)
	}
	at := s.Index()
	if r := do(&catalog.Txn{Ops: []catalog.TxnOp{{Node: &catalog.NodeOp{Verb: catalog.TxnGet, Node: catalog.Node{ID: "5F5B1B1E-0C0A-4B3E-9E57-2D6C0A6D1F01"}}}}}); len(r.Results) != 1 || r.Results[0].Node.Node != "n" {
		t.Fatalf("by ID: %+v", r)
	}
	if r := do(all(catalog.TxnDeleteCAS, at+9)); len(r.Errors) == 0 {
		t.Fatalf("deleted with the wrong index: %+v", r)
	}
	if r := do(all(catalog.TxnSet, 0)); len(r.Results) != 3 || r.Results[0].Node.ModifyIndex != at {
		t.Fatalf("set again: %+v", r)
	}
	if r := do(&catalog.Txn{Ops: all(catalog.TxnDeleteCAS, at).Ops[2:]}); len(r.Errors) != 0 {
		t.Fatalf("%+v", r)
	}
	if r := do(&catalog.Txn{Ops: all(catalog.TxnDelete, 0).Ops[1:]}); len(r.Errors) != 0 {
		t.Fatalf("%+v", r)
	}
	if r := do(all(catalog.TxnDelete, 0)); len(r.Errors) != 0 {
		t.Fatalf("%+v", r)
	}
	if v := read(t, s, catalog.Query{Kind: catalog.QueryNodes}); len(v.Nodes) != 0 {
		t.Fatal("the node is still there")
	}
}

func TestLargestValueFitsBackup(t *testing.T) {
	s := newStore(t, Config{})
	apply(t, s, &catalog.SetKey{Pair: catalog.KVPair{Key: "k", Value: bytes.Repeat([]byte("x"), catalog.MaxValue)}})
	at := s.Index()
	apply(t, s, &catalog.SetKey{Pair: catalog.KVPair{Key: "k", Value: bytes.Repeat([]byte("x"), catalog.MaxValue)}})
	if v := read(t, s, catalog.Query{Kind: catalog.QueryKey, Name: "k"}); v.Index != at {
		t.Fatal("the same value again changed the index")
	}
	checkBackup(t, s, kvQueries())
}
