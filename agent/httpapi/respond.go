package httpapi

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/weftmesh/weft/catalog"
)

// httpError is an answer other than 200, in its own words.
type httpError struct {
	status int
	text   string
}

func (e *httpError) Error() string { return e.text }

func badRequest(text string) error { return &httpError{http.StatusBadRequest, text} }
func notFound(text string) error   { return &httpError{http.StatusNotFound, text} }

// raw is an answer that is no JSON.
type raw struct {
	contentType string
	body        []byte
}

// status is an answer with a status of its own.
type withStatus struct {
	status int
	value  any
}

// noBody is an answer of a status alone.
type noBody struct{ status int }

// null is an answer of JSON's null; a nil answer is an empty body.
type null struct{}

// MarshalJSON implements json.Marshaler.
func (null) MarshalJSON() ([]byte, error) { return []byte("null"), nil }

// statuses maps the sentinels of catalog to statuses, and to the words by which
// clients of Consul recognise them.
var statuses = []struct {
	err    error
	status int
	words  string // put before the text unless it has them; "" for none
}{
	{catalog.ErrDenied, http.StatusForbidden, "Permission denied"},
	{catalog.ErrTryElsewhere, http.StatusTooManyRequests, ""},
	{catalog.ErrRPCRate, http.StatusTooManyRequests, ""},
	{catalog.ErrTryLater, http.StatusServiceUnavailable, ""},
	{catalog.ErrNoLeader, http.StatusInternalServerError, "No cluster leader"},
	{catalog.ErrUnavailable, http.StatusInternalServerError, "rpc error making call"},
	{catalog.ErrStale, http.StatusInternalServerError, "The answer would be too old"},
	{catalog.ErrTooLarge, http.StatusRequestEntityTooLarge, "Request body too large"},
	{catalog.ErrNotFound, http.StatusNotFound, ""},
	{catalog.ErrConflict, http.StatusConflict, ""},
	{catalog.ErrInvalid, http.StatusBadRequest, ""},
}

// answerTo gives the status and text for an error. invalid replaces 400 and 409 for
// what validation refuses.
func answerTo(err error, invalid int) (int, string) {
	var he *httpError
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &he):
		return he.status, he.text
	case errors.As(err, &tooLarge):
		return http.StatusRequestEntityTooLarge, bodyTooLarge(tooLarge.Limit)
	case errors.Is(err, errShuttingDown):
		return http.StatusServiceUnavailable, "The agent is shutting down"
	}
	for _, s := range statuses {
		if !errors.Is(err, s.err) {
			continue
		}
		status := s.status
		if invalid != 0 && (errors.Is(s.err, catalog.ErrInvalid) || errors.Is(s.err, catalog.ErrConflict)) {
			status = invalid
		}
		return status, withWords(s.words, s.err, err)
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return http.StatusInternalServerError, "rpc error making call: timed out: " + err.Error()
	}
	return http.StatusInternalServerError, err.Error()
}

func withWords(words string, sentinel, err error) string {
	text := err.Error()
	switch {
	case words == "" || strings.HasPrefix(text, words):
		return text
	case text == sentinel.Error():
		return words
	default:
		return words + ": " + strings.TrimPrefix(text, sentinel.Error()+": ")
	}
}

func bodyTooLarge(limit int64) string {
	return "Request body too large, max size: " + strconv.FormatInt(limit, 10) + " bytes"
}

// writeError answers with one sentence of plain text.
func writeError(w http.ResponseWriter, status int, text string) {
	h := w.Header()
	h.Set("Content-Type", "text/plain; charset=utf-8")
	h.Del("X-Consul-ContentHash")
	w.WriteHeader(status)
	_, _ = w.Write([]byte(text)) // a client that left is no failure of ours
}

const (
	writeTimeout = time.Minute // for one answer to be taken by the client
	gzipFrom     = 1400        // bytes: smaller answers fit one packet anyway
)

// writeAnswer writes what a handler gave. nil is an empty body.
func writeAnswer(w http.ResponseWriter, r *http.Request, v any, pretty bool) error {
	status := http.StatusOK
	if nb, ok := v.(noBody); ok {
		w.Header().Set("Content-Length", "0")
		w.WriteHeader(nb.status)
		return nil
	}
	if ws, ok := v.(withStatus); ok {
		status, v = ws.status, ws.value
	}
	contentType, body := "application/json", &encoded{}
	switch v := v.(type) {
	case nil:
	case raw:
		contentType, body.body = v.contentType, v.body
	case *encoded:
		body = v
	default:
		var err error
		if body.body, err = encode(v, pretty); err != nil {
			return err
		}
	}
	h := w.Header()
	h.Set("Content-Type", contentType)
	out := body.body
	if len(out) >= gzipFrom {
		h.Add("Vary", "Accept-Encoding")
		if acceptsGzip(r.Header.Get("Accept-Encoding")) {
			h.Set("Content-Encoding", "gzip")
			out = body.gzipped()
		}
	}
	h.Set("Content-Length", strconv.Itoa(len(out)))
	w.WriteHeader(status)
	_, _ = w.Write(out) // a client that left is no failure of ours
	return nil
}

func encode(v any, pretty bool) ([]byte, error) {
	if !pretty {
		return json.Marshal(v)
	}
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetIndent("", "    ")
	if err := enc.Encode(v); err != nil {
		return nil, err
	}
	return buf.Bytes(), nil
}

// acceptsGzip tells whether an Accept-Encoding names gzip with a weight above 0.
func acceptsGzip(v string) bool {
	for part := range strings.SplitSeq(v, ",") {
		name, params, _ := strings.Cut(strings.TrimSpace(part), ";")
		if !strings.EqualFold(strings.TrimSpace(name), "gzip") {
			continue
		}
		q, weighted := strings.CutPrefix(strings.ReplaceAll(params, " ", ""), "q=")
		if !weighted {
			return true
		}
		f, err := strconv.ParseFloat(q, 64)
		return err == nil && f > 0
	}
	return false
}
