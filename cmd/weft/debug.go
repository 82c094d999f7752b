package main

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/consul/api"
	"github.com/urfave/cli/v2"
)

// What can be captured.
var captures = []string{"agent", "host", "members", "metrics", "logs", "pprof"}

// maxCaptured bounds one file of the archive.
const maxCaptured = 256 << 20

func debugCommand(s streams) *cli.Command {
	return spec{
		name: "debug", usage: "Gather what helps to understand an agent into an archive",
		about: "Asks the agent for its state, members, metrics, log and, where enable_debug is set, profiles,\n" +
			"again and again for a while, and writes all of it to a .tar.gz. Secrets are left out by the\nagent; look through it all the same before it leaves the house.",
		examples: []string{"weft debug", "weft debug -duration=1m -interval=10s -capture=metrics -capture=logs -output=/tmp/case"},
		flags: clientFlags(
			&cli.StringSliceFlag{Name: "capture", Usage: "What to gather: " + strings.Join(captures, ", ") + ". May be given many times; everything when it is not set."},
			&cli.DurationFlag{Name: "duration", Value: 2 * time.Minute, Usage: "For how long, at least 10s."},
			&cli.DurationFlag{Name: "interval", Value: 30 * time.Second, Usage: "How often metrics and profiles are taken, at least 5s."},
			&cli.StringFlag{Name: "output", Usage: "The archive's path without .tar.gz; weft-debug-TIME in the current folder when it is not set."},
			&cli.BoolFlag{Name: "archive", Value: true, Usage: "Accepted: it always writes an archive."},
		),
		action: withClient(s, runDebug),
	}.build()
}

// debugRun gathers into one archive.
type debugRun struct {
	cl       *client
	duration time.Duration
	interval time.Duration
	want     map[string]bool
	begin    time.Time

	mu     sync.Mutex
	tar    *tar.Writer
	failed []string
	names  []string
}

func runDebug(c *cli.Context, cl *client) (err error) {
	d := &debugRun{cl: cl, duration: c.Duration("duration"), interval: c.Duration("interval"), want: map[string]bool{}, begin: time.Now()}
	list := c.StringSlice("capture")
	if len(list) == 0 {
		list = captures
	}
	for _, what := range list {
		if what == "cluster" { // as it was once called
			what = "members"
		}
		if !slices.Contains(captures, what) {
			return usagef(c, "-capture %q is none of %s", what, strings.Join(captures, ", "))
		}
		d.want[what] = true
	}
	if d.duration < 10*time.Second || d.interval < 5*time.Second || d.interval > d.duration {
		return usagef(c, "-duration must be 10s at least, and -interval between 5s and -duration")
	}
	if _, err := cl.Agent().NodeName(); err != nil {
		return err
	}
	name := c.String("output")
	if name == "" {
		name = "weft-debug-" + d.begin.UTC().Format("20060102T150405Z")
	}
	name += ".tar.gz"
	f, err := os.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	fmt.Fprintf(c.App.ErrWriter, "Gathering for %s into %s; Ctrl-C ends it earlier.\n", d.duration, name)
	ctx, stop := untilSignal(c.Context)
	defer stop()
	zip := gzip.NewWriter(f)
	d.tar = tar.NewWriter(zip)
	d.gather(ctx)
	if err := errors.Join(d.index(), d.tar.Close(), zip.Close()); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	for _, why := range d.failed {
		fmt.Fprintln(c.App.ErrWriter, "Left out:", why)
	}
	_, err = fmt.Fprintf(c.App.Writer, "Saved debug archive: %s\n", name)
	return err
}

// gather takes what stays once, and the rest at each interval.
func (d *debugRun) gather(ctx context.Context) {
	for what, path := range map[string]string{"agent": "/v1/agent/self", "host": "/v1/agent/host", "members": "/v1/agent/members"} {
		if d.want[what] {
			d.fetch(ctx, what+".json", path, nil)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, d.duration)
	defer cancel()
	var wg sync.WaitGroup
	if d.want["logs"] {
		wg.Go(func() { d.fetch(ctx, "weft.log", "/v1/agent/monitor", url.Values{"loglevel": {"debug"}}) })
	}
	tick := time.NewTicker(d.interval)
	defer tick.Stop()
	for n := 0; ctx.Err() == nil; n++ {
		d.round(ctx, fmt.Sprintf("%03d", n))
		select {
		case <-ctx.Done():
		case <-tick.C:
		}
	}
	wg.Wait()
}

func (d *debugRun) round(ctx context.Context, at string) {
	if d.want["metrics"] {
		d.fetch(ctx, path.Join(at, "metrics.prom"), "/v1/agent/metrics", url.Values{"format": {"prometheus"}})
	}
	if !d.want["pprof"] {
		return
	}
	seconds := max(1, min(int(d.interval/time.Second)-2, 30))
	for _, p := range []string{"heap", "goroutine", "profile", "trace"} {
		var params url.Values
		switch p {
		case "profile":
			params = url.Values{"seconds": {strconv.Itoa(seconds)}}
		case "trace":
			params = url.Values{"seconds": {"1"}}
		}
		if !d.fetch(ctx, path.Join(at, p+".prof"), "/debug/pprof/"+p, params) {
			d.want["pprof"] = false // what is off stays off
			return
		}
	}
}

// fetch puts an answer into the archive. One that breaks off, because the time is
// over, is kept as far as it came.
func (d *debugRun) fetch(ctx context.Context, name, from string, params url.Values) bool {
	resp, err := d.cl.do(ctx, http.MethodGet, from, params, nil)
	if err != nil {
		if ctx.Err() == nil {
			d.fail(name, err)
		}
		return false
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxCaptured))
	if err != nil && ctx.Err() == nil && len(text) == 0 {
		d.fail(name, err)
		return false
	}
	d.add(name, text)
	return true
}

func (d *debugRun) fail(name string, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	var status api.StatusError
	if errors.As(err, &status) {
		err = statusWords(status.Code, status.Body)
	}
	d.failed = append(d.failed, fmt.Sprintf("%s: %v", name, err))
}

func (d *debugRun) add(name string, text []byte) {
	d.mu.Lock()
	defer d.mu.Unlock()
	h := &tar.Header{Name: name, Mode: 0o600, Size: int64(len(text)), ModTime: time.Now()}
	err := d.tar.WriteHeader(h)
	if err == nil {
		_, err = d.tar.Write(text)
	}
	if err != nil {
		d.failed = append(d.failed, fmt.Sprintf("%s: %v", name, err))
		return
	}
	d.names = append(d.names, name)
}

// index says in the archive what it holds.
func (d *debugRun) index() error {
	text, err := json.MarshalIndent(map[string]any{
		"Begin": d.begin.UTC(), "End": time.Now().UTC(), "Interval": d.interval.String(), "Version": buildInfo().Version,
		"Files": d.names, "LeftOut": d.failed,
	}, "", "  ")
	if err == nil {
		d.add("index.json", text)
	}
	return err
}
