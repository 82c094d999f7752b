package store

import (
	"fmt"
	"sync"
	"testing"

	"github.com/weftmesh/weft/catalog"
)

func hostState(node, services int) catalog.NodeState {
	ns := catalog.NodeState{Node: &catalog.Node{Node: fmt.Sprintf("n%d", node), ID: fmt.Sprintf("id-%d", node), Address: "10.0.0.1"}}
	for i := range services {
		id := fmt.Sprintf("s%d", i)
		ns.Services = append(ns.Services, &catalog.Service{ID: id, Service: id, Port: 80 + i, Tags: []string{"a", "b"}})
		ns.Checks = append(ns.Checks, &catalog.Check{CheckID: "c" + id, Name: "c", ServiceID: id, Status: catalog.StatusPassing})
	}
	return ns
}

func BenchmarkApplyRegistration(b *testing.B) {
	for _, size := range []int{1, 64} {
		b.Run(fmt.Sprintf("in batches of %d", size), func(b *testing.B) {
			s := newStore(b, Config{})
			b.ReportAllocs()
			var entries []Entry
			for i := 1; b.Loop(); i++ {
				c := registerOn(fmt.Sprintf("n%d", i%5000), fmt.Sprintf("s%d", i%20000), i)
				c.Checks = []*catalog.Check{{CheckID: "c", ServiceID: c.Service.ID, Status: catalog.StatusPassing}}
				if entries = append(entries, Entry{uint64(i + 1), c}); len(entries) < size {
					continue
				}
				for _, r := range s.ApplyBatch(entries) {
					if r.Err != nil {
						b.Fatal(r.Err)
					}
				}
				entries = entries[:0]
			}
		})
	}
}

// BenchmarkApplyHost is hosts of 20 instances that state themselves for the first time.
func BenchmarkApplyHost(b *testing.B) {
	s := newStore(b, Config{})
	b.ReportAllocs()
	for i := 1; b.Loop(); i++ {
		if _, err := s.Apply(uint64(i+1), &catalog.SyncNode{State: hostState(i, 20)}); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkEqual(b *testing.B) {
	s := newStore(b, Config{})
	ns := hostState(1, 20)
	apply(b, s, &catalog.SyncNode{State: ns})
	again := hostState(1, 20)
	b.ReportAllocs()
	for b.Loop() {
		if !s.Equal(again) {
			b.Fatal("not equal")
		}
	}
}

func BenchmarkReadService50(b *testing.B) {
	s := newStore(b, Config{})
	for n := range 50 {
		apply(b, s, &catalog.SyncNode{State: hostState(n, 3)})
	}
	b.ReportAllocs()
	for b.Loop() {
		if v := read(b, s, serviceQuery("s1")); len(v.Instances) != 50 {
			b.Fatal(len(v.Instances))
		}
	}
}

// BenchmarkWake1000 is one change of a service of 50 instances until the last of
// a thousand watchers has it.
func BenchmarkWake1000(b *testing.B) {
	s := newStore(b, Config{Coalesce: 1})
	defer s.Close()
	for n := range 50 {
		apply(b, s, &catalog.SyncNode{State: hostState(n, 3)})
	}
	const readers = 1000
	var wg sync.WaitGroup
	after := read(b, s, serviceQuery("s1")).Index
	b.ReportAllocs()
	port := 1000
	for b.Loop() {
		for range readers {
			wg.Go(func() {
				if _, _, err := s.Watch(serviceQuery("s1")).Next(b.Context(), after); err != nil {
					b.Error(err)
				}
			})
		}
		port++
		apply(b, s, registerOn("n1", "s1", port))
		wg.Wait()
		after = s.Index()
	}
}

func BenchmarkSetKey(b *testing.B) {
	s := newStore(b, Config{})
	for i := range 10000 {
		apply(b, s, setKey(fmt.Sprintf("app/%d/config/%d", i%100, i), "value"))
	}
	for i := 0; b.Loop(); i++ {
		apply(b, s, setKey(fmt.Sprintf("app/%d/config/%d", i%100, i%10000), fmt.Sprint(i)))
	}
}

// BenchmarkIndexOfPrefix: the index of a prefix does not depend on what is below it.
func BenchmarkIndexOfPrefix(b *testing.B) {
	s := newStore(b, Config{})
	for i := range 10000 {
		apply(b, s, setKey(fmt.Sprintf("app/%d/config/%d", i%100, i), "value"))
	}
	for _, prefix := range []string{"app/", "app", "app/1"} {
		b.Run(prefix, func(b *testing.B) {
			for b.Loop() {
				if _, _, _, err := s.Current(catalog.Query{Kind: catalog.QueryKeyTree, Name: prefix}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
