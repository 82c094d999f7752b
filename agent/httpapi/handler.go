package httpapi

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"runtime/debug"
	"strings"
	"time"
	"unicode"
)

// handler is the front of the API: it guards, routes, bounds, parses, calls and
// writes. Everything specific is in the routes.
type handler struct {
	cfg     Config
	router  *router
	guard   *guard
	metrics *metrics
	log     *slog.Logger
}

func newHandler(cfg Config, m *metrics) *handler {
	q := newQueries(cfg, m)
	return &handler{
		cfg: cfg, router: newRouter(allRoutes(cfg, q)), guard: newGuard(cfg), metrics: m, log: cfg.Logger,
	}
}

const (
	textNotAPI  = "Invalid URL path: if attempting to use the HTTP API, ensure the path starts with '/v1/'\n"
	textNoRoute = "Invalid URL path: not a recognized HTTP API endpoint\n"
	textNoUI    = "This agent serves no web UI. The API is under /v1/, and `weft --help` lists the commands.\n"
)

// ServeHTTP implements http.Handler.
func (h *handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	start := time.Now()
	rec := &recorder{ResponseWriter: w, status: http.StatusOK}
	protect(rec.Header(), h.cfg.ResponseHeaders)
	route := "none"
	defer func() {
		p := recover()
		if p != nil {
			h.panicked(rec, r, p)
		}
		if rec.parked {
			return // whoever answers it counts it
		}
		h.metrics.observe(route, r.Method, rec.status, time.Since(start))
		if h.debugging() {
			h.log.Debug("http request", "request", r.Method+" "+loggable(r.URL), "addr", r.RemoteAddr,
				"status", rec.status, "dur", time.Since(start))
		}
		if p != nil && rec.cut {
			panic(http.ErrAbortHandler) // the answer had begun: only cutting it off tells the client
		}
	}()
	if err := h.guard.check(r); err != nil {
		status, text := answerTo(err, 0)
		writeError(rec, status, text)
		return
	}
	if strings.ContainsFunc(r.URL.Path, func(c rune) bool { return !unicode.IsPrint(c) && c != unicode.ReplacementChar }) {
		rec.WriteHeader(http.StatusBadRequest)
		return
	}
	ep, tail := h.router.find(r.URL.Path)
	if ep == nil {
		h.serveOutside(rec, r)
		return
	}
	route = ep.path
	rec.Header().Set("X-Consul-Default-ACL-Policy", "allow")
	rt := ep.routes[r.Method]
	if rt == nil {
		rec.Header().Set("Allow", ep.allow())
		if r.Method == http.MethodOptions {
			rec.Header().Set("Content-Type", "application/json")
			rec.WriteHeader(http.StatusOK)
		} else {
			writeError(rec, http.StatusMethodNotAllowed, "method "+r.Method+" not allowed")
		}
		return
	}
	h.serve(rec, r, rt, tail, start)
}

func (h *handler) serve(rec *recorder, r *http.Request, rt *Route, tail string, begin time.Time) {
	c := &call{w: rec, r: r, route: rt, tail: tail}
	lot := parkingOf(c)
	if lot != nil {
		c.stage = probing
	}
	v, err := h.answer(c)
	if err == errParks { //nolint:errorlint // the very value
		if rec.parked = lot.park(c, begin); rec.parked {
			return
		}
		c.stage = alone
		v, err = h.answer(c)
	}
	h.finish(c, v, err, func() bool { return rec.wrote })
}

// answerAgain answers r, the question of cr, once more, for those who wait.
func (h *handler) answerAgain(r *http.Request, cr *crowd, s stage) (a *page) {
	a = &page{header: http.Header{}}
	protect(a.header, h.cfg.ResponseHeaders)
	a.header.Set("X-Consul-Default-ACL-Policy", "allow")
	defer func() {
		if p := recover(); p != nil {
			a.status, a.body = 0, bytes.Buffer{}
			h.panicked(&recorder{ResponseWriter: a}, r, p)
		}
		a.last = errors.Is(context.Cause(r.Context()), errShuttingDown)
		a.finish()
	}()
	own := *r // a call changes the body
	c := &call{w: a, r: &own, route: cr.route, tail: cr.tail, stage: s}
	v, err := h.answer(c)
	h.finish(c, v, err, func() bool { return a.status != 0 })
	return a
}

// observeParked counts a request whose client was parked.
func (h *handler) observeParked(p *parked, status int) {
	h.metrics.observe(p.route, http.MethodGet, status, time.Since(p.begin))
	if p.request != "" {
		h.log.Debug("http request", "request", p.request, "addr", p.conn.RemoteAddr().String(), "status", status, "dur", time.Since(p.begin))
	}
}

func (h *handler) debugging() bool { return h.log.Enabled(context.Background(), slog.LevelDebug) }

// finish writes what a call gave, unless the answer had begun when it failed.
func (h *handler) finish(c *call, v any, err error, wrote func() bool) {
	r, rt := c.r, c.route
	if err == nil && !rt.stream {
		err = writeAnswer(c.w, r, v, h.cfg.Dev || c.query.Has("pretty"))
	}
	if err == nil || wrote() {
		return
	}
	if ctxErr := context.Cause(r.Context()); ctxErr == errShuttingDown { //nolint:errorlint // the very value that Run cancels with
		err = ctxErr
	}
	status, text := answerTo(err, rt.invalid)
	if status >= http.StatusInternalServerError && status != http.StatusServiceUnavailable {
		h.log.Debug("http request failed", "request", r.Method+" "+loggable(r.URL), "err", text)
	}
	writeError(c.w, status, text)
}

// answer bounds and parses the request, then calls the route.
func (h *handler) answer(c *call) (any, error) {
	if c.r.ContentLength > c.route.MaxBody {
		h.drain(c)
		return nil, &httpError{http.StatusRequestEntityTooLarge, fmt.Sprintf("Request body(%d bytes) too large, max size: %d bytes", c.r.ContentLength, c.route.MaxBody)}
	}
	c.r.Body = http.MaxBytesReader(c.w, c.r.Body, c.route.MaxBody)
	// Where there is no body net/http reads on for the end of the connection, and would take
	// the end of this time for it.
	if c.r.Method != http.MethodGet && c.r.ContentLength != 0 {
		setReadDeadline(c.w, time.Now().Add(h.cfg.BodyTimeout))
	}
	if err := c.parse(h.cfg); err != nil {
		return nil, err
	}
	return c.route.handle(c)
}

// maxDrain is how much of a body that is too large is read, and thrown away.
const maxDrain = 4 << 20

// drain lets a client end its sending. Who is cut off before may never read the answer, as
// the reset that follows takes it away. Who asks first whether to send is answered at once.
func (h *handler) drain(c *call) {
	if c.r.Header.Get("Expect") != "" {
		return
	}
	setReadDeadline(c.w, time.Now().Add(h.cfg.BodyTimeout))
	_, _ = io.CopyN(io.Discard, c.r.Body, maxDrain) // what fails shows in the answer
}

// serveOutside answers paths that are no endpoints.
func (h *handler) serveOutside(w *recorder, r *http.Request) {
	switch {
	case strings.HasPrefix(r.URL.Path, profilePath):
		h.serveProfile(w, r)
	case r.URL.Path == "/":
		w.Header().Set("Location", "/ui/")
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		w.WriteHeader(http.StatusMovedPermanently)
		_, _ = w.Write([]byte("<a href=\"/ui/\">Moved Permanently</a>.\n\n"))
	case r.URL.Path == "/ui" || strings.HasPrefix(r.URL.Path, "/ui/"):
		writeError(w, http.StatusNotFound, textNoUI)
	case strings.HasPrefix(r.URL.Path, "/v1/"):
		writeError(w, http.StatusNotFound, textNoRoute)
	default:
		writeError(w, http.StatusNotFound, textNotAPI)
	}
}

func (h *handler) panicked(rec *recorder, r *http.Request, p any) {
	h.log.Error("http handler panicked; this is a bug, please report it", "request", r.Method+" "+loggable(r.URL),
		"err", fmt.Sprint(p), "reason", string(debug.Stack()))
	if rec.wrote {
		rec.cut = true
		return
	}
	writeError(rec, http.StatusInternalServerError, "Internal error; the agent's log has the details")
}

// loggable is a URL without the token.
func loggable(u *url.URL) string {
	if !strings.Contains(strings.ToLower(u.RawQuery), "token") {
		return u.RequestURI()
	}
	q, _ := url.ParseQuery(u.RawQuery) // what does not parse is left out
	for k := range q {
		if strings.EqualFold(k, "token") {
			q.Set(k, "<hidden>")
		}
	}
	return u.EscapedPath() + "?" + q.Encode()
}

// recorder remembers what was answered, and bounds how long a client may take it in.
type recorder struct {
	http.ResponseWriter
	status int
	wrote  bool
	cut    bool // a panic came too late to be answered
	parked bool // it waits, and will be answered without us
}

// WriteHeader implements http.ResponseWriter.
func (r *recorder) WriteHeader(status int) {
	if !r.wrote {
		r.status, r.wrote = status, true
		setWriteDeadline(r.ResponseWriter, time.Now().Add(writeTimeout))
	}
	r.ResponseWriter.WriteHeader(status)
}

// Write implements http.ResponseWriter.
func (r *recorder) Write(b []byte) (int, error) {
	if !r.wrote {
		r.WriteHeader(http.StatusOK)
	}
	return r.ResponseWriter.Write(b)
}

// Unwrap lets http.ResponseController reach the connection.
func (r *recorder) Unwrap() http.ResponseWriter { return r.ResponseWriter }

// Deadlines are set where the writer has a connection; those of tests have none,
// and then there is nothing to bound.
func setReadDeadline(w http.ResponseWriter, t time.Time) {
	_ = http.NewResponseController(w).SetReadDeadline(t)
}

func setWriteDeadline(w http.ResponseWriter, t time.Time) {
	_ = http.NewResponseController(w).SetWriteDeadline(t)
}
