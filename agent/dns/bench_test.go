package dns

import (
	"context"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// BenchmarkAnswer is the work for a query, without the network.
func BenchmarkAnswer(b *testing.B) {
	for _, c := range []struct {
		name  string
		size  int
		qtype uint16
	}{{"A of 10", 10, dns.TypeA}, {"SRV of 10", 10, dns.TypeSRV}, {"A of 1000", 1000, dns.TypeA}} {
		b.Run(c.name, func(b *testing.B) {
			s := unserved(b, config(big(c.size)))
			req := message("big.service.consul", c.qtype)
			b.ReportAllocs()
			for b.Loop() {
				if _, wire := s.reply(context.Background(), req, udpClient()); wire == nil {
					b.Fatal("no answer")
				}
			}
		})
	}
}

// BenchmarkUDP is queries over loopback, from 64 clients at a time.
func BenchmarkUDP(b *testing.B) {
	addr := serve(b, config(big(10)))
	packed, err := message("big.service.consul", dns.TypeA).Pack()
	if err != nil {
		b.Fatal(err)
	}
	b.SetParallelism(32)
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		c, err := dns.DialTimeout("udp", addr, time.Second)
		if err != nil {
			b.Error(err)
			return
		}
		defer func() { _ = c.Close() }()
		buf := make([]byte, 4096)
		for pb.Next() {
			_ = c.SetDeadline(time.Now().Add(5 * time.Second))
			if _, err := c.Conn.Write(packed); err != nil {
				b.Error(err)
				return
			}
			if _, err := c.Conn.Read(buf); err != nil {
				b.Error(err)
				return
			}
		}
	})
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "queries/s")
}
