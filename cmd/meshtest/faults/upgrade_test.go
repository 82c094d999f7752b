//go:build faults && linux

package faults_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/weftmesh/weft/cmd/meshtest/proc"
)

// traffic is requests through the mesh, each over a connection of its own, and some
// that take long. It counts those that failed.
type traffic struct {
	url   string
	stop  context.CancelFunc
	begin time.Time
	wg    sync.WaitGroup

	done, late, failed atomic.Int64
	mu                 sync.Mutex
	errs               []string
}

// serveSlowly is the application: it answers at once, or after the time that is asked for.
func serveSlowly(t *testing.T) (port int) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	s := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		d, _ := time.ParseDuration(r.URL.Query().Get("after"))
		select {
		case <-time.After(d):
		case <-r.Context().Done():
		}
		_, _ = io.WriteString(w, "served")
	})}
	go func() { _ = s.Serve(l) }()
	t.Cleanup(func() { _ = s.Close() })
	return l.Addr().(*net.TCPAddr).Port
}

// atOnce bounds the requests that are under way; a machine that cannot keep up is asked
// for fewer a second, and end tells how many there were.
const atOnce = 1000

// drive begins rate requests a second, and keeps as many slow ones under way.
func drive(addr string, rate, slow int, after time.Duration) *traffic {
	ctx, cancel := context.WithCancel(context.Background())
	f := &traffic{url: "http://" + addr + "/", stop: cancel, begin: time.Now()}
	places := make(chan struct{}, atOnce)
	client := &http.Client{Timeout: after + 30*time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	f.wg.Go(func() {
		tick := time.NewTicker(time.Second / time.Duration(rate))
		defer tick.Stop()
		for ctx.Err() == nil {
			<-tick.C
			places <- struct{}{}
			f.wg.Go(func() {
				f.ask(client, "")
				<-places
			})
		}
	})
	for range slow {
		f.wg.Go(func() {
			for ctx.Err() == nil {
				f.ask(client, "?after="+after.String())
			}
		})
	}
	return f
}

func (f *traffic) ask(c *http.Client, query string) {
	begin := time.Now()
	err := func() error {
		resp, err := c.Get(f.url + query)
		if err != nil {
			return err
		}
		defer resp.Body.Close() //nolint:errcheck // read only
		b, err := io.ReadAll(resp.Body)
		if err == nil && string(b) != "served" {
			err = fmt.Errorf("%s %q", resp.Status, b)
		}
		return err
	}()
	f.done.Add(1)
	if query == "" && time.Since(begin) > time.Second {
		f.late.Add(1)
	}
	if err != nil {
		f.failed.Add(1)
		f.mu.Lock()
		defer f.mu.Unlock()
		if len(f.errs) < 10 {
			f.errs = append(f.errs, time.Now().Format("15:04:05.000 ")+err.Error())
		}
	}
}

// more waits until so many more requests were answered.
func (f *traffic) more(t *testing.T, n int64) {
	t.Helper()
	from := f.done.Load()
	proc.Eventually(t, 5*time.Minute, "requests are answered", func() error {
		if f.done.Load()-from < n {
			return errors.New("not yet")
		}
		return nil
	})
}

// end waits for the last answer and tells what failed.
func (f *traffic) end(t *testing.T) {
	t.Helper()
	took := time.Since(f.begin)
	f.stop()
	f.wg.Wait()
	t.Logf("%d requests, %.0f a second, %d failed, %d took more than a second",
		f.done.Load(), float64(f.done.Load())/took.Seconds(), f.failed.Load(), f.late.Load())
	if f.failed.Load() > 0 {
		t.Errorf("%d of %d requests failed:\n%s", f.failed.Load(), f.done.Load(), strings.Join(f.errs, "\n"))
	}
}

// runs waits until the version that serves is the one that was asked for.
func runs(t *testing.T, s *proc.Supervisor, next bool) {
	t.Helper()
	s.WaitServing(60 * time.Second)
	proc.Eventually(t, 30*time.Second, "the version is another one", func() error {
		self, err := s.Client.Agent().Self()
		if err != nil {
			return err
		}
		if v := fmt.Sprint(self["Config"]["Version"]); strings.Contains(v, "next") != next {
			return fmt.Errorf("it is %s", v)
		}
		return nil
	})
}

// TestP31Upgrade takes three servers and two agents from this version to the next and
// back, one after another, while requests run through the mesh: none fails.
func TestP31Upgrade(t *testing.T) {
	next := proc.NextBinary(t)
	c := proc.StartCluster(t, proc.ClusterOptions{Servers: 3, Agents: 2, Unstarted: true})
	var all []*proc.Supervisor
	for _, n := range c.Nodes() {
		s := proc.Supervise(t, n.Agent)
		s.Begin()
		all = append(all, s)
	}
	for _, s := range all {
		s.WaitServing(60 * time.Second)
	}
	web, db := all[3], all[4]
	port := proc.FreePorts(t, 1)[0]
	register(t, db.Agent, sidecar("db", serveSlowly(t)))
	register(t, web.Agent, sidecar("web", 1, api.Upstream{DestinationName: "db", LocalBindPort: port}))
	intend(t, web.Agent, "web", "db", api.IntentionActionAllow)
	up := net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
	proc.Eventually(t, 30*time.Second, "web reaches db", func() error {
		resp, err := (&http.Client{Timeout: time.Second}).Get("http://" + up)
		if err == nil {
			_ = resp.Body.Close() // that it came is enough
		}
		return err
	})
	f := drive(up, proc.Count(100, 1000), proc.Count(4, 50), proc.Count(2*time.Second, 30*time.Second))
	for _, to := range []bool{true, false} {
		for i, s := range all {
			if i < 3 { // the others are to have a quorum
				waitVoters(t, s)
			}
			if to {
				s.Upgrade(next)
			} else {
				s.Upgrade(proc.Binary(t))
			}
			f.more(t, proc.Count[int64](50, 10_000))
			begin := time.Now()
			s.Relieve(60 * time.Second)
			runs(t, s, to)
			t.Logf("host %d, next %t: took over after %s; %d requests, %d failed", i, to, time.Since(begin).Round(time.Millisecond), f.done.Load(), f.failed.Load())
		}
	}
	f.more(t, proc.Count[int64](50, 10_000))
	f.end(t)
	for i, s := range all {
		if s.Starts() != 1 {
			t.Errorf("host %d was started %d times by its supervisor", i, s.Starts())
		}
	}
}

// waitVoters waits until the three servers are well, as one who upgrades them would.
func waitVoters(t *testing.T, s *proc.Supervisor) {
	t.Helper()
	proc.Eventually(t, 60*time.Second, "the servers are healthy", func() error {
		h, err := s.Client.Operator().AutopilotServerHealth(nil)
		if err == nil && (!h.Healthy || len(h.Servers) != 3) {
			err = fmt.Errorf("healthy: %t, %d servers", h.Healthy, len(h.Servers))
		}
		return err
	})
}

const bash = "#!/usr/bin/env bash\n"

// script is a program that stands where the agent's should.
func script(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "weft")
	must(t, os.WriteFile(path, []byte(text), 0o755)) //nolint:gosec // a program
	return path
}

// TestP31Failing has programs take over that cannot: the one that runs goes on, or its
// own program is started again, and no connection is refused meanwhile.
func TestP31Failing(t *testing.T) {
	proc.Need(t, "bash")
	t.Parallel()
	s, up := supervised(t)
	held := through(t, up)
	stop, refused := make(chan struct{}), make(chan error, 1)
	go func() {
		for {
			select {
			case <-stop:
				refused <- nil
				return
			case <-time.After(10 * time.Millisecond):
			}
			c, err := net.DialTimeout("tcp", up, 5*time.Second)
			if err != nil {
				refused <- err
				return
			}
			_ = c.Close() // that it was taken is enough
		}
	}()
	for what, program := range map[string]string{
		"one that ends at once":           bash + "exit 3",
		"one that is none":                "\x7fELF",
		"one that says what is not asked": bash + `echo serving >&$WEFT_HANDOVER; sleep 60`,
	} {
		was, log := s.Main(), len(s.Log())
		s.Upgrade(script(t, program))
		s.Tell(syscall.SIGUSR2)
		proc.Eventually(t, 30*time.Second, what+": is noticed", func() error {
			if !strings.Contains(s.Log()[log:], "nothing was handed over") {
				return errors.New("not in the log")
			}
			return nil
		})
		if s.Main() != was || ping(held) != nil {
			t.Errorf("%s: the process is %d, was %d", what, s.Main(), was)
		}
	}
	s.Upgrade(script(t, bash+`echo configured >&$WEFT_HANDOVER; read -r word <&$WEFT_HANDOVER; exit 3`))
	old := s.Relieve(60 * time.Second)
	s.WaitServing(30 * time.Second)
	if err := ping(held); err != nil {
		t.Errorf("a connection held over a failed hand-over: %v", err)
	}
	_ = through(t, up).Close() // the old process may have taken it
	_ = held.Close()           // nothing holds that any more
	proc.Gone(t, old, 20*time.Second)
	close(stop)
	if err := <-refused; err != nil {
		t.Errorf("a connection was refused: %v", err)
	}
}
