package watches

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/weftmesh/weft/catalog"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const patience = 30 * time.Second

// fakeKV answers for one key as the API does, and waits as it does.
type fakeKV struct {
	mu      sync.Mutex
	index   uint64
	value   string
	changed chan struct{}
	tokens  map[string]bool
}

func newFakeKV(value string) *fakeKV {
	return &fakeKV{index: 1, value: value, changed: make(chan struct{}), tokens: map[string]bool{}}
}

func (f *fakeKV) set(value string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.index++
	f.value = value
	close(f.changed)
	f.changed = make(chan struct{})
}

func (f *fakeKV) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	f.tokens[r.Header.Get("X-Consul-Token")] = true
	for r.URL.Query().Get("index") == fmt.Sprint(f.index) {
		changed := f.changed
		f.mu.Unlock()
		select {
		case <-changed:
		case <-r.Context().Done():
			return
		}
		f.mu.Lock()
	}
	defer f.mu.Unlock()
	w.Header().Set("X-Consul-Index", fmt.Sprint(f.index))
	_ = json.NewEncoder(w).Encode([]map[string]any{{"Key": "k", "Value": []byte(f.value)}})
}

func parse(t *testing.T, text string) Definition {
	t.Helper()
	var m map[string]any
	if err := json.Unmarshal([]byte(text), &m); err != nil {
		t.Fatal(err)
	}
	d, err := Parse(m)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func run(t *testing.T, api http.Handler, list ...Definition) *Runner {
	t.Helper()
	r, err := New(Config{API: api, Watches: list})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return r
}

// receiver collects what HTTP handlers are sent.
func receiver(t *testing.T, status int) (url string, got chan string) {
	t.Helper()
	got = make(chan string, 16)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		got <- strings.Join([]string{r.Method, r.Header.Get("X-Consul-Index"), r.Header.Get("X-Own"), string(body)}, " ")
		w.WriteHeader(status)
	}))
	t.Cleanup(srv.Close)
	return srv.URL, got
}

func next(t *testing.T, got <-chan string) string {
	t.Helper()
	select {
	case s := <-got:
		return s
	case <-time.After(patience):
		t.Fatal("no handler ran")
		return ""
	}
}

func TestHTTPHandler(t *testing.T) {
	url, got := receiver(t, http.StatusOK)
	kv := newFakeKV("one")
	run(t, kv, parse(t, `{"type": "key", "key": "k", "token": "secret", "handler_type": "http",
		"http_handler_config": {"path": "`+url+`", "method": "PUT", "timeout": "5s", "header": {"X-Own": ["mine"]}}}`))
	if s := next(t, got); !strings.HasPrefix(s, `PUT 1 mine {"Key":"k"`) || !strings.Contains(s, `"b25l"`) {
		t.Errorf("first: %s", s)
	}
	kv.set("two")
	if s := next(t, got); !strings.HasPrefix(s, "PUT 2 mine ") || !strings.Contains(s, `"dHdv"`) {
		t.Errorf("second: %s", s)
	}
	kv.mu.Lock()
	defer kv.mu.Unlock()
	if len(kv.tokens) != 1 || !kv.tokens["secret"] {
		t.Errorf("tokens: %v", kv.tokens)
	}
}

func TestScriptHandler(t *testing.T) {
	out := filepath.Join(t.TempDir(), "out")
	kv := newFakeKV("one")
	run(t, kv, parse(t, `{"type": "key", "key": "k", "args": ["/bin/sh", "-c", "{ echo $CONSUL_INDEX; cat; } > `+out+`.new; mv `+out+`.new `+out+`"]}`))
	want := func(prefix string) {
		t.Helper()
		deadline := time.Now().Add(patience)
		for {
			b, _ := os.ReadFile(out)
			if strings.HasPrefix(string(b), prefix) {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("got %q, want %q…", b, prefix)
			}
			time.Sleep(5 * time.Millisecond) // a file tells nobody
		}
	}
	want("1\n{\"Key\":\"k\"")
	kv.set("two")
	want("2\n{\"Key\":\"k\"")
}

// A reload stops what is gone, starts what is new, and leaves the rest alone.
func TestSet(t *testing.T) {
	url, got := receiver(t, http.StatusOK)
	other, gotOther := receiver(t, http.StatusInternalServerError)
	kv := newFakeKV("one")
	def := func(url string) Definition {
		return parse(t, `{"type": "key", "key": "k", "handler_type": "http", "http_handler_config": {"path": "`+url+`"}}`)
	}
	r := run(t, kv, def(url))
	next(t, got)
	r.Set([]Definition{def(url), def(other)})
	next(t, gotOther) // its failure is logged and the watch goes on
	kv.set("two")
	next(t, gotOther)
	if s := next(t, got); !strings.HasPrefix(s, "POST 2 ") {
		t.Errorf("a watch that stayed began anew: %s", s)
	}
	r.Set([]Definition{def(other)})
	kv.set("three")
	next(t, gotOther)
	r.Set(nil)
}

// A handler that hangs ends with the agent.
func TestHangingHandlerEnds(t *testing.T) {
	kv := newFakeKV("one")
	mark := filepath.Join(t.TempDir(), "mark")
	run(t, kv, parse(t, `{"type": "key", "key": "k", "handler": "touch `+mark+`; sleep 600"}`))
	for deadline := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) { // a file tells nobody
		if _, err := os.Stat(mark); err == nil {
			return // the clean-up waits for the end
		}
		if time.Now().After(deadline) {
			t.Fatal("the handler did not run")
		}
	}
}

func TestParseRefuses(t *testing.T) {
	for text, words := range map[string]string{
		`{}`:                              "type must be specified",
		`{"type": "moon", "args": ["a"]}`: "Unsupported watch type",
		`{"type": "key", "args": ["a"]}`:  "key",
		`{"type": "nodes"}`:               "one handler",
		`{"type": "nodes", "args": ["a"], "handler": "b"}`:      "one handler",
		`{"type": "nodes", "args": []}`:                         "name a command",
		`{"type": "nodes", "args": [1]}`:                        "list of strings",
		`{"type": "nodes", "args": "a"}`:                        "name a command",
		`{"type": "nodes", "handler": 1}`:                       "must be a command",
		`{"type": "nodes", "args": ["a"], "moon": 1}`:           "moon",
		`{"type": "nodes", "args": ["a"], "handler_type": "x"}`: "neither script nor http",
		`{"type": "nodes", "handler_type": "http"}`:             "http_handler_config",
		`{"type": "nodes", "handler_type": "http", "args": ["a"], "http_handler_config": {"path": "http://a"}}`:        "one handler",
		`{"type": "nodes", "handler_type": "http", "http_handler_config": {"path": "file:///etc/passwd"}}`:             "URL",
		`{"type": "nodes", "handler_type": "http", "http_handler_config": {"path": "http://a", "timeout": "1000h"}}`:   "timeout",
		`{"type": "nodes", "handler_type": "http", "http_handler_config": {"path": "http://a", "method": "GET IT"}}`:   "method",
		`{"type": "nodes", "handler_type": "http", "http_handler_config": {"path": "http://a", "timeout": "a while"}}`: "http_handler_config",
	} {
		var m map[string]any
		if err := json.Unmarshal([]byte(text), &m); err != nil {
			t.Fatal(text, err)
		}
		if _, err := Parse(m); !errors.Is(err, catalog.ErrInvalid) || !strings.Contains(err.Error(), words) {
			t.Errorf("%s: %v, want %q", text, err, words)
		}
	}
	if s := parse(t, `{"type": "service", "service": "web", "token": "secret", "args": ["a"]}`).String(); s != "service service=web" {
		t.Errorf("String: %q", s)
	}
}
