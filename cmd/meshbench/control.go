package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
)

// The control plane: catalog, health, DNS and keys of one server with its log on
// disk, and keys of etcd beside it. `meshbench control` runs this.

const controlClients = 64

// job is one thing that is done again and again, by its number.
type job struct {
	name string
	do   func(ctx context.Context, n int64) error
}

type controlResult struct {
	who, what  string
	perSecond  [2]float64 // one client, many clients
	p99        [2]time.Duration
	spreadMany float64
	done       int64 // in all rounds
}

func runControl(ctx context.Context, rounds int, window time.Duration) error {
	binary, err := weftBinary()
	if err != nil {
		return err
	}
	w, err := startControl(ctx, binary)
	if err != nil {
		return err
	}
	defer w.stop()
	contenders := []struct {
		name string
		jobs []job
	}{{"weft", w.jobs()}}
	e, err := startEtcd(ctx)
	if err != nil {
		fmt.Fprintln(os.Stderr, "left out: etcd:", err)
	} else {
		defer e.stop()
		contenders = append(contenders, struct {
			name string
			jobs []job
		}{"etcd", e.jobs()})
	}
	var results []controlResult
	for _, c := range contenders {
		for _, j := range c.jobs {
			fmt.Fprintf(os.Stderr, "%s: %s\n", c.name, j.name)
			r, err := measureJob(ctx, j, rounds, window)
			if err != nil {
				return fmt.Errorf("%s: %s: %w", c.name, j.name, err)
			}
			r.who = c.name
			results = append(results, r)
		}
	}
	dns, err := w.dnsperf(ctx, window)
	if err != nil {
		fmt.Fprintln(os.Stderr, "left out: DNS:", err)
	}
	printMachine(rounds, window)
	fmt.Printf("| who | what | /s, 1 client | p99 ms | /s, %d clients | p99 ms |\n|---|---|---:|---:|---:|---:|\n", controlClients)
	for _, r := range results {
		fmt.Printf("| %s | %s | %.0f | %.2f | %.0f ±%.0f %% | %.1f |\n", r.who, r.what, r.perSecond[0], ms(r.p99[0]), r.perSecond[1], r.spreadMany*100, ms(r.p99[1]))
	}
	for _, line := range dns {
		fmt.Println(line)
	}
	return nil
}

// measureJob repeats a job with one client and with many, and gives the medians.
func measureJob(ctx context.Context, j job, rounds int, window time.Duration) (controlResult, error) {
	r := controlResult{what: j.name}
	var n atomic.Int64
	for i, clients := range []int{1, controlClients} {
		var rates []float64
		var tails []time.Duration
		for range rounds {
			times := make([][]time.Duration, clients)
			begin := time.Now()
			err := parallel(clients, func(c int) error {
				for time.Since(begin) < window {
					at := time.Now()
					if err := j.do(ctx, n.Add(1)); err != nil {
						return err
					}
					times[c] = append(times[c], time.Since(at))
				}
				return nil
			})
			if err != nil {
				return r, err
			}
			took := time.Since(begin)
			all := slices.Concat(times...)
			slices.Sort(all)
			rates, tails = append(rates, float64(len(all))/took.Seconds()), append(tails, percentile(all, 0.99))
		}
		slices.Sort(rates)
		slices.Sort(tails)
		r.perSecond[i], r.p99[i] = rates[len(rates)/2], tails[len(tails)/2]
		r.spreadMany = (rates[len(rates)-1] - rates[0]) / r.perSecond[i]
	}
	r.done = n.Load()
	return r, nil
}

// control is a server with its agent, as they run on a host.
type control struct {
	http, dns string
	client    *http.Client
	stop      func()
}

func startControl(ctx context.Context, binary string) (*control, error) {
	dir, err := os.MkdirTemp("", "meshbench-control-")
	if err != nil {
		return nil, err
	}
	port := func(addr string) string { _, p, _ := net.SplitHostPort(addr); return p }
	c := &control{http: "http://" + freeAddr(), dns: freeAddr(), client: &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: controlClients, DisableCompression: true}}}
	conf := fmt.Sprintf("ports { http = %s, dns = %s, serf_lan = %s, server = %s }", c.http[strings.LastIndexByte(c.http, ':')+1:], port(c.dns), port(freeAddr()), port(freeAddr()))
	cmd := exec.CommandContext(ctx, binary, "agent", "-server", "-bootstrap-expect=1", "-bind=127.0.0.1", "-data-dir", dir, "-hcl", conf, "-log-level=warn") //nolint:gosec // the binary under test
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	c.stop = func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		_ = os.RemoveAll(dir)
	}
	if err := until(func() error { return c.do(ctx, http.MethodPut, "/v1/kv/ready", "1") }); err != nil {
		c.stop()
		return nil, err
	}
	for i := range 10 {
		if err := c.do(ctx, http.MethodPut, "/v1/catalog/register", registration("host"+strconv.Itoa(i), "web", 80)); err != nil {
			c.stop()
			return nil, err
		}
	}
	return c, nil
}

// until repeats f for some seconds until it succeeds.
func until(f func() error) (err error) {
	for begin := time.Now(); time.Since(begin) < 20*time.Second; time.Sleep(20 * time.Millisecond) {
		if err = f(); err == nil {
			return nil
		}
	}
	return err
}

func registration(node, service string, port int) string {
	return fmt.Sprintf(`{"Node":%q,"Address":"10.0.0.1","Service":{"ID":%q,"Service":%q,"Port":%d,"Tags":["v1"]},"Checks":[{"Node":%q,"CheckID":"up","Name":"up","Status":"passing","ServiceID":%q}]}`,
		node, service, service, port, node, service)
}

func (c *control) do(ctx context.Context, method, path, body string) error {
	_, err := c.ask(ctx, method, path, body)
	return err
}

// ask makes a request and gives what is answered.
func (c *control) ask(ctx context.Context, method, path, body string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, method, c.http+path, strings.NewReader(body))
	if err != nil {
		return "", err
	}
	resp, err := c.client.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s %s: %s %.200s", method, path, resp.Status, text)
	}
	return string(text), err
}

func (c *control) jobs() []job {
	read := func(name, path string) job {
		return job{name, func(ctx context.Context, _ int64) error { return c.do(ctx, http.MethodGet, path, "") }}
	}
	value := strings.Repeat("v", 100)
	return []job{
		{"catalog registration, each another instance of 100 services on 1000 nodes", func(ctx context.Context, n int64) error {
			return c.do(ctx, http.MethodPut, "/v1/catalog/register", registration("n"+strconv.FormatInt(n%1000, 10), "s"+strconv.FormatInt(n%100, 10), int(n%60000)+1))
		}},
		read("health of 10 instances, default (linearizable)", "/v1/health/service/web"),
		read("the same, stale", "/v1/health/service/web?stale"),
		read("the same, consistent", "/v1/health/service/web?consistent"),
		read("the same, cached", "/v1/health/service/web?cached"),
		{"key of 100 bytes, write", func(ctx context.Context, n int64) error {
			return c.do(ctx, http.MethodPut, "/v1/kv/k"+strconv.FormatInt(n%1000, 10), value)
		}},
		read("key, read, default (linearizable)", "/v1/kv/ready"),
		read("key, read, stale", "/v1/kv/ready?stale"),
	}
}

// dnsperf asks for names as fast as it is answered.
func (c *control) dnsperf(ctx context.Context, window time.Duration) ([]string, error) {
	bin, err := exec.LookPath("dnsperf")
	if err != nil {
		return nil, errors.New("dnsperf is not installed (Debian package dnsperf)")
	}
	dir, err := os.MkdirTemp("", "meshbench-dns-")
	if err != nil {
		return nil, err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	host, port, err := net.SplitHostPort(c.dns)
	if err != nil {
		return nil, err
	}
	lines := []string{"", "| DNS, by dnsperf | answers/s | mean latency µs |", "|---|---:|---:|"}
	for _, q := range [][2]string{{"A of 10 instances", "web.service.consul A"}, {"SRV of 10 instances", "web.service.consul SRV"}, {"no such name", "nothing.service.consul A"}} {
		file := filepath.Join(dir, "q")
		if err := os.WriteFile(file, []byte(q[1]+"\n"), 0o600); err != nil {
			return nil, err
		}
		out, err := exec.CommandContext(ctx, bin, "-s", host, "-p", port, "-d", file, "-c", "8", "-q", "200", "-l", strconv.Itoa(max(1, int(window.Seconds()))), "-e").CombinedOutput() //nolint:gosec // found by LookPath
		if err != nil {
			return nil, fmt.Errorf("%w: %s", err, out)
		}
		rate, latency := after(out, "Queries per second:"), after(out, "Average Latency (s):")
		lines = append(lines, fmt.Sprintf("| %s | %.0f | %.0f |", q[0], rate, latency*1e6))
		if lost := after(out, "Queries lost:"); lost > 0 {
			lines = append(lines, fmt.Sprintf("| %s: lost | %.0f | |", q[0], lost))
		}
	}
	return lines, nil
}

// after is the number that follows a label.
func after(out []byte, label string) float64 {
	_, rest, _ := bytes.Cut(out, []byte(label))
	if f := strings.Fields(string(rest)); len(f) > 0 {
		n, _ := strconv.ParseFloat(f[0], 64) // 0 where there is none
		return n
	}
	return 0
}

// etcd is one member, asked over gRPC as its own client does.
type etcd struct {
	conn *grpc.ClientConn
	stop func()
}

func startEtcd(ctx context.Context) (*etcd, error) {
	bin, err := exec.LookPath("etcd")
	if err != nil {
		return nil, errors.New("not installed (Debian package etcd-server)")
	}
	dir, err := os.MkdirTemp("", "meshbench-etcd-")
	if err != nil {
		return nil, err
	}
	client, peer := freeAddr(), "http://"+freeAddr()
	cmd := exec.CommandContext(ctx, bin, "--data-dir", dir, "--listen-client-urls", "http://"+client, "--advertise-client-urls", "http://"+client, //nolint:gosec // found by LookPath
		"--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", "default="+peer, "--log-level", "error")
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	e := &etcd{}
	e.stop = func() {
		if e.conn != nil {
			_ = e.conn.Close()
		}
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		_ = os.RemoveAll(dir)
	}
	e.conn, err = grpc.NewClient(client, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDefaultCallOptions(grpc.ForceCodecV2(rawCodec{})))
	if err == nil {
		err = until(func() error { return e.put(ctx, "ready", "1") })
	}
	if err != nil {
		e.stop()
		return nil, err
	}
	return e, nil
}

// put and get are PutRequest and RangeRequest of etcd's API, by hand: its client
// would be the largest of our dependencies.
func (e *etcd) put(ctx context.Context, key, value string) error {
	b := protowire.AppendString(protowire.AppendTag(nil, 1, protowire.BytesType), key)
	b = protowire.AppendString(protowire.AppendTag(b, 2, protowire.BytesType), value)
	return e.conn.Invoke(ctx, "/etcdserverpb.KV/Put", b, new([]byte))
}

func (e *etcd) get(ctx context.Context, key string, serializable bool) error {
	b := protowire.AppendString(protowire.AppendTag(nil, 1, protowire.BytesType), key)
	if serializable {
		b = protowire.AppendVarint(protowire.AppendTag(b, 7, protowire.VarintType), 1)
	}
	return e.conn.Invoke(ctx, "/etcdserverpb.KV/Range", b, new([]byte))
}

func (e *etcd) jobs() []job {
	value := strings.Repeat("v", 100)
	return []job{
		{"key of 100 bytes, write", func(ctx context.Context, n int64) error { return e.put(ctx, "k"+strconv.FormatInt(n%1000, 10), value) }},
		{"key, read, linearizable", func(ctx context.Context, _ int64) error { return e.get(ctx, "ready", false) }},
		{"key, read, serializable (may be stale)", func(ctx context.Context, _ int64) error { return e.get(ctx, "ready", true) }},
	}
}

// rawCodec passes messages that are encoded already.
type rawCodec struct{}

var _ encoding.CodecV2 = rawCodec{}

// Marshal implements encoding.CodecV2.
func (rawCodec) Marshal(v any) (mem.BufferSlice, error) {
	return mem.BufferSlice{mem.SliceBuffer(v.([]byte))}, nil
}

// Unmarshal implements encoding.CodecV2.
func (rawCodec) Unmarshal(data mem.BufferSlice, v any) error {
	*v.(*[]byte) = data.Materialize()
	return nil
}

// Name implements encoding.CodecV2.
func (rawCodec) Name() string { return "proto" }
