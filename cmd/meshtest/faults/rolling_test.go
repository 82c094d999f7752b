//go:build faults && linux

package faults_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/weftmesh/weft/cmd/meshtest/proc"
)

// instance is one application of a service, and the agent of its host.
type instance struct {
	t    *testing.T
	host *proc.Agent
	id   string

	srv    *http.Server
	port   int
	under  atomic.Int64 // requests under way
	served atomic.Int64
}

// open starts the application on a port of its own.
func (i *instance) open() {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(i.t, err)
	i.port = l.Addr().(*net.TCPAddr).Port
	i.srv = &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		i.under.Add(1)
		defer i.under.Add(-1)
		i.served.Add(1)
		d, _ := time.ParseDuration(r.URL.Query().Get("after"))
		select {
		case <-time.After(d):
		case <-r.Context().Done():
		}
		_, _ = io.WriteString(w, "served")
	})}
	go func() { _ = i.srv.Serve(l) }()
	i.t.Cleanup(func() { _ = i.srv.Close() })
}

// register registers the instance, healthy, with its sidecar.
func (i *instance) register() {
	i.t.Helper()
	svc := sidecar("db", i.port)
	svc.ID = i.id
	svc.Check = &api.AgentServiceCheck{CheckID: i.id + "-life", TTL: "1h", Status: api.HealthPassing}
	svc.Connect.SidecarService.Proxy.Config = map[string]any{
		"drain_timeout_ms": 15_000, "critical_drain_timeout_ms": 15_000,
	}
	register(i.t, i.host, svc)
}

// rested waits until nobody asks the instance for anything.
func (i *instance) rested() {
	i.t.Helper()
	served, since := i.served.Load(), time.Now()
	proc.Eventually(i.t, 60*time.Second, i.id+" comes to rest", func() error {
		if now := i.served.Load(); now != served || i.under.Load() > 0 {
			served, since = now, time.Now()
		}
		if time.Since(since) < 500*time.Millisecond {
			return fmt.Errorf("%d requests under way, %d served", i.under.Load(), served)
		}
		return nil
	})
}

// asked waits until the instance serves again.
func (i *instance) asked() {
	i.t.Helper()
	from := i.served.Load()
	proc.Eventually(i.t, 60*time.Second, i.id+" serves", func() error {
		if i.served.Load() == from {
			return errors.New("nobody asked")
		}
		return nil
	})
}

// renew ends the application as SIGKILL would, and starts another in its place.
func (i *instance) renew() {
	i.t.Helper()
	_ = i.srv.Close() // nothing is under way
	i.open()
	i.register()
}

// The ways in which an instance is taken out of service, its application ended, and
// brought back.
var rollingWays = []struct {
	what string
	roll func(i *instance)
}{
	{"deregistered", func(i *instance) {
		must(i.t, i.host.Client.Agent().ServiceDeregister(i.id))
		i.rested()
		i.renew()
	}},
	{"in maintenance", func(i *instance) {
		must(i.t, i.host.Client.Agent().EnableServiceMaintenance(i.id, "rolling"))
		i.rested()
		i.renew()
		must(i.t, i.host.Client.Agent().DisableServiceMaintenance(i.id))
	}},
	{"critical", func(i *instance) {
		must(i.t, i.host.Client.Agent().UpdateTTL(i.id+"-life", "rolling", api.HealthCritical))
		i.rested()
		i.renew()
		must(i.t, i.host.Client.Agent().UpdateTTL(i.id+"-life", "", api.HealthPassing))
	}},
	{"left by its agent", func(i *instance) { // the application runs on
		if code := i.host.Stop(); code != 0 {
			i.t.Errorf("the agent of %s ended with %d", i.id, code)
		}
		i.rested()
		i.host.Exec()
	}},
}

// TestP31RollingHosts takes instances of a service on several hosts out of service, in
// turn and in every way that there is, kills their applications or stops their agents,
// and brings them back, while requests run: none fails.
func TestP31RollingHosts(t *testing.T) {
	t.Parallel()
	n := proc.Count(len(rollingWays), 20)
	c := proc.StartCluster(t, proc.ClusterOptions{Servers: 1, Agents: 1 + proc.Count(2, 4)})
	web, hosts := c.Agents[0], c.Agents[1:]
	var all []*instance
	for k := range n {
		i := &instance{t: t, host: hosts[k%len(hosts)].Agent, id: fmt.Sprintf("db-%d", k)}
		i.open()
		i.register()
		all = append(all, i)
	}
	port := proc.FreePorts(t, 1)[0]
	register(t, web.Agent, sidecar("web", 1, api.Upstream{DestinationName: "db", LocalBindAddress: web.Addr, LocalBindPort: port}))
	intend(t, web.Agent, "web", "db", api.IntentionActionAllow)
	up := net.JoinHostPort(web.Addr, strconv.Itoa(port))
	proc.Eventually(t, 60*time.Second, "web reaches every instance", func() error {
		resp, err := (&http.Client{Timeout: time.Second, Transport: &http.Transport{DisableKeepAlives: true}}).Get("http://" + up)
		if err != nil {
			return err
		}
		_ = resp.Body.Close() // that it came is enough
		for _, i := range all {
			if i.served.Load() == 0 {
				return errors.New(i.id + " was asked nothing")
			}
		}
		return nil
	})
	f := drive(up, proc.Count(100, 1000), proc.Count(4, 50), proc.Count(time.Second, 10*time.Second))
	for k, i := range all {
		way := rollingWays[(k+k/len(rollingWays))%len(rollingWays)]
		i.asked()
		begin := time.Now()
		way.roll(i)
		i.asked()
		t.Logf("%s %s: back after %s; %d requests, %d failed", i.id, way.what, time.Since(begin).Round(time.Millisecond), f.done.Load(), f.failed.Load())
	}
	f.end(t)
}
