package connect

import (
	"crypto/tls"
	"crypto/x509"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/weftmesh/weft/connect/tunnel"
)

// A peer that breaks the protocol of tunnels is logged by name and counted, be it in its
// greeting or without a single stream; again and again it is one line.
func TestViolationsAreSeen(t *testing.T) {
	ca := newTestCA(t, testDomain)
	reg := prometheus.NewRegistry()
	db := startSidecarWith(t, ca, "db", ProxyConfig{Metrics: NewMetrics(reg)}, func(s *Snapshot) {
		s.Inbound, s.Local, s.Intentions = "127.0.0.1:0", serve(t, echo), allow("web")
	})
	cert := ca.leaf(t, "web", time.Now().Add(-time.Minute), time.Now().Add(time.Hour))
	speak := func(b string) {
		c := tls.Client(dialTCP(t, db.inbound()), &tls.Config{
			Certificates: []tls.Certificate{*cert}, InsecureSkipVerify: true, NextProtos: []string{tunnel.ALPN},
		})
		_, err := io.WriteString(c, b)
		must(t, err)
		_, _ = io.Copy(io.Discard, c)
		c.Close()
	}
	greeting := "\x01\x00\x00\x0c\x00\x00\x00\x00" + "\x00\x00\x80\x00" + "\x00\x00\x04\x00" + "\x00\x00\x00\x00"
	ended := func(reason string) float64 {
		families, err := reg.Gather()
		must(t, err)
		for _, f := range families {
			for _, m := range f.Metric {
				if f.GetName() == "weft_proxy_tunnels_ended_total" && m.Label[0].GetValue() == reason {
					return m.Counter.GetValue()
				}
			}
		}
		t.Fatalf("no tunnels counted as %s", reason)
		return 0
	}
	speak(greeting + "GET / HTTP/1.1\r\n\r\n")
	eventually(t, "the tunnel counted", func() bool { db.tidy(); return ended("violation") == 1 })
	db.log.find(t, "tunnel ended", "reason=violation", "source=web", "destination=db", "source_id=spiffe://", "destination_id=spiffe://", "addr=127.0.0.1:", "unexpected frame")
	speak("GET / HTTP/1.1\r\n\r\n")
	eventually(t, "the greeting counted", func() bool { return ended("violation") == 2 })
	speak(greeting + "\x08\x00\x00\x07\x00\x00\x00\x00")
	eventually(t, "the second tunnel counted", func() bool { db.tidy(); return ended("violation") == 3 })
	db.svc.journal.flush()
	if n := strings.Count(db.log.String(), "tunnel ended"); n != 1 {
		t.Errorf("%d lines in a moment", n)
	}
	if got := db.Status().Errors; len(got) != 3 || got[0].Reason != ReasonViolation {
		t.Errorf("status shows %+v", got)
	}
	for _, why := range []string{"ok", "lost", "silent"} {
		if n := ended(why); n != 0 {
			t.Errorf("%v tunnels counted as %s", n, why)
		}
	}
}

// Streams that a tunnel refuses by itself have no row: they are counted and logged all the
// same, each once.
func TestUnjudgedStreamsAreSeen(t *testing.T) {
	ca := newTestCA(t, testDomain)
	reg := prometheus.NewRegistry()
	db := startSidecarWith(t, ca, "db", ProxyConfig{Metrics: NewMetrics(reg)}, func(s *Snapshot) {})
	leaf, err := x509.ParseCertificate(ca.leaf(t, "web", time.Now(), time.Now().Add(time.Hour)).Certificate[0])
	must(t, err)
	w := db.svc.world.Load()
	web := w.id
	web.Service = "web"
	in := &inboundTunnel{ends: db.svc.inboundEnds(web, w, "192.0.2.1:7", []*x509.Certificate{leaf})}
	if !db.tunnels.enter(in) {
		t.Fatal("no place")
	}
	seen := func() (n float64) {
		families, err := reg.Gather()
		must(t, err)
		for _, f := range families {
			if f.GetName() == "weft_proxy_connections_total" {
				n += f.Metric[0].Counter.GetValue()
			}
		}
		return n
	}
	for _, c := range []struct {
		sum  uint64
		want float64
	}{{0, 0}, {7, 7}, {7, 7}, {9, 9}} {
		// Another one each time: the proxy looks at them, too, now and then.
		var l tunnel.Link = &fakeLink{status: tunnel.Status{Unjudged: c.sum}}
		in.link.Store(&l)
		if db.tidy(); seen() != c.want {
			t.Errorf("%v counted of %d", seen(), c.sum)
		}
	}
	db.tunnels.leave(in)
	db.log.find(t, "connection refused", "reason=limit", "source=web", "destination=db", "addr=192.0.2.1:7", "7 connections refused unjudged")
}
