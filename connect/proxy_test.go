package connect

import (
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/connect/identity"
)

func TestAllowedReaches(t *testing.T) {
	p := newPair(t, echo)
	c := dialTCP(t, p.addr)
	must(t, roundTrip(c, "hello through two proxies"))
	// The application may answer before the proxy has counted what it gave it.
	eventually(t, "bytes counted", func() bool { st := p.db.Status(); return len(st.Peers) == 1 && st.Peers[0].BytesIn == 25 })
	st := p.db.Status()
	if len(st.Peers) != 1 || st.Peers[0].Source != "web" || st.Peers[0].Open != 1 || st.Peers[0].BytesIn != 25 {
		t.Errorf("peers of db: %+v", st.Peers)
	}
	if cs := p.db.Connections(0); len(cs) != 1 || !strings.Contains(cs[0].Rule, "web → *") {
		t.Errorf("connections of db: %+v", cs)
	}
	if _, err := json.Marshal(st); err != nil {
		t.Error(err)
	}
	must(t, c.CloseWrite())
	if b, err := io.ReadAll(c); err != nil || len(b) != 0 {
		t.Errorf("at the end: %q, %v", b, err)
	}
	for _, log := range []*logBook{p.db.log, p.web.log} {
		log.find(t, "connection ended", "source=web", "destination=db", "reason=ok", "bytes_in=25", "bytes_out=25", "dur=",
			"source_id="+idOf("web"), "destination_id="+idOf("db"))
	}
	p.web.log.find(t, "connection ended", "source_instance=web-sidecar-proxy", " instance=db@")
	p.db.log.find(t, "connection ended", `rule="web → * (precedence 6)"`, " instance=db-sidecar-proxy")
	eventually(t, "tables empty", func() bool { return len(p.db.Connections(0))+len(p.web.Connections(0)) == 0 })
}

func idOf(service string) string {
	return identity.ServiceID{TrustDomain: testDomain, Datacenter: testDC, Service: service}.String()
}

func TestDeniedIsRefusedWithTheRemedy(t *testing.T) {
	for _, tc := range []struct {
		name       string
		intentions catalog.Intentions
		rule, hint string
	}{
		{"default", nil, "rule=default", `hint="weft intention create web db"`},
		{
			"exact",
			catalog.Intentions{{SourceName: "web", DestinationName: "db", Action: catalog.ActionDeny}},
			`rule="web → db (precedence 9)"`, `hint="weft intention create -replace -allow web db"`,
		},
		{
			"wildcard",
			catalog.Intentions{{SourceName: "*", DestinationName: "db", Action: catalog.ActionDeny}},
			`rule="* → db (precedence 8)"`, `hint="weft intention create -allow web db"`,
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := newPair(t, func(*net.TCPConn) { t.Error("the application saw a denied connection") })
			p.db.update(func(s *Snapshot) { s.Intentions = tc.intentions })
			if err := tryOnce(p.addr); !isReset(err) {
				t.Errorf("denied: %v, want a reset", err)
			}
			p.db.log.find(t, "connection refused", "source=web", "destination=db", "reason=denied", tc.rule, tc.hint,
				"source_id="+idOf("web"), "destination_id="+idOf("db"), " instance=db-sidecar-proxy")
			if e := p.db.Status().Errors; len(e) != 1 || e[0].Reason != ReasonDenied {
				t.Errorf("errors in status: %+v", e)
			}
		})
	}
}

func TestDenyEndsLiveConnectionsAndOnlyThose(t *testing.T) {
	p := newPair(t, echo)
	p.db.update(func(s *Snapshot) { s.Intentions = allow("web", "api") })
	api := startSidecar(t, p.ca, "api", func(s *Snapshot) { s.Upstreams = []Upstream{upstreamOf("db", p.db.inbound())} })
	web, other := dialTCP(t, p.addr), dialTCP(t, api.upstream("db"))
	must(t, roundTrip(web, "a"))
	must(t, roundTrip(other, "b"))

	p.db.update(func(s *Snapshot) { s.Intentions = allow("api") })
	if _, err := web.Read(make([]byte, 1)); !isReset(err) {
		t.Errorf("read on the denied connection: %v, want a reset", err)
	}
	must(t, roundTrip(other, "still there"))
	p.db.log.find(t, "source=web", "reason=policy_changed", "rule=default", `hint="weft intention create web db"`)
	if strings.Contains(p.db.log.String(), "source=api") {
		t.Errorf("a line about api:\n%s", p.db.log)
	}
}

func TestHalfCloseBothWays(t *testing.T) {
	// The application answers only after the whole request, then ends.
	p := newPair(t, func(c *net.TCPConn) {
		b, err := io.ReadAll(c)
		if err == nil {
			_, err = c.Write([]byte(strings.ToUpper(string(b))))
		}
		if err != nil {
			t.Error(err)
		}
	})
	c := dialTCP(t, p.addr)
	if _, err := io.WriteString(c, "the whole request"); err != nil {
		t.Fatal(err)
	}
	must(t, c.CloseWrite())
	b, err := io.ReadAll(c)
	if err != nil || string(b) != "THE WHOLE REQUEST" {
		t.Errorf("%q, %v", b, err)
	}
}

func TestServerSpeaksFirst(t *testing.T) {
	gone := make(chan error, 1)
	p := newPair(t, func(c *net.TCPConn) {
		_, _ = io.WriteString(c, "220 ready\n")
		_ = c.CloseWrite() // the server is done, the client is not
		b, err := io.ReadAll(c)
		if string(b) != "bye" {
			err = errors.Join(err, errors.New("got "+string(b)))
		}
		gone <- err
	})
	c := dialTCP(t, p.addr)
	b, err := io.ReadAll(c)
	if err != nil || string(b) != "220 ready\n" {
		t.Fatalf("%q, %v", b, err)
	}
	_, err = io.WriteString(c, "bye")
	must(t, err)
	must(t, c.CloseWrite())
	must(t, <-gone)
}

func TestResetPassesAsReset(t *testing.T) {
	t.Run("of the application", func(t *testing.T) {
		p := newPair(t, func(c *net.TCPConn) {
			_, _ = io.WriteString(c, "partial")
			_, _ = io.ReadFull(c, make([]byte, 1))
			_ = c.SetLinger(0)
		})
		c := dialTCP(t, p.addr)
		_, err := io.ReadFull(c, make([]byte, 7))
		must(t, err)
		_, err = c.Write([]byte("x"))
		must(t, err)
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("client sees %v, want a reset", err)
		}
		p.db.log.find(t, "reason=server_closed", "err=")
	})
	t.Run("of the client", func(t *testing.T) {
		seen := make(chan error, 1)
		p := newPair(t, func(c *net.TCPConn) {
			_, err := io.Copy(c, struct{ io.Reader }{c})
			seen <- err
		})
		c := dialTCP(t, p.addr)
		must(t, roundTrip(c, "x"))
		must(t, c.SetLinger(0))
		c.Close()
		if err := <-seen; !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("application sees %v, want a reset", err)
		}
		p.db.log.find(t, "reason=client_closed")
		p.web.log.find(t, "reason=client_closed")
	})
}

func TestAnswerSurvivesAnUnreadRequest(t *testing.T) {
	// The application answers and leaves while the client still sends.
	p := newPair(t, func(c *net.TCPConn) {
		_, _ = io.ReadFull(c, make([]byte, 10))
		_, _ = io.WriteString(c, strings.Repeat("answer", 1000))
	})
	c := dialTCP(t, p.addr)
	go func() { _, _ = c.Write(make([]byte, 1<<20)) }()
	b := make([]byte, 6000)
	if _, err := io.ReadFull(c, b); err != nil {
		t.Error(err)
	}
}

func TestRetryOnAnotherInstance(t *testing.T) {
	p := newPair(t, echo)
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	closed.Close()
	impostor := startSidecar(t, p.ca, "impostor", func(s *Snapshot) { s.Inbound, s.Local = "127.0.0.1:0", "127.0.0.1:1" })
	p.web.update(func(s *Snapshot) {
		s.Upstreams = []Upstream{upstreamOf("db", closed.Addr().String(), impostor.inbound(), p.db.inbound())}
	})
	addr := p.web.upstream("db")
	for range 10 {
		must(t, roundTrip(dialTCP(t, addr), "x"))
	}
	// Alone, the impostor is refused, and the log says who it is.
	p.web.update(func(s *Snapshot) { s.Upstreams = []Upstream{upstreamOf("db", impostor.inbound())} })
	if err := tryOnce(p.web.upstream("db")); err == nil {
		t.Error("an impostor was accepted")
	}
	p.web.log.find(t, "connection refused", "reason=dial_failed", "/svc/impostor", "want spiffe://", "tried 1 of 1")
	st := p.web.Status().Upstreams[0]
	if in := st.Instances[0]; in.SkippedUntil == nil || in.Error == "" || in.Active != 0 {
		t.Errorf("instance after its failure: %+v", in)
	}
}

func TestNoInstance(t *testing.T) {
	p := newPair(t, echo)
	p.web.update(func(s *Snapshot) { s.Upstreams = []Upstream{upstreamOf("db")} })
	if err := tryOnce(p.web.upstream("db")); !isReset(err) {
		t.Errorf("got %v, want a reset", err)
	}
	p.web.log.find(t, "reason=no_instance", "db has no healthy instance")
}

func TestApplicationDown(t *testing.T) {
	p := newPair(t, echo)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	ln.Close()
	p.db.update(func(s *Snapshot) { s.Local = ln.Addr().String() })
	if err := tryOnce(p.addr); !isReset(err) {
		t.Errorf("got %v, want a reset", err)
	}
	p.db.log.find(t, "reason=dial_failed", "the application does not answer")
	p.web.log.find(t, "reason=dial_failed", "dial_failed")
}

func TestDrain(t *testing.T) {
	t.Run("what finishes in time", func(t *testing.T) {
		p := newPair(t, echo)
		p.db.update(func(s *Snapshot) { s.Limits.DrainTimeout = 10 * time.Second })
		c := dialTCP(t, p.addr)
		must(t, roundTrip(c, "x"))
		p.db.end()
		must(t, roundTrip(c, "still served"))
		must(t, c.CloseWrite())
		if _, err := io.ReadAll(c); err != nil {
			t.Error(err)
		}
		p.db.log.find(t, "reason=ok")
		<-p.db.done
	})
	t.Run("policy goes on", func(t *testing.T) {
		ca := newTestCA(t, testDomain)
		db := startSidecar(t, ca, "db", func(s *Snapshot) {
			s.Inbound, s.Local, s.Intentions = "127.0.0.1:0", serve(t, echo), allow("web", "api")
			s.Limits.DrainTimeout = time.Minute
		})
		var conns []*net.TCPConn
		for _, name := range []string{"web", "api"} {
			src := startSidecar(t, ca, name, func(s *Snapshot) { s.Upstreams = []Upstream{upstreamOf("db", db.inbound())} })
			c := dialTCP(t, src.upstream("db"))
			must(t, roundTrip(c, "x"))
			conns = append(conns, c)
		}
		db.end()
		db.update(func(s *Snapshot) { s.Intentions = allow("api"); s.Inbound = "127.0.0.1:0" })
		if _, err := conns[0].Read(make([]byte, 1)); !isReset(err) {
			t.Errorf("got %v of a connection that is forbidden during the drain, want a reset", err)
		}
		db.log.find(t, "reason=policy_changed", "source=web")
		must(t, roundTrip(conns[1], "still served"))
		if in := db.Status().Inbound; in != nil {
			t.Errorf("a snapshot during the drain opened a listener: %+v", in)
		}
		must(t, conns[1].CloseWrite())
		if _, err := io.ReadAll(conns[1]); err != nil {
			t.Error(err)
		}
		<-db.done
	})
	t.Run("rests and upstreams go on", func(t *testing.T) {
		for name, end := range map[string]func(p *pair){
			"a rest that comes": func(p *pair) {
				p.db.end()
				p.db.update(func(s *Snapshot) { s.Rest = &Rest{Why: "maintenance", Grace: time.Millisecond} })
			},
			"a rest under way": func(p *pair) {
				p.db.update(func(s *Snapshot) { s.Rest = &Rest{Why: "maintenance", Grace: 500 * time.Millisecond} })
				p.db.end()
			},
			"an upstream that goes": func(p *pair) {
				p.web.end()
				p.web.update(func(s *Snapshot) { s.Upstreams = nil })
			},
			"an upstream that has gone": func(p *pair) {
				p.web.update(func(s *Snapshot) { s.Limits.DrainTimeout, s.Upstreams = 500*time.Millisecond, nil })
				p.web.end()
			},
		} {
			p := newPair(t, echo)
			for _, s := range []*sidecar{p.web, p.db} {
				s.update(func(s *Snapshot) { s.Limits.EndTimeout = time.Minute })
			}
			if p.web.grace() != time.Minute || p.db.grace() != time.Minute {
				t.Fatal("the proxies would not carry it for a minute")
			}
			c := dialTCP(t, p.addr)
			must(t, roundTrip(c, "x"))
			end(p)
			if _, err := c.Read(make([]byte, 1)); !isReset(err) {
				t.Errorf("%s: got %v, want a reset", name, err)
			}
		}
	})
	t.Run("what stands at the last moment", func(t *testing.T) {
		// Dials that succeed while the proxy ends come into the table late: they must
		// not hold the end up.
		for range times(5, 200) {
			p := newPair(t, echo)
			p.web.update(func(s *Snapshot) { s.Limits.DrainTimeout = time.Millisecond })
			var wg sync.WaitGroup
			for range 8 {
				wg.Go(func() {
					for c, err := net.Dial("tcp", p.addr); err == nil; c, err = net.Dial("tcp", p.addr) {
						_ = roundTrip(c, "x") // and then stays open
						defer c.Close()
					}
				})
			}
			p.web.stop()
			select {
			case <-p.web.done:
			case <-time.After(20 * time.Second):
				t.Fatal("the proxy does not end")
			}
			wg.Wait()
		}
	})
	t.Run("what does not", func(t *testing.T) {
		p := newPair(t, echo)
		c := dialTCP(t, p.addr)
		must(t, roundTrip(c, "x"))
		p.db.close()
		if _, err := c.Read(make([]byte, 1)); !isReset(err) {
			t.Errorf("got %v, want a reset", err)
		}
		p.db.log.find(t, "reason=draining")
	})
	t.Run("an upstream that goes", func(t *testing.T) {
		p := newPair(t, echo)
		c := dialTCP(t, p.addr)
		must(t, roundTrip(c, "x"))
		p.web.update(func(s *Snapshot) { s.Upstreams = nil })
		if _, err := net.Dial("tcp", p.addr); err == nil {
			t.Error("the listener is still there")
		}
		if _, err := c.Read(make([]byte, 1)); !isReset(err) {
			t.Errorf("got %v, want a reset", err)
		}
		p.web.log.find(t, "reason=draining", "upstream=db")
	})
}

func TestPortInUse(t *testing.T) {
	p := newPair(t, echo)
	squatter, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	taken := squatter.Addr().String()
	c := dialTCP(t, p.addr)
	must(t, roundTrip(c, "before"))
	p.web.update(func(s *Snapshot) {
		second := upstreamOf("cache", p.db.inbound())
		second.Listen = taken
		s.Upstreams = append(s.Upstreams, second)
	})
	p.web.log.find(t, "cannot listen", "upstream cache", taken, "is in use")
	for _, u := range p.web.Status().Upstreams {
		if u.Name == "cache" && !strings.Contains(u.Listener.Error, "is in use") {
			t.Errorf("status of the listener: %+v", u.Listener)
		}
	}
	must(t, roundTrip(c, "the others are not disturbed"))
	squatter.Close()
	if got := p.web.upstream("cache"); got != taken {
		t.Errorf("listens at %s, want %s", got, taken)
	}
}

func TestListenersMoveWithTheSnapshot(t *testing.T) {
	p := newPair(t, echo)
	c := dialTCP(t, p.addr)
	must(t, roundTrip(c, "x"))
	// The address goes to another upstream while the listener stays.
	fixed := p.addr
	p.web.update(func(s *Snapshot) { s.Upstreams[0].Listen = fixed })
	must(t, roundTrip(dialTCP(t, p.web.upstream("db")), "x"))
	p.web.update(func(s *Snapshot) {
		db, nobody := s.Upstreams[0], upstreamOf("nobody")
		db.Listen, nobody.Listen = "127.0.0.1:0", fixed
		s.Upstreams = []Upstream{db, nobody}
	})
	must(t, roundTrip(dialTCP(t, p.web.upstream("db")), "x"))
	if err := tryOnce(fixed); !isReset(err) {
		t.Errorf("upstream without instances: %v, want a reset", err)
	}
	must(t, roundTrip(c, "the old connection lives"))
	// Two upstreams at one address: the first has it, the second says why not.
	p.web.update(func(s *Snapshot) {
		a, b := upstreamOf("db", p.db.inbound()), upstreamOf("cache", p.db.inbound())
		a.Listen, b.Listen = fixed, fixed
		s.Upstreams = []Upstream{a, b}
	})
	must(t, roundTrip(dialTCP(t, fixed), "x"))
	for _, u := range p.web.Status().Upstreams {
		if u.Name == "cache" && !strings.Contains(u.Listener.Error, "address of upstream db already") {
			t.Errorf("status of the clash: %+v", u.Listener)
		}
	}
}

func TestUnixSockets(t *testing.T) {
	dir, err := os.MkdirTemp("", "weft") // t.TempDir may be too long for a socket
	must(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	p := newPair(t, echo)
	path := filepath.Join(dir, "db.sock")
	stale, err := net.Listen("unix", path)
	must(t, err)
	stale.(*net.UnixListener).SetUnlinkOnClose(false)
	stale.Close()

	appPath := filepath.Join(dir, "app.sock")
	appLn, err := net.Listen("unix", appPath)
	must(t, err)
	t.Cleanup(func() { appLn.Close() })
	go func() {
		for {
			c, err := appLn.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				_, _ = io.Copy(c, struct{ io.Reader }{c})
			}()
		}
	}()
	p.db.update(func(s *Snapshot) { s.Local = appPath })
	p.web.update(func(s *Snapshot) { s.Upstreams[0].Listen, s.Upstreams[0].SocketMode = path, "0660" })
	if got := p.web.upstream("db"); got != path {
		t.Fatalf("listens at %s", got)
	}
	st, err := os.Stat(path)
	must(t, err)
	if st.Mode().Perm() != 0o660 {
		t.Errorf("mode %o, want 660", st.Mode().Perm())
	}
	c, err := net.Dial("unix", path)
	must(t, err)
	defer c.Close()
	must(t, roundTrip(c, "over two sockets"))
	must(t, c.(*net.UnixConn).CloseWrite())
	if _, err := io.ReadAll(c); err != nil {
		t.Error(err)
	}
	// A file that is no socket is not touched.
	file := filepath.Join(dir, "precious")
	must(t, os.WriteFile(file, []byte("data"), 0o600))
	p.web.update(func(s *Snapshot) { s.Upstreams[0].Listen = file })
	p.web.log.find(t, "cannot listen", "is no socket")
	if _, err := os.Stat(path); err == nil {
		t.Error("the old socket file is still there")
	}
	if b, err := os.ReadFile(file); err != nil || string(b) != "data" {
		t.Errorf("%q, %v", b, err)
	}
}

// TestServicesWithAnAtSign: a service may be called db@dc2, and is not the db of dc2.
func TestServicesWithAnAtSign(t *testing.T) {
	s := &Snapshot{Datacenter: "dc1", Upstreams: []Upstream{
		{Name: "db"}, {Name: "db", Datacenter: "dc2"}, {Name: "db@dc2"}, {Name: "db@dc2", Datacenter: "dc2"}, {Name: "db", Datacenter: "dc1"},
	}}
	var keys []string
	for i := range s.Upstreams {
		keys = append(keys, s.upstreamKey(&s.Upstreams[i]))
	}
	if want := []string{"db", "db@dc2", "db@dc2@dc1", "db@dc2@dc2", "db"}; !slices.Equal(keys, want) {
		t.Errorf("keys %q, want %q", keys, want)
	}
}

// TestHungUpstreamHoldsUpNoOther: an upstream whose host takes connections and
// answers none does not keep the service from its other upstreams.
func TestHungUpstreamHoldsUpNoOther(t *testing.T) {
	p := newPair(t, echo)
	hung := serve(t, func(c *net.TCPConn) { _, _ = io.Copy(io.Discard, c) })
	p.web.update(func(s *Snapshot) {
		u := upstreamOf("hung", hung)
		u.ConnectTimeout = 15 * time.Second
		s.Upstreams = append(s.Upstreams, u)
	})
	at := p.web.upstream("hung")
	for range maxOutboundHandshakes + 8 {
		dialTCP(t, at)
	}
	eventually(t, "all on their way", func() bool {
		p.web.live.mu.Lock()
		defer p.web.live.mu.Unlock()
		return p.web.live.n >= maxOutboundHandshakes+8
	})
	start := time.Now()
	must(t, tryOnce(p.web.upstream("db")))
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("a connection to a healthy upstream took %s", took)
	}
	p.web.close() // cuts what hangs
}

func TestHintsAreSafeToPaste(t *testing.T) {
	for name, want := range map[string]string{
		"web-2.a_b@x": "web-2.a_b@x", "": "''", "$(reboot)": "'$(reboot)'", "it's": `'it'\''s'`, "a b": "'a b'", "-replace": "'-replace'", "*": "'*'",
	} {
		if got := shellWord(name); got != want {
			t.Errorf("%q is written %s, want %s", name, got, want)
		}
	}
}
