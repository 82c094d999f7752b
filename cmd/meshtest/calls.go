package meshtest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"testing"
	"time"

	"github.com/weftmesh/weft/catalog"
)

// Try makes a request of the API. body may be nil, a string or bytes that are sent
// as they are, or anything else, which is sent as JSON.
func (m *Mesh) Try(method, path string, body any) (status int, answer []byte, err error) {
	var r io.Reader
	switch b := body.(type) {
	case nil:
	case string:
		r = bytes.NewBufferString(b)
	case []byte:
		r = bytes.NewReader(b)
	default:
		j, err := json.Marshal(b)
		if err != nil {
			return 0, nil, err
		}
		r = bytes.NewReader(j)
	}
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, m.HTTP+path, r)
	if err != nil {
		return 0, nil, err
	}
	req.Close = true // no idle connection outlives the test
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer func() { _ = res.Body.Close() }()
	answer, err = io.ReadAll(res.Body)
	return res.StatusCode, answer, err
}

// Do is Try for a request that must answer 200. The answer is decoded into out,
// unless that is nil.
func (m *Mesh) Do(method, path string, body, out any) {
	m.t.Helper()
	status, answer, err := m.Try(method, path, body)
	if err := expect(status, answer, err); err != nil {
		m.t.Fatalf("%s %s: %v", method, path, err)
	}
	if out == nil {
		return
	}
	if err := json.Unmarshal(answer, out); err != nil {
		m.t.Fatalf("%s %s: %v in %s", method, path, err, answer)
	}
}

func expect(status int, answer []byte, err error) error {
	if err == nil && status != http.StatusOK {
		err = fmt.Errorf("status %d: %s", status, bytes.TrimSpace(answer))
	}
	return err
}

// Register registers a service (any JSON-able shape of the body).
func (m *Mesh) Register(service any) {
	m.t.Helper()
	m.Do("PUT", "/v1/agent/service/register", service, nil)
}

// Deregister removes a service by its ID.
func (m *Mesh) Deregister(id string) {
	m.t.Helper()
	m.Do("PUT", "/v1/agent/service/deregister/"+url.PathEscape(id), nil, nil)
}

// Intend sets the intention of a pair.
func (m *Mesh) Intend(source, destination string, action catalog.Action) {
	m.t.Helper()
	m.Do("PUT", exact(source, destination), map[string]any{"SourceType": "consul", "Action": action}, nil)
}

// Unintend removes the intention of a pair.
func (m *Mesh) Unintend(source, destination string) {
	m.t.Helper()
	m.Do("DELETE", exact(source, destination), nil, nil)
}

func exact(source, destination string) string {
	return "/v1/connect/intentions/exact?source=" + url.QueryEscape(source) + "&destination=" + url.QueryEscape(destination)
}

// Eventually calls try until it returns nil, and fails the test with its last
// error when that takes longer than Patience.
func (m *Mesh) Eventually(what string, try func() error) {
	m.t.Helper()
	Eventually(m.t, what, try)
}

// Eventually is Mesh.Eventually without a mesh.
func Eventually(t testing.TB, what string, try func() error) {
	t.Helper()
	end := time.Now().Add(Patience)
	for pause := 5 * time.Millisecond; ; pause = min(2*pause, 200*time.Millisecond) {
		err := try()
		if err == nil {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("waited %s for %s: %v", Patience, what, err)
		}
		time.Sleep(pause)
	}
}

// Echo serves a TCP service that greets with its name and then sends back every
// line, until the test ends. It returns its port.
func Echo(t testing.TB, name string) int {
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
				if _, err := io.WriteString(c, name+"\n"); err == nil {
					_, _ = io.Copy(c, c) // ends with either end
				}
			}()
		}
	}()
	return l.Addr().(*net.TCPAddr).Port
}

// FreePort is a TCP port of loopback that nobody uses now.
func FreePort(t testing.TB) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	return l.Addr().(*net.TCPAddr).Port
}

// freeRange finds n ports in a row, below those that the kernel hands out, so that
// no connection of another test takes one between its choice and its use, and above
// those of the conformance tests, which run beside these.
func freeRange(t testing.TB, n int) int {
	t.Helper()
	for range 100 {
		base := 21500 + rand.N(11000-n)
		if rangeIsFree(base, n) {
			return base
		}
	}
	t.Fatalf("no %d free ports in a row", n)
	return 0
}

func rangeIsFree(base, n int) bool {
	for p := base; p < base+n; p++ {
		l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(p)))
		if err != nil {
			return false
		}
		if err := l.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			return false
		}
	}
	return true
}
