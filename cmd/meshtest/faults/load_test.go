//go:build faults

package faults_test

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/weftmesh/weft/cmd/meshtest/proc"
)

// store is the key/value API as a client with connections of its own sees it.
type store struct{ http *http.Client }

// newStore makes a client whose requests take at most so long.
func newStore(t *testing.T, atMost time.Duration) store {
	tr := &http.Transport{MaxIdleConnsPerHost: 256, DialContext: (&net.Dialer{Timeout: time.Second}).DialContext}
	t.Cleanup(tr.CloseIdleConnections)
	return store{&http.Client{Transport: tr, Timeout: atMost}}
}

// errUnknown is a request of which nobody knows whether it was carried out,
// errNothing one of which it is known that it was not.
var (
	errUnknown = errors.New("the outcome is not known")
	errNothing = errors.New("nothing was done")
)

func (s store) do(method string, n *proc.Node, path, value string) (status int, body string, err error) {
	req, err := http.NewRequestWithContext(context.Background(), method, "http://"+n.HTTP+path, strings.NewReader(value))
	if err != nil {
		return 0, "", err
	}
	resp, err := s.http.Do(req)
	var op *net.OpError
	if errors.As(err, &op) && op.Op == "dial" {
		return 0, "", fmt.Errorf("%w: %w", errNothing, err)
	}
	if err != nil {
		return 0, "", fmt.Errorf("%w: %w", errUnknown, err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	body = string(b)
	switch {
	case err != nil:
		return 0, "", fmt.Errorf("%w: %w", errUnknown, err)
	case resp.StatusCode == http.StatusOK || resp.StatusCode == http.StatusNotFound:
		return resp.StatusCode, body, nil
	case strings.Contains(body, "No cluster leader"), strings.Contains(body, "nothing was written"):
		return resp.StatusCode, body, fmt.Errorf("%w: %s", errNothing, body)
	}
	return resp.StatusCode, body, fmt.Errorf("%w: status %d: %s", errUnknown, resp.StatusCode, body)
}

// put writes a key; done is false when the API refused to, as with ?cas.
func (s store) put(n *proc.Node, key, value, params string) (done bool, err error) {
	_, body, err := s.do(http.MethodPut, n, "/v1/kv/"+key+params, value)
	return err == nil && strings.TrimSpace(body) == "true", err
}

// pair is a key with its value.
type pair struct {
	Key, Value, Session string
	ModifyIndex         uint64
}

// get reads a key; the zero pair is one that does not exist.
func (s store) get(n *proc.Node, key, params string) (pair, error) {
	found, err := s.list(n, key, params)
	if err != nil || len(found) == 0 {
		return pair{}, err
	}
	return found[0], nil
}

func (s store) list(n *proc.Node, key, params string) ([]pair, error) {
	status, body, err := s.do(http.MethodGet, n, "/v1/kv/"+key+params, "")
	if err != nil || status == http.StatusNotFound {
		return nil, err
	}
	var found []pair
	if err := json.Unmarshal([]byte(body), &found); err != nil {
		return nil, fmt.Errorf("%q: %w", body, err)
	}
	for i := range found {
		v, err := base64.StdEncoding.DecodeString(found[i].Value)
		if err != nil {
			return nil, err
		}
		found[i].Value = string(v)
	}
	return found, nil
}

// load is writers that write unique keys and count a key of their own up by
// compare-and-set, and remember what was acknowledged, and when.
type load struct {
	store  store
	prefix string
	pause  time.Duration // between two writes of one writer
	value  string
	// targets are asked in turn, each writer beginning with another.
	targets []*proc.Node

	stop chan struct{}
	wg   sync.WaitGroup

	mu     sync.Mutex
	begun  time.Time
	acked  map[string]bool
	counts map[string]int // the last that was acknowledged
	times  []time.Time    // of the acknowledgements
	took   []time.Duration
	failed map[string]int
}

// noisy is what makes each error another one.
var noisy = regexp.MustCompile(`(Put|Get) "[^"]*": |(dial|read) tcp [^ ]+: `)

// startLoad runs so many writers until stopped.
func startLoad(t *testing.T, prefix string, writers int, pause time.Duration, targets ...*proc.Node) *load {
	return startLoadOf(t, prefix, writers, pause, "", targets...)
}

func startLoadOf(t *testing.T, prefix string, writers int, pause time.Duration, value string, targets ...*proc.Node) *load {
	t.Helper()
	l := &load{
		store: newStore(t, 10*time.Second), prefix: prefix, pause: pause, value: value, targets: targets, stop: make(chan struct{}),
		begun: time.Now(), acked: map[string]bool{}, counts: map[string]int{}, failed: map[string]int{},
	}
	for w := range writers {
		l.wg.Go(func() { l.write(w) })
	}
	t.Cleanup(l.end)
	return l
}

// end stops the writers and waits for them.
func (l *load) end() {
	l.mu.Lock()
	select {
	case <-l.stop:
	default:
		close(l.stop)
	}
	l.mu.Unlock()
	l.wg.Wait()
	l.store.http.CloseIdleConnections() // an agent serves so many of one client, and a test may have many loads
}

func (l *load) write(w int) {
	counter, count, index := fmt.Sprintf("%s-count/%d", l.prefix, w), 0, uint64(0)
	next := time.Now()
	for i := 0; ; i++ {
		select {
		case <-l.stop:
			return
		default:
		}
		n := l.targets[(w+i/8)%len(l.targets)]
		begin := time.Now()
		var err error
		if i%4 == 3 {
			count, index, err = l.countUp(n, counter, count, index)
		} else {
			key := fmt.Sprintf("%s/%d-%d", l.prefix, w, i)
			var done bool
			if done, err = l.store.put(n, key, l.value, ""); done {
				l.note(func() { l.acked[key] = true })
			}
		}
		l.note(func() {
			if err != nil {
				l.failed[n.Name+": "+noisy.ReplaceAllString(err.Error(), "")]++
				return
			}
			l.times = append(l.times, time.Now())
			l.took = append(l.took, time.Since(begin))
		})
		if err != nil {
			next = time.Now().Add(20 * time.Millisecond)
		} else {
			next = next.Add(l.pause)
		}
		if wait := time.Until(next); wait > 0 {
			time.Sleep(wait)
		} else {
			next = time.Now()
		}
	}
}

// countUp adds one to the writer's own counter, if it is what it was left at.
func (l *load) countUp(n *proc.Node, key string, count int, index uint64) (int, uint64, error) {
	done, err := l.store.put(n, key, strconv.Itoa(count+1), "?cas="+strconv.FormatUint(index, 10))
	if done {
		l.note(func() { l.counts[key] = count + 1 })
	}
	now, readErr := l.store.get(n, key, "")
	if err != nil || readErr != nil {
		// Found out later, when it is read for the next time.
		if readErr == nil {
			count, _ = strconv.Atoi(now.Value)
			index = now.ModifyIndex
		}
		return count, index, errors.Join(err, readErr)
	}
	count, _ = strconv.Atoi(now.Value)
	return count, now.ModifyIndex, nil
}

func (l *load) note(f func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	f()
}

// gap is the longest time without an acknowledgement since.
func (l *load) gap(since time.Time) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	times := slices.Clone(l.times)
	slices.SortFunc(times, time.Time.Compare)
	var worst time.Duration
	last := since
	for _, at := range times {
		if at.After(since) {
			worst, last = max(worst, at.Sub(last)), at
		}
	}
	return worst
}

// sum says what became of the writes.
func (l *load) sum() (acked, failed int, errs map[string]int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, n := range l.failed {
		failed += n
	}
	return len(l.times), failed, maps.Clone(l.failed)
}

// lost compares what was acknowledged with what a server has, by itself.
func (l *load) lost(t *testing.T, n *proc.Node) int {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	var keys []string
	_, body, err := l.store.do(http.MethodGet, n, "/v1/kv/"+l.prefix+"/?keys&stale", "")
	must(t, err)
	must(t, json.Unmarshal([]byte(body), &keys))
	have := map[string]bool{}
	for _, k := range keys {
		have[k] = true
	}
	lost := 0
	for k := range l.acked {
		if !have[k] {
			lost++
		}
	}
	counters, err := l.store.list(n, l.prefix+"-count/", "?recurse&stale")
	must(t, err)
	values := map[string]int{}
	for _, c := range counters {
		values[c.Key], _ = strconv.Atoi(c.Value)
	}
	for k, want := range l.counts {
		if values[k] < want {
			lost++
		}
	}
	return lost
}

// fingerprint is the digest of what a server has stored.
func fingerprint(n *proc.Node) (string, error) {
	status, body, err := n.Get("/v1/internal/fingerprint")
	if err != nil || status != http.StatusOK {
		return "", fmt.Errorf("%d %s %w", status, body, err)
	}
	var is struct{ Fingerprint string }
	err = json.Unmarshal([]byte(body), &is)
	return is.Fingerprint, err
}

// equal waits until all servers have stored the same.
func equal(t *testing.T, servers ...*proc.Node) {
	t.Helper()
	proc.Eventually(t, 30*time.Second, "all servers have stored the same", func() error {
		seen := map[string][]string{}
		for _, n := range servers {
			is, err := fingerprint(n)
			if err != nil {
				return err
			}
			seen[is] = append(seen[is], n.Name)
		}
		if len(seen) != 1 {
			return fmt.Errorf("%v", seen)
		}
		return nil
	})
}

// judge ends the load, and wants all that it was told on every server.
func (l *load) judge(t *testing.T, servers ...*proc.Node) (acked int) {
	t.Helper()
	l.end()
	equal(t, servers...)
	acked, failed, errs := l.sum()
	lost := 0
	for _, n := range servers {
		if missing := l.lost(t, n); missing > 0 {
			t.Errorf("%s lacks %d of %d acknowledged writes", n.Name, missing, acked)
			lost += missing
		}
	}
	t.Logf("%d writes acknowledged, %d not, %d lost; all %d servers have stored the same", acked, failed, lost, len(servers))
	if t.Failed() {
		for e, n := range errs {
			t.Logf("  %d × %.160s", n, e)
		}
	}
	return acked
}

// spread sorts times and gives some of them as text.
func spread(d []time.Duration) string {
	if len(d) == 0 {
		return "none"
	}
	d = slices.Sorted(slices.Values(d))
	at := func(p int) time.Duration { return d[min(len(d)-1, len(d)*p/100)].Round(time.Millisecond) }
	return fmt.Sprintf("p50 %s, p90 %s, p99 %s, worst %s of %d", at(50), at(90), at(99), d[len(d)-1].Round(time.Millisecond), len(d))
}

// raftTerm is the term that a server is in.
func raftTerm(t *testing.T, n *proc.Node) int {
	t.Helper()
	self, err := n.Client.Agent().Self()
	must(t, err)
	term, err := strconv.Atoi(fmt.Sprint(self["Stats"]["raft"].(map[string]any)["term"]))
	must(t, err)
	return term
}
