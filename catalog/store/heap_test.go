package store

import (
	"fmt"
	"runtime"
	"testing"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/catalog/wire"
)

// estate is a catalog as TestP19CatalogAtScale registers it: hosts of 20 instances
// with a check each, five instances of a service, three hosts in a transaction. Each
// command went through the log's codec, so that it shares nothing with another.
func estate(tb testing.TB, s *Store, hosts int) {
	const perHost, perTxn = 20, 3
	services := hosts * perHost / 5
	index := uint64(1)
	for h := 0; h < hosts; h += perTxn {
		c := &catalog.Txn{}
		for n := h; n < min(h+perTxn, hosts); n++ {
			node := fmt.Sprintf("host-%05d", n)
			c.Ops = append(c.Ops, catalog.TxnOp{Node: &catalog.NodeOp{
				Verb: catalog.TxnSet,
				Node: catalog.Node{Node: node, Address: fmt.Sprintf("10.0.%d.%d", n>>8, n&255)},
			}})
			for i := n * perHost; i < (n+1)*perHost; i++ {
				name := fmt.Sprintf("svc-%05d", i%services)
				c.Ops = append(c.Ops, catalog.TxnOp{Service: &catalog.ServiceOp{
					Verb: catalog.TxnSet, Node: node,
					Service: catalog.Service{ID: name, Service: name, Port: 1024, Tags: []string{"v1"}, Meta: map[string]string{"team": "shop"}},
				}},
					catalog.TxnOp{Check: &catalog.CheckOp{
						Verb:  catalog.TxnSet,
						Check: catalog.Check{Node: node, CheckID: "up-" + name, Name: "up", Status: catalog.StatusPassing, ServiceID: name},
					}})
			}
		}
		b, err := wire.EncodeEntry(c)
		if err != nil {
			tb.Fatal(err)
		}
		cmd, err := wire.DecodeEntry(b)
		if err != nil {
			tb.Fatal(err)
		}
		index++
		if out, err := s.Apply(index, cmd); err != nil || len(out.(*catalog.TxnResult).Errors) > 0 {
			tb.Fatal(out, err)
		}
	}
}

func heap() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// BenchmarkHeapPerInstance loads 20,000 instances on 1,000 hosts. For what of it is
// whose, add -memprofile and -memprofilerate=512 and look at inuse_space.
func BenchmarkHeapPerInstance(b *testing.B) {
	const hosts = 1000
	var kept []*Store
	before := heap()
	for b.Loop() {
		s := newStore(b, Config{})
		estate(b, s, hosts)
		kept = append(kept, s)
	}
	b.ReportMetric(float64(heap()-before)/float64(len(kept)*hosts*20), "B/instance")
	runtime.KeepAlive(kept)
}
