package sidecar

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/weftmesh/weft/agent/local"
	"github.com/weftmesh/weft/catalog"
)

// TestRealProxies runs web and db behind real proxies: refused, allowed, cut off,
// and allowed again by an agent that restarts with no server and no authority.
func TestRealProxies(t *testing.T) {
	dir := t.TempDir()
	auth := newAuthority(t)
	echo := listenEcho(t)
	dbPort, webPort, upPort := freePort(t), freePort(t), freePort(t)
	db := sidecarService(func(s *catalog.Service) {
		s.ID, s.Service, s.Port, s.Address = "db-sidecar-proxy", "db-sidecar-proxy", dbPort, "127.0.0.1"
		s.Proxy.DestinationServiceName, s.Proxy.LocalServicePort = "db", echo
	})
	web := sidecarService(func(s *catalog.Service) {
		s.Port, s.Address = webPort, "127.0.0.1"
		s.Proxy.Upstreams = []catalog.Upstream{{DestinationName: "db", LocalBindPort: upPort}}
	})
	run := func(views *fakeViews) (*Manager, func()) {
		host := &catalog.Latest[*local.Host]{}
		host.Publish(&local.Host{Services: map[string]*catalog.Service{db.ID: db, web.ID: web}})
		m, err := New(Config{
			Host: host, Views: views.Watch, Datacenter: "dc1", DataDir: dir,
			Signer: NewSigner(auth), Logger: slog.New(slog.DiscardHandler),
		})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- m.Run(ctx) }()
		return m, func() {
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
	}

	var views fakeViews
	views.setRoots(auth.root.RootCert)
	views.setIntentions("web")
	views.setIntentions("db")
	views.set(&catalog.View{Query: catalog.Query{Kind: catalog.QueryConnect, Name: "db"}, Instances: []*catalog.Instance{
		{Node: &catalog.Node{Node: "n1", Address: "127.0.0.1"}, Service: db},
	}})
	m, stop := run(&views)
	until(t, "both proxies to be ready", func() error {
		for _, st := range m.Status() {
			if !st.Ready || st.Inbound == nil || !st.Inbound.Listening {
				return fmt.Errorf("%+v", st)
			}
		}
		if n := len(m.Status()); n != 2 {
			return fmt.Errorf("%d proxies", n)
		}
		return nil
	})
	if c, err := talk(upPort); err == nil {
		_ = c.Close()
		t.Fatal("a connection passed with no intention")
	}
	views.setIntentions("db", &catalog.Intention{SourceName: "web", DestinationName: "db", Action: catalog.ActionAllow, Precedence: 9})
	var live net.Conn
	until(t, "the intention to be enforced", func() (err error) {
		live, err = talk(upPort)
		return err
	})
	views.setIntentions("db")
	_ = live.SetReadDeadline(time.Now().Add(10 * time.Second))
	if _, err := live.Read(make([]byte, 1)); err == nil {
		t.Error("the live connection goes on after the intention went")
	} else if errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error("the live connection was not cut")
	}
	_ = live.Close()
	views.setIntentions("db", &catalog.Intention{SourceName: "web", DestinationName: "db", Action: catalog.ActionAllow, Precedence: 9})
	until(t, "the intention to be enforced again", func() error {
		c, err := talk(upPort)
		if err == nil {
			_ = c.Close()
		}
		return err
	})
	stop()

	auth.set(catalog.ErrUnavailable)
	_, stop = run(&fakeViews{}) // no server says anything
	defer stop()
	until(t, "the last policy to be enforced without servers", func() error {
		c, err := talk(upPort)
		if err == nil {
			_ = c.Close()
		}
		return err
	})
}

// talk opens a connection through the upstream's listener and has a line sent back.
func talk(port int) (net.Conn, error) {
	c, err := net.Dial("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
	if err != nil {
		return nil, err
	}
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err = io.WriteString(c, "hello\n"); err == nil {
		_, err = bufio.NewReader(c).ReadString('\n')
	}
	if err != nil {
		_ = c.Close()
		return nil, err
	}
	return c, nil
}

func listenEcho(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer func() { _ = c.Close() }()
				_, _ = io.Copy(c, c)
			}()
		}
	}()
	return l.Addr().(*net.TCPAddr).Port
}

func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	return l.Addr().(*net.TCPAddr).Port
}

func until(t *testing.T, what string, try func() error) {
	t.Helper()
	end := time.Now().Add(20 * time.Second)
	for {
		err := try()
		if err == nil {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("waited for %s: %v", what, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}
