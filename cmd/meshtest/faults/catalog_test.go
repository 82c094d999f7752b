//go:build faults

package faults_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/weftmesh/weft/cmd/meshtest/proc"
)

// TestP19CatalogAtScale loads a large catalog into three servers, in transactions of
// three hosts each; then instances change without pause while readers wait at every
// server, and it is timed when the last of them has a change. A server is killed and
// started again. All servers must give the same answers at the end.
func TestP19CatalogAtScale(t *testing.T) {
	c := proc.StartCluster(t, proc.ClusterOptions{Servers: 3, ServerArgs: []string{"-hcl", "limits { http_max_conns_per_client = 5000 }"}})
	e := newEstate(t, proc.Count(60, 5000), proc.Count(240, 20_000))
	lead := c.Leader()

	before, cpu := e.resident(c), e.processors(c)
	took := e.load(lead, 8)
	n := time.Duration(e.instances())
	e.t.Logf("%d instances of %d services on %d hosts registered in %s: %.0f/s, for %s of processor time each on all servers together",
		n, e.services, e.hosts, took.Round(time.Millisecond), float64(n)/took.Seconds(), ((e.processors(c) - cpu) / n).Round(time.Microsecond))
	cpu = e.processors(c)
	single := e.registerSingly(lead, 64, proc.Count(2*time.Second, 15*time.Second))
	e.t.Logf("one request for each, 64 clients: %.0f/s, %s of processor time each", single.rate, ((e.processors(c) - cpu) / time.Duration(single.done)).Round(time.Microsecond))
	for i, now := range e.resident(c) {
		e.t.Logf("resident memory of %s: %d MiB, %.2f KiB an instance more than when it was empty", c.Servers[i].Name, now>>10, float64(now-before[i])/float64(n))
	}

	w, disk := e.watch(c, proc.Count(10, 300)), watchSyncs(t)
	churned := e.churn(c, w, proc.Count(100, 500), proc.Count(3*time.Second, time.Minute))
	w.stop()
	slices.Sort(churned.asked)
	slices.Sort(churned.answered)
	e.t.Logf("%.0f changes/s: %d of them at each of %d watchers' servers after p50 %s, p99 %s of the request, %s and %s of its answer",
		churned.rate, len(churned.asked), w.watchers, half(churned.asked), p99(churned.asked), half(churned.answered), p99(churned.answered))
	disk.report(t)

	for _, victim := range []*proc.Node{c.Followers()[0], lead} {
		role := map[bool]string{true: "leader", false: "follower"}[victim == lead]
		victim.Kill()
		begin := time.Now()
		victim.Launch()
		e.serves(victim)
		e.t.Logf("the killed %s serves %s after its start", role, time.Since(begin).Round(time.Millisecond))
	}
	e.sameEverywhere(c)
	e.t.Logf("requests made again, as their outcome was not known: %d", e.again.Load())
}

// perHost is how many instances, each with a check, a host has.
const perHost = 20

// estate is what the catalog shall hold.
type estate struct {
	t               *testing.T
	hosts, services int
	http            *http.Client
	versions        []atomic.Int64 // of each instance
	again           atomic.Int64   // requests that were made again
}

func newEstate(t *testing.T, hosts, services int) *estate {
	tr := &http.Transport{MaxIdleConnsPerHost: 512}
	t.Cleanup(tr.CloseIdleConnections)
	return &estate{t: t, hosts: hosts, services: services, http: &http.Client{Transport: tr}, versions: make([]atomic.Int64, hosts*perHost)}
}

func (e *estate) instances() int { return e.hosts * perHost }

func (e *estate) service(i int) string { return fmt.Sprintf("svc-%05d", i%e.services) }

func hostName(i int) string { return fmt.Sprintf("host-%05d", i) }

func hostAddr(i int) string { return fmt.Sprintf("10.%d.%d.%d", i>>16&255, i>>8&255, i&255) }

// described is the service and the check of an instance, as JSON.
func (e *estate) described(i int) (service, check string) {
	name, host := e.service(i), hostName(i/perHost)
	service = fmt.Sprintf(`{"ID":%q,"Service":%q,"Port":%d,"Tags":["v1"],"Meta":{"team":"shop"}}`, name, name, 1024+e.versions[i].Load())
	check = fmt.Sprintf(`{"Node":%q,"CheckID":"up-%s","Name":"up","Status":"passing","ServiceID":%q}`, host, name, name)
	return service, check
}

// put asks again what a server could not say the outcome of, as on a machine that
// others keep busy: all that is asked here may be done twice.
func (e *estate) put(n *proc.Node, path, body string) error {
	for end := time.Now().Add(2 * time.Minute); ; pause(100) {
		req, err := http.NewRequestWithContext(context.Background(), http.MethodPut, "http://"+n.HTTP+path, strings.NewReader(body))
		if err != nil {
			return err
		}
		head, text, err := e.send(req)
		switch {
		case err == nil:
			return nil
		case head == nil, !strings.HasPrefix(err.Error(), "500"), time.Now().After(end):
			return fmt.Errorf("%s: %w: %.300s", path, err, text)
		}
		e.again.Add(1)
	}
}

func (e *estate) send(req *http.Request) (http.Header, []byte, error) {
	resp, err := e.http.Do(req)
	if err != nil {
		return nil, nil, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = errors.New(resp.Status)
	}
	return resp.Header, text, err
}

// workers runs f until it says that there is no more, n at a time.
func workers(n int, f func() (more bool, err error)) (took time.Duration, err error) {
	begin := time.Now()
	errs := make(chan error, n)
	for range n {
		go func() {
			for more := true; more; {
				var err error
				if more, err = f(); err != nil {
					errs <- err
					return
				}
			}
			errs <- nil
		}()
	}
	for range n {
		err = errors.Join(err, <-errs)
	}
	return time.Since(begin), err
}

// load registers everything, three hosts in each request.
func (e *estate) load(to *proc.Node, clients int) time.Duration {
	const hosts = 3
	var next atomic.Int64
	took, err := workers(clients, func() (bool, error) {
		first := int(next.Add(hosts)) - hosts
		if first >= e.hosts {
			return false, nil
		}
		var ops []string
		for h := first; h < min(first+hosts, e.hosts); h++ {
			ops = append(ops, fmt.Sprintf(`{"Node":{"Verb":"set","Node":{"Node":%q,"Address":%q}}}`, hostName(h), hostAddr(h)))
			for i := h * perHost; i < (h+1)*perHost; i++ {
				service, check := e.described(i)
				ops = append(ops, fmt.Sprintf(`{"Service":{"Verb":"set","Node":%q,"Service":%s}},{"Check":{"Verb":"set","Check":%s}}`, hostName(h), service, check))
			}
		}
		return true, e.put(to, "/v1/txn", "["+strings.Join(ops, ",")+"]")
	})
	must(e.t, err)
	return took
}

// register states the present version of an instance.
func (e *estate) register(n *proc.Node, i int) error {
	service, check := e.described(i)
	return e.put(n, "/v1/catalog/register", fmt.Sprintf(`{"Node":%q,"SkipNodeUpdate":true,"Service":%s,"Checks":[%s]}`, hostName(i/perHost), service, check))
}

type registered struct {
	done int64
	rate float64
	err  error
}

// registerSingly changes instances, one in each request.
func (e *estate) registerSingly(to *proc.Node, clients int, length time.Duration) registered {
	var next atomic.Int64
	end := time.Now().Add(length)
	took, err := workers(clients, func() (bool, error) {
		i := int(next.Add(1)) % e.instances()
		e.versions[i].Add(1)
		return time.Now().Before(end), e.register(to, i)
	})
	must(e.t, err)
	return registered{next.Load(), float64(next.Load()) / took.Seconds(), nil}
}

func (e *estate) resident(c *proc.Cluster) (kib []int) {
	for _, s := range c.Servers {
		kib = append(kib, residentKiB(e.t, s.PID()))
	}
	return kib
}

func (e *estate) processors(c *proc.Cluster) (sum time.Duration) {
	for _, s := range c.Servers {
		sum += processorTime(e.t, s.PID())
	}
	return sum
}

// lookouts wait at every server for changes of the first services.
type lookouts struct {
	watched, watchers int
	seen              chan sighting
	stop              func()
}

type sighting struct {
	server   string
	instance int
	port     int64
	at       time.Time
}

func (e *estate) watch(c *proc.Cluster, services int) *lookouts {
	ctx, cancel := context.WithCancel(context.Background())
	w := &lookouts{watched: services, watchers: services * len(c.Servers), seen: make(chan sighting, 1024)}
	var wg, ready sync.WaitGroup
	w.stop = func() { cancel(); wg.Wait() }
	e.t.Cleanup(w.stop)
	for _, s := range c.Servers {
		for i := range services {
			ready.Add(1)
			wg.Go(func() { e.lookOut(ctx, s, i, w.seen, ready.Done) })
		}
	}
	ready.Wait()
	return w
}

// lookOut reports the port of an instance whenever the answer about its service
// changes. A server that has no leader for a while is asked again.
func (e *estate) lookOut(ctx context.Context, n *proc.Node, instance int, seen chan<- sighting, ready func()) {
	for index := "0"; ctx.Err() == nil; {
		port, next, err := e.look(ctx, n, instance, index)
		at := time.Now()
		if index == "0" {
			ready()
		}
		if err != nil && ctx.Err() != nil {
			return
		}
		if err != nil {
			index = "1"
			e.again.Add(1)
			pause(100)
			continue
		}
		index = next
		select {
		case seen <- sighting{n.Name, instance, port, at}:
		case <-ctx.Done():
		}
	}
}

// look waits for an answer about the service of an instance that is newer than index.
func (e *estate) look(ctx context.Context, n *proc.Node, instance int, index string) (port int64, next string, err error) {
	url := "http://" + n.HTTP + "/v1/health/service/" + e.service(instance) + "?wait=5m&index=" + index
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return 0, "", err
	}
	head, text, err := e.send(req)
	if err != nil {
		return 0, "", err
	}
	var rows []struct {
		Node    struct{ Node string }
		Service struct{ Port int64 }
	}
	if err := json.Unmarshal(text, &rows); err != nil {
		return 0, "", err
	}
	for _, r := range rows {
		if r.Node.Node == hostName(instance/perHost) {
			return r.Service.Port, head.Get("X-Consul-Index"), nil
		}
	}
	return 0, "", fmt.Errorf("no instance on %s", hostName(instance/perHost))
}

// churned is what happened while instances changed: of those that are waited for, the
// time from the request, and from its answer, to the last watcher.
type churned struct {
	rate            float64
	asked, answered []time.Duration
}

// churn changes so many instances a second, asking each server in turn, and meanwhile
// ten a second that are waited for.
func (e *estate) churn(c *proc.Cluster, w *lookouts, perSecond int, length time.Duration) (out churned) {
	ctx, cancel := context.WithTimeout(context.Background(), length)
	defer cancel()
	done := make(chan registered, 1)
	begin := time.Now()
	go func() {
		var next atomic.Int64
		took, err := workers(64, func() (bool, error) {
			n := int(next.Add(1))
			time.Sleep(time.Until(begin.Add(time.Duration(n) * time.Second / time.Duration(perSecond))))
			i := w.watched + n*7919%(e.instances()-w.watched) // a prime: all over the estate
			e.versions[i].Add(1)
			return ctx.Err() == nil, e.register(c.Servers[n%len(c.Servers)], i)
		})
		done <- registered{next.Load(), float64(next.Load()) / took.Seconds(), err}
	}()
	for n := 0; ctx.Err() == nil; n++ {
		asked, answered := e.oneChange(c, w, n%w.watched)
		out.asked, out.answered = append(out.asked, asked), append(out.answered, answered)
		pause(100)
	}
	all := <-done
	must(e.t, all.err)
	out.rate = all.rate
	return out
}

// oneChange changes a watched instance and waits until a watcher at each server saw it.
func (e *estate) oneChange(c *proc.Cluster, w *lookouts, i int) (asked, answered time.Duration) {
	port := 1024 + e.versions[i].Add(1)
	begin := time.Now()
	must(e.t, e.register(c.Servers[i%len(c.Servers)], i))
	done := time.Now()
	end := time.NewTimer(time.Minute)
	defer end.Stop()
	seen := map[string]bool{}
	for len(seen) < len(c.Servers) {
		select {
		case s := <-w.seen:
			if s.instance == i && s.port == port && !seen[s.server] {
				seen[s.server] = true
				asked, answered = s.at.Sub(begin), max(s.at.Sub(done), 0)
			}
		case <-end.C:
			e.t.Fatalf("of %d servers' watchers only those of %d saw a change within a minute", len(c.Servers), len(seen))
		}
	}
	return asked, answered
}

// serves waits until a server answers about a service, not with what was true long ago.
func (e *estate) serves(n *proc.Node) {
	e.t.Helper()
	proc.Eventually(e.t, 2*time.Minute, n.Name+" serves", func() error {
		_, err := e.health(n, 0)
		return err
	})
}

// health is the answer about a service.
func (e *estate) health(n *proc.Node, service int) (string, error) {
	req, err := http.NewRequestWithContext(context.Background(), http.MethodGet, "http://"+n.HTTP+"/v1/health/service/"+e.service(service), nil)
	if err != nil {
		return "", err
	}
	_, text, err := e.send(req)
	if err != nil {
		return "", fmt.Errorf("%w: %.200s", err, text)
	}
	if want := fmt.Sprintf(`"Port":%d`, 1024+e.versions[service].Load()); !strings.Contains(string(text), want) {
		return "", fmt.Errorf("%s is not in the answer about %s: %s", want, e.service(service), text)
	}
	return string(text), nil
}

// sameEverywhere compares what the servers say of services all over the estate.
func (e *estate) sameEverywhere(c *proc.Cluster) {
	e.t.Helper()
	c.Leader()
	for i := 0; i < e.services; i += max(1, e.services/100) {
		first, err := e.health(c.Servers[0], i)
		must(e.t, err)
		for _, s := range c.Servers[1:] {
			other, err := e.health(s, i)
			must(e.t, err)
			if other != first {
				e.t.Fatalf("%s and %s differ about %s:\n%s\n%s", c.Servers[0].Name, s.Name, e.service(i), first, other)
			}
		}
	}
}
