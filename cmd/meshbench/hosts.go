package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

// Many hosts: three servers on one disk, and as many agents as there is memory for,
// all in this process. `meshbench hosts` runs this.

// fleet is servers as processes, each on an address of loopback of its own.
type fleet struct {
	dir, token string
	servers    []*exec.Cmd
	addrs      []string // IP
	client     *http.Client
	serving    time.Duration // from nothing
}

// startFleet mints the secret and a token and starts three servers and five agents. It
// measures how long it takes until all of them serve, and ends the agents.
func startFleet(ctx context.Context, binary string) (*fleet, error) {
	dir, err := os.MkdirTemp("", "meshbench-hosts-")
	if err != nil {
		return nil, err
	}
	f := &fleet{dir: dir, token: filepath.Join(dir, "token"), client: &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: controlClients}}}
	secret := filepath.Join(dir, "secret")
	began := time.Now()
	for _, args := range [][]string{{"secret", "new", "-out", secret}, {"join-token", "-secret-file", secret, "-out", f.token}} {
		if out, err := exec.CommandContext(ctx, binary, args...).CombinedOutput(); err != nil { //nolint:gosec // the binary under test
			return nil, errors.Join(fmt.Errorf("weft %s: %w: %s", args[0], err, out), os.RemoveAll(dir))
		}
	}
	block := "127." + strconv.Itoa(150+os.Getpid()%100)
	for i := range 3 {
		f.addrs = append(f.addrs, fmt.Sprintf("%s.1.%d", block, i+1))
	}
	var agents []*exec.Cmd
	for i := range 8 {
		addr, role := fmt.Sprintf("%s.1.%d", block, i+1), []string{"-join-token-file", f.token}
		if i < 3 {
			role = []string{"-server", "-bootstrap-expect=3", "-cluster-secret-file", secret}
		}
		args := append([]string{
			"agent", "-node", fmt.Sprintf("host-%d", i), "-bind", addr, "-client", addr, "-data-dir", filepath.Join(dir, strconv.Itoa(i)),
			"-log-level=error", "-hcl", "ports { dns = -1 } limits { http_max_conns_per_client = 1000 }",
			"-retry-join", f.addrs[0], "-retry-join", f.addrs[1], "-retry-join", f.addrs[2],
		}, role...)
		cmd := exec.CommandContext(ctx, binary, args...) //nolint:gosec // the binary under test
		cmd.Stderr = os.Stderr
		if err := cmd.Start(); err != nil {
			f.stop()
			return nil, err
		}
		if i < 3 {
			f.servers = append(f.servers, cmd)
		} else {
			agents = append(agents, cmd)
		}
	}
	for i := range 8 {
		url := fmt.Sprintf("http://%s.1.%d:8500/v1/catalog/node/host-%d", block, i+1, i)
		if err = until(func() error { _, err := f.do(ctx, http.MethodGet, url, ""); return err }); err != nil {
			break
		}
	}
	f.serving = time.Since(began)
	for _, a := range agents {
		_ = a.Process.Kill()
		_ = a.Wait()
	}
	if err != nil {
		f.stop()
		return nil, err
	}
	return f, nil
}

func (f *fleet) stop() {
	for _, s := range f.servers {
		_ = s.Process.Kill()
		_ = s.Wait()
	}
	_ = os.RemoveAll(f.dir)
}

func (f *fleet) do(ctx context.Context, method, url, body string) (string, error) {
	c := control{client: f.client}
	return c.ask(ctx, method, url, body)
}

// url is a path of the API of a server.
func (f *fleet) url(server int, path string) string {
	return "http://" + net.JoinHostPort(f.addrs[server], "8500") + path
}

// leader is the number of the server that leads.
func (f *fleet) leader(ctx context.Context) int {
	text, err := f.do(ctx, http.MethodGet, f.url(0, "/v1/status/leader"), "")
	for i := range f.addrs {
		if err == nil && strings.Contains(text, f.addrs[i]+":") {
			return i
		}
	}
	return 0
}

func (f *fleet) rss() (sum int64) {
	for _, s := range f.servers {
		sum += rss(s.Process.Pid)
	}
	return sum
}

// intend sets whether clients may reach db, and gives when that was asked for and
// answered.
func (f *fleet) intend(ctx context.Context, server int, allow bool) (began, done time.Time, err error) {
	action := map[bool]string{true: "allow", false: "deny"}[allow]
	began = time.Now()
	_, err = f.do(ctx, http.MethodPut, f.url(server, "/v1/connect/intentions/exact?source=client&destination=db"), `{"SourceType":"consul","Action":"`+action+`"}`)
	return began, time.Now(), err
}

func runHosts(ctx context.Context, rounds int, window time.Duration, sizes []int) error {
	binary, err := weftBinary()
	if err != nil {
		return err
	}
	f, err := startFleet(ctx, binary)
	if err != nil {
		return err
	}
	defer f.stop()
	lead := f.leader(ctx)
	if _, _, err := f.intend(ctx, lead, true); err != nil {
		return err
	}
	printMachine(rounds, window)
	fmt.Printf("From nothing to three servers and five agents that serve: %.1f s.\n\n", f.serving.Seconds())
	fmt.Println("| agents | all up after | processor time for each: servers | itself | last agent enforces after, p50 of 20 | max | after the answer, p50 | servers' memory per agent | agents' own |\n|---:|---:|---:|---:|---:|---:|---:|---:|---:|")
	for _, n := range sizes {
		if err := f.measureAgents(ctx, lead, n); err != nil {
			fmt.Fprintf(os.Stderr, "left out: %d agents: %v\n", n, err)
		}
	}
	fmt.Printf("\n| writes, three servers, one disk | /s, 1 client | p99 ms | /s, %d clients | p99 ms | servers' processor time each |\n|---|---:|---:|---:|---:|---:|\n", controlClients)
	for _, j := range f.writes(lead) {
		if err := printWrites(ctx, j, rounds, window, f.pids()); err != nil {
			return err
		}
	}
	raw, err := startRawRaft(f.dir)
	if err != nil {
		return err
	}
	defer raw.stop()
	return printWrites(ctx, job{"raw raft-boltdb, 256 bytes, no state machine", raw.apply}, rounds, window, nil)
}

// pids are the processes of the servers.
func (f *fleet) pids() (out []int) {
	for _, s := range f.servers {
		out = append(out, s.Process.Pid)
	}
	return out
}

// printWrites prints the line of a job, with what the processes that serve it use of
// the processors, which says more than the rate where others use them too.
func printWrites(ctx context.Context, j job, rounds int, window time.Duration, servers []int) error {
	used := processorTime(servers)
	r, err := measureJob(ctx, j, rounds, window)
	if err != nil {
		return fmt.Errorf("%s: %w", j.name, err)
	}
	each := "–"
	if len(servers) > 0 {
		each = ((processorTime(servers) - used) / time.Duration(r.done)).Round(time.Microsecond).String()
	}
	fmt.Printf("| %s | %.0f | %.1f | %.0f ±%.0f %% | %.1f | %s |\n", r.what, r.perSecond[0], ms(r.p99[0]), r.perSecond[1], r.spreadMany*100, ms(r.p99[1]), each)
	return nil
}

func (f *fleet) writes(lead int) []job {
	put := func(path, body string) func(context.Context) error {
		return func(ctx context.Context) error {
			_, err := f.do(ctx, http.MethodPut, f.url(lead, path), body)
			return err
		}
	}
	var round atomic.Int64
	return []job{
		{"registration of an instance, over HTTP", func(ctx context.Context, n int64) error {
			return put("/v1/catalog/register", registration("n"+strconv.FormatInt(n%1000, 10), "s"+strconv.FormatInt(n%100, 10), int(n%60000)+1))(ctx)
		}},
		{"transaction of 3 hosts with 60 instances and their checks, over HTTP", func(ctx context.Context, n int64) error {
			return put("/v1/txn", threeHosts(int(n)))(ctx)
		}},
		{"intention, over HTTP", func(ctx context.Context, n int64) error {
			action := []string{"allow", "deny"}[round.Add(1)%2]
			return put(fmt.Sprintf("/v1/connect/intentions/exact?source=s%d&destination=d%d", n%100, n%1000), `{"SourceType":"consul","Action":"`+action+`"}`)(ctx)
		}},
	}
}

// threeHosts is a transaction that registers hosts of 20 instances each. After 600
// hosts the same come again, with other ports.
func threeHosts(n int) string {
	var ops []string
	for h := 3 * n; h < 3*n+3; h++ {
		node := "host-" + strconv.Itoa(h%600)
		ops = append(ops, fmt.Sprintf(`{"Node":{"Verb":"set","Node":{"Node":%q,"Address":"10.0.0.1"}}}`, node))
		for i := range 20 {
			service := "svc-" + strconv.Itoa((h*20+i)%2400)
			ops = append(ops,
				fmt.Sprintf(`{"Service":{"Verb":"set","Node":%q,"Service":{"ID":%q,"Service":%q,"Port":%d,"Tags":["v1"]}}}`, node, service, service, 1024+h/600),
				fmt.Sprintf(`{"Check":{"Verb":"set","Check":{"Node":%q,"CheckID":"up-%s","Name":"up","Status":"passing","ServiceID":%q}}}`, node, service, service))
		}
	}
	return "[" + strings.Join(ops, ",") + "]"
}

// measureAgents runs n agents, changes an intention 20 times and times the last agent.
func (f *fleet) measureAgents(ctx context.Context, lead, n int) error {
	before, own := f.rss(), rss(os.Getpid())
	began, self := time.Now(), []int{os.Getpid()}
	served, used := processorTime(f.pids()), processorTime(self)
	crowd, err := startCrowd(ctx, f, n)
	if err != nil {
		return err
	}
	defer crowd.stop()
	up := time.Since(began)
	served, used = (processorTime(f.pids())-served)/time.Duration(n), (processorTime(self)-used)/time.Duration(n)
	time.Sleep(2 * time.Second) // what the joining cost is given back
	perAgent, each := (f.rss()-before)/int64(n), (rss(os.Getpid())-own)/int64(n)
	var total, answered []time.Duration
	allow := false
	for range 20 {
		crowd.expect()
		began, done, err := f.intend(ctx, lead, allow)
		if err != nil {
			return err
		}
		last, err := crowd.wait(ctx, 30*time.Second)
		if err != nil {
			return err
		}
		total, answered = append(total, last.Sub(began)), append(answered, max(last.Sub(done), 0))
		allow = !allow
		time.Sleep(100 * time.Millisecond)
	}
	sortDurations(total)
	sortDurations(answered)
	fmt.Printf("| %d | %.1f s | %.1f ms | %.1f ms | %.1f ms | %.1f ms | %.1f ms | %s | %s |\n", n, up.Seconds(), ms(served), ms(used), ms(percentile(total, 0.5)), ms(total[len(total)-1]), ms(percentile(answered, 0.5)), kib(perAgent), kib(each))
	return nil
}

func kib(b int64) string { return fmt.Sprintf("%d KiB", max(b, 0)/1024) }

var quiet = slog.New(slog.DiscardHandler)
