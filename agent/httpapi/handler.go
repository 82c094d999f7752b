package httpapi

import (
	"context"
	"fmt"
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
		h.metrics.observe(route, r.Method, rec.status, time.Since(start))
		h.log.Debug("http request", "request", r.Method+" "+loggable(r.URL), "addr", r.RemoteAddr,
			"status", rec.status, "dur", time.Since(start))
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
	h.serve(rec, r, rt, tail)
}

func (h *handler) serve(rec *recorder, r *http.Request, rt *Route, tail string) {
	c := &call{w: rec, r: r, route: rt, tail: tail}
	v, err := h.answer(c)
	if err == nil && !rt.stream {
		err = writeAnswer(rec, r, v, h.cfg.Dev || c.query.Has("pretty"))
	}
	if err == nil || rec.wrote {
		return
	}
	if ctxErr := context.Cause(r.Context()); ctxErr == errShuttingDown { //nolint:errorlint // the very value that Run cancels with
		err = ctxErr
	}
	status, text := answerTo(err, rt.invalid)
	if status >= http.StatusInternalServerError && status != http.StatusServiceUnavailable {
		h.log.Debug("http request failed", "request", r.Method+" "+loggable(r.URL), "err", text)
	}
	writeError(rec, status, text)
}

// answer bounds and parses the request, then calls the route.
func (h *handler) answer(c *call) (any, error) {
	if c.r.ContentLength > c.route.MaxBody {
		return nil, &httpError{http.StatusRequestEntityTooLarge, fmt.Sprintf("Request body(%d bytes) too large, max size: %d bytes", c.r.ContentLength, c.route.MaxBody)}
	}
	c.r.Body = http.MaxBytesReader(c.w, c.r.Body, c.route.MaxBody)
	if c.r.Method != http.MethodGet {
		setReadDeadline(c.w, time.Now().Add(h.cfg.BodyTimeout))
	}
	if err := c.parse(h.cfg); err != nil {
		return nil, err
	}
	return c.route.handle(c)
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
