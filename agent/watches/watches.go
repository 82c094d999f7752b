package watches

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"reflect"
	"strings"
	"sync"

	"github.com/hashicorp/consul/api"
	"github.com/hashicorp/consul/api/watch"
	"github.com/hashicorp/go-hclog"
	"github.com/prometheus/client_golang/prometheus"
)

// Config configures a Runner.
type Config struct {
	// API is the agent's own HTTP API. Required.
	API http.Handler
	// Watches are those of the configuration; Set replaces them.
	Watches []Definition

	Logger     *slog.Logger          // nil: discards
	Registerer prometheus.Registerer // nil: no metrics
}

// Runner runs watches.
type Runner struct {
	cfg  Config
	log  *slog.Logger
	runs *prometheus.CounterVec

	mu   sync.Mutex
	want []Definition
	news chan struct{} // has room for one: want has changed
}

// New makes a Runner. Run runs its watches.
func New(cfg Config) (*Runner, error) {
	if cfg.API == nil {
		return nil, errors.New("watches: there is no API to ask")
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	r := &Runner{
		cfg: cfg, log: cfg.Logger, want: cfg.Watches, news: make(chan struct{}, 1),
		runs: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "weft_watch_handlers_total", Help: "Handlers of watches that ran, by kind and result.",
		}, []string{"kind", "result"}),
	}
	if cfg.Registerer != nil {
		if err := cfg.Registerer.Register(r.runs); err != nil {
			return nil, fmt.Errorf("watches: %w", err)
		}
	}
	return r, nil
}

// Set replaces the watches. Those that stay the same go on undisturbed.
func (r *Runner) Set(list []Definition) {
	r.mu.Lock()
	r.want = list
	r.mu.Unlock()
	select {
	case r.news <- struct{}{}:
	default:
	}
}

func (r *Runner) wanted() []Definition {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.want
}

// running is a watch that runs.
type running struct {
	def  Definition
	stop func()
}

// Run runs the watches until ctx ends. Handlers that run then are ended.
func (r *Runner) Run(ctx context.Context) error {
	var now []running
	for {
		now = r.adjust(ctx, now, r.wanted())
		select {
		case <-ctx.Done():
			r.adjust(ctx, now, nil)
			return nil
		case <-r.news:
		}
	}
}

// adjust stops what is no longer wanted and starts what is new.
func (r *Runner) adjust(ctx context.Context, now []running, want []Definition) []running {
	var next []running
	left := append([]Definition(nil), want...)
	for _, w := range now {
		at := -1
		for i, d := range left {
			if reflect.DeepEqual(d, w.def) {
				at = i
				break
			}
		}
		if at < 0 {
			w.stop()
			continue
		}
		left = append(left[:at], left[at+1:]...)
		next = append(next, w)
	}
	for _, d := range left {
		if stop, err := r.begin(ctx, d); err != nil {
			r.log.Error("a watch cannot run", "watch", d.String(), "err", err)
		} else {
			next = append(next, running{d, stop})
		}
	}
	return next
}

// begin starts a watch and gives what ends it, and waits until it has.
func (r *Runner) begin(ctx context.Context, d Definition) (stop func(), err error) {
	plan, err := d.plan()
	if err != nil {
		return nil, err
	}
	client, err := api.NewClient(&api.Config{
		Address: "localhost", Datacenter: plan.Datacenter, Token: plan.Token,
		HttpClient: &http.Client{Transport: direct{r.cfg.API}},
	})
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	plan.HybridHandler = func(at watch.BlockingParamVal, v any) { r.handle(ctx, d, fmt.Sprint(at), v) }
	log := hclog.New(&hclog.LoggerOptions{Output: lines{r.log, d.String()}, Level: hclog.Error, DisableTime: true})
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := plan.RunWithClientAndHclog(client, log); err != nil {
			r.log.Error("a watch ended", "watch", d.String(), "err", err)
		}
	}()
	return func() {
		cancel()
		plan.Stop()
		<-done
	}, nil
}

func (r *Runner) handle(ctx context.Context, d Definition, index string, v any) {
	if ctx.Err() != nil {
		return
	}
	run := d.script
	if d.kind == kindHTTP {
		run = d.request
	}
	output, err := run(ctx, index, v)
	switch {
	case ctx.Err() != nil:
	case err != nil:
		r.runs.WithLabelValues(d.kind, "failed").Inc()
		r.log.Error("the handler of a watch failed", "watch", d.String(), "kind", d.kind, "err", err, "output", output)
	default:
		r.runs.WithLabelValues(d.kind, "ok").Inc()
		r.log.Debug("the handler of a watch ran", "watch", d.String(), "kind", d.kind, "output", output)
	}
}

// lines logs what the plan says of its failures.
type lines struct {
	log   *slog.Logger
	watch string
}

// Write implements io.Writer.
func (l lines) Write(p []byte) (int, error) {
	l.log.Warn("a watch cannot be answered; it is asked again in a while", "watch", l.watch, "reason", strings.TrimSpace(string(p)))
	return len(p), nil
}

// direct hands requests to a handler without a network between.
type direct struct{ to http.Handler }

// RoundTrip implements http.RoundTripper.
func (d direct) RoundTrip(req *http.Request) (resp *http.Response, err error) {
	in := req.Clone(req.Context())
	in.RequestURI, in.RemoteAddr = req.URL.RequestURI(), "127.0.0.1:0"
	if in.Body == nil {
		in.Body = http.NoBody
	}
	rec := &answer{header: http.Header{}, status: http.StatusOK}
	defer func() {
		if p := recover(); p != nil { // as net/http does it with one that serves
			resp, err = nil, fmt.Errorf("the API gave up on %s: %v", req.URL.Path, p)
		}
	}()
	d.to.ServeHTTP(rec, in)
	if err := req.Context().Err(); err != nil {
		return nil, err
	}
	return &http.Response{
		StatusCode: rec.status, Status: http.StatusText(rec.status), Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: rec.header, Body: io.NopCloser(&rec.body), ContentLength: int64(rec.body.Len()), Request: req,
	}, nil
}

// answer keeps what a handler writes.
type answer struct {
	header http.Header
	status int
	wrote  bool
	body   bytes.Buffer
}

// Header implements http.ResponseWriter.
func (a *answer) Header() http.Header { return a.header }

// WriteHeader implements http.ResponseWriter.
func (a *answer) WriteHeader(status int) {
	if !a.wrote {
		a.status, a.wrote = status, true
	}
}

// Write implements http.ResponseWriter.
func (a *answer) Write(p []byte) (int, error) {
	a.wrote = true
	return a.body.Write(p)
}
