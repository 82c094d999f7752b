package agent_test

import (
	"bufio"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/cmd/meshtest"
	"github.com/weftmesh/weft/connect"
	"github.com/weftmesh/weft/connect/identity"
)

// activeRoot is the key ID and the type of key of the root that signs now.
func activeRoot(m *meshtest.Mesh) (keyID, typ string) {
	var list struct {
		ActiveRootID string
		Roots        []struct{ ID, SigningKeyID, PrivateKeyType string }
	}
	m.Do("GET", "/v1/connect/ca/roots", nil, &list)
	for _, r := range list.Roots {
		if r.ID == list.ActiveRootID {
			return r.SigningKeyID, r.PrivateKeyType
		}
	}
	return "", ""
}

// issuerOf is the key ID of the root that signed the leaf shown at addr.
func issuerOf(addr string) (string, error) {
	raw, err := net.Dial("tcp", addr)
	if err != nil {
		return "", err
	}
	defer func() { _ = raw.Close() }()
	var shown string
	c := tls.Client(raw, &tls.Config{
		InsecureSkipVerify: true, //nolint:gosec // only looks at what is shown
		VerifyConnection: func(cs tls.ConnectionState) error {
			shown = identity.HexColon(cs.PeerCertificates[0].AuthorityKeyId)
			return nil
		},
	})
	err = c.Handshake() // may fail after that, as we show no certificate
	if shown != "" {
		err = nil
	}
	return shown, err
}

// TestP15RotationUnderLoad rotates the root from EC to RSA and back while
// connections are made: none fails, live ones go on, and every proxy has a leaf of
// the new root soon.
func TestP15RotationUnderLoad(t *testing.T) {
	m := meshtest.Start(t, meshtest.Options{})
	up := pair(t, m)
	m.Intend("web", "db", catalog.ActionAllow)
	live := eventuallyPasses(t, m, up, "the intention to be enforced")
	defer func() { _ = live.Close() }()
	reader := bufio.NewReader(live)

	var made, failed atomic.Int64
	stop := make(chan struct{})
	var load sync.WaitGroup
	for range 4 {
		load.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				c, err := call(up, "db")
				if err != nil {
					failed.Add(1)
					t.Logf("a new connection failed: %v", err)
					continue
				}
				made.Add(1)
				_ = c.Close()
			}
		})
	}
	for _, typ := range []string{"rsa", "ec", "rsa", "ec"} {
		before, _ := activeRoot(m)
		bits := map[string]int{"rsa": 2048, "ec": 256}[typ]
		m.Do("PUT", "/v1/connect/ca/configuration", map[string]any{
			"Provider": "consul", "Config": map[string]any{"PrivateKeyType": typ, "PrivateKeyBits": bits},
		}, nil)
		now, is := activeRoot(m)
		if now == before || is != typ {
			t.Fatalf("asked for a root of type %s, the active one is %s (%s before), of type %s", typ, now, before, is)
		}
		m.Eventually("every proxy to have a leaf of the new root", func() error {
			var proxies []connect.Status
			m.Do("GET", "/v1/agent/connect/proxies", nil, &proxies)
			if len(proxies) != 2 {
				return fmt.Errorf("%d proxies", len(proxies))
			}
			for _, p := range proxies {
				if p.Inbound == nil {
					return errors.New(p.Proxy + " does not listen")
				}
				if by, err := issuerOf(p.Inbound.Addr); err != nil || by != now {
					return fmt.Errorf("%s shows a leaf of %s, want %s: %w", p.Proxy, by, now, err)
				}
			}
			return nil
		})
		at := made.Load()
		m.Eventually("connections with the new leaves", func() error {
			if n := made.Load() - at; n < 20 {
				return fmt.Errorf("%d", n)
			}
			return nil
		})
		if _, err := io.WriteString(live, "still\n"); err != nil {
			t.Fatal(err)
		}
		if line, err := reader.ReadString('\n'); err != nil || line != "still\n" {
			t.Fatalf("the live connection gave %q, %v", line, err)
		}
	}
	close(stop)
	load.Wait()
	if n := failed.Load(); n > 0 {
		t.Errorf("%d of %d new connections failed", n, n+made.Load())
	}
	t.Logf("%d connections made", made.Load())
}
