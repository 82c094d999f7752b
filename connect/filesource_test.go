package connect

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/weftmesh/weft/catalog"
)

func TestFileSource(t *testing.T) {
	path := filepath.Join(t.TempDir(), "web.json")
	log := &logBook{}
	f := &FileSource{Path: path, Every: time.Millisecond, Logger: log.logger()}
	if _, _, err := f.Next(t.Context(), 0); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
	write := func(text string) {
		t.Helper()
		tmp := path + ".new"
		must(t, os.WriteFile(tmp, []byte(text), 0o600))
		must(t, os.Rename(tmp, path))
	}
	write(`{"Service": "web", "Limits": {"DrainTimeout": "7s"}, "Intentions": [{"SourceName": "*", "DestinationName": "web"}, {"SourceName": "api", "DestinationName": "web", "Action": "allow"}]}`)
	snap, index, err := f.Next(t.Context(), 0)
	must(t, err)
	if snap.Service != "web" || snap.Limits.DrainTimeout != 7*time.Second || index != 1 || snap.Index != 1 {
		t.Errorf("%+v at %d", snap, index)
	}
	if snap.Intentions[0].SourceName != "api" {
		t.Error("intentions are not in order")
	}
	write(`{"Servcie": "web"}`)
	ctx, cancel := context.WithCancel(t.Context())
	waited := make(chan error, 1)
	go func() { _, _, err := f.Next(ctx, index); waited <- err }()
	log.find(t, "stays in force", "Servcie")
	cancel()
	if err := <-waited; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	write(`{"Service": "web2", "Index": 40}`)
	snap, index, err = f.Next(t.Context(), index)
	must(t, err)
	if snap.Service != "web2" || snap.Index != 40 || index != 2 {
		t.Errorf("%+v at %d", snap, index)
	}
}

// A snapshot reads the same in process and over HTTP.
func TestSnapshotSurvivesJSON(t *testing.T) {
	want := &Snapshot{
		Index: 7, Service: "web", Datacenter: testDC, TrustDomain: testDomain, Roots: []string{"a", "b"}, SigningRoot: "a",
		Intentions: catalog.Intentions{{
			SourceName: "api", DestinationName: "web", Action: catalog.ActionAllow, Precedence: 9,
			Permissions: []*catalog.IntentionPermission{{Action: catalog.ActionAllow}},
		}},
		Default: catalog.ActionDeny, Local: "127.0.0.1:80", Inbound: "0.0.0.0:21000",
		Upstreams: []Upstream{{
			Name: "db", Listen: "127.0.0.1:5432", ConnectTimeout: time.Second,
			Instances: []Endpoint{{ID: "db1", Node: "n", Addr: "10.0.0.1:21000", Status: catalog.StatusPassing, Weight: 3}},
		}},
		Limits: Limits{HandshakeTimeout: time.Second, MaxInboundConnections: 5},
	}
	b, err := json.Marshal(want)
	must(t, err)
	var got Snapshot
	must(t, catalog.DecodeJSON(b, &got))
	if !reflect.DeepEqual(&got, want) {
		t.Errorf("got %+v\nwant %+v", got, want)
	}
}

func TestMetrics(t *testing.T) {
	reg := prometheus.NewRegistry()
	m := NewMetrics(reg)
	ca := newTestCA(t, testDomain)
	app := serve(t, echo)
	db := startSidecarWith(t, ca, "db", ProxyConfig{Metrics: m}, func(s *Snapshot) {
		s.Inbound, s.Local, s.Intentions = "127.0.0.1:0", app, allow("web")
	})
	web := startSidecarWith(t, ca, "web", ProxyConfig{Metrics: m}, func(s *Snapshot) {
		s.Upstreams = []Upstream{upstreamOf("db", db.inbound())}
	})
	c := dialTCP(t, web.upstream("db"))
	must(t, roundTrip(c, "12345"))
	if v := sample(t, reg, "weft_proxy_connections_open", "inbound", "web", "db"); v != 1 {
		t.Errorf("open: %v", v)
	}
	c.Close()
	web.log.find(t, "connection ended")
	db.log.find(t, "connection ended")
	for name, tc := range map[string]struct {
		metric string
		labels []string
		want   float64
	}{
		"inbound":  {"weft_proxy_connections_total", []string{"inbound", "web", "db", "ok"}, 1},
		"outbound": {"weft_proxy_connections_total", []string{"outbound", "web", "db", "ok"}, 1},
		"open":     {"weft_proxy_connections_open", []string{"inbound", "web", "db"}, 0},
		"bytes":    {"weft_proxy_bytes_total", []string{"outbound", "web", "db", "out"}, 5},
		"applied":  {"weft_proxy_applied_index", []string{"web-sidecar-proxy"}, 1},
	} {
		if v := sample(t, reg, tc.metric, tc.labels...); v != tc.want {
			t.Errorf("%s: %s%v is %v, want %v", name, tc.metric, tc.labels, v, tc.want)
		}
	}
	if v := sample(t, reg, "weft_proxy_certificate_expiry_timestamp_seconds", "db-sidecar-proxy"); v < float64(time.Now().Unix()) {
		t.Errorf("certificate expiry: %v", v)
	}
	// Strangers cannot make series without end.
	for i := range 3 * maxPairs {
		m.pair(false, "s"+time.Duration(i).String(), "db").count(ReasonDenied)
	}
	if n := len(m.pairs); n > maxPairs+2 {
		t.Errorf("%d pairs", n)
	}
	if v := sample(t, reg, "weft_proxy_connections_total", "inbound", other, other, "denied"); v < 2*maxPairs {
		t.Errorf("overflow: %v", v)
	}
	db.close()
	if v := sample(t, reg, "weft_proxy_applied_index", "db-sidecar-proxy"); v != -1 {
		t.Errorf("the series of a proxy that ended is still there: %v", v)
	}
}

// sample finds a value by the set of its label values, -1 when there is none.
func sample(t testing.TB, reg *prometheus.Registry, name string, labels ...string) float64 {
	t.Helper()
	families, err := reg.Gather()
	must(t, err)
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		for _, m := range f.GetMetric() {
			have := map[string]bool{}
			for _, l := range m.GetLabel() {
				have[l.GetValue()] = true
			}
			all := true
			for _, l := range labels {
				all = all && have[l]
			}
			if all {
				return m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
		}
	}
	return -1
}
