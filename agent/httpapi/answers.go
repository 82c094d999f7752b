package httpapi

import (
	"bytes"
	"compress/gzip"
	"strings"
	"sync"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/weftmesh/weft/catalog"
)

// answers lets those who wait for the same thing share one answer: when a service
// changes, a thousand blocked queries for it cost one view and one encoding. What is
// kept is bounded; an answer of an old version makes room for that of the next.
type answers struct {
	mu   sync.Mutex
	kept map[question]*answerOf
	size int // bytes, of those that are complete
	made prometheus.Counter
}

const (
	maxAnswers     = 1024
	maxAnswerBytes = 64 << 20
)

// question is what an answer depends on beside the view.
type question struct {
	path   string
	tail   string
	params string
	pretty bool
}

// answerOf is the answer to a question as of one view.
type answerOf struct {
	view  *catalog.View
	build sync.Once
	body  *encoded
	err   error
}

// encoded is an answer in JSON, and compressed once somebody wants it so.
type encoded struct {
	body     []byte
	compress sync.Once
	small    []byte
}

func (e *encoded) gzipped() []byte {
	e.compress.Do(func() {
		var b bytes.Buffer
		z := gzipWriters.Get().(*gzip.Writer)
		defer gzipWriters.Put(z)
		z.Reset(&b)
		_, _ = z.Write(e.body) // writing to memory cannot fail
		_ = z.Close()
		e.small = b.Bytes()
	})
	return e.small
}

var gzipWriters = sync.Pool{New: func() any {
	w, _ := gzip.NewWriterLevel(nil, gzip.BestSpeed) // the level is valid
	return w
}}

func newAnswers(made prometheus.Counter) *answers {
	return &answers{kept: map[question]*answerOf{}, made: made}
}

// shared gives what build makes of v, made once for all who wait with the same
// parameters. build must depend on v and those parameters only.
func (a *answers) shared(c *call, v *catalog.View, pretty bool, build func() (any, error)) (any, error) {
	if c.opts.index == 0 {
		return build()
	}
	q := question{c.route.Path, c.tail, narrowing(c), pretty}
	ans := a.entry(q, v)
	ans.build.Do(func() {
		value, err := build()
		if err != nil {
			ans.err = err
			return
		}
		body, err := encode(value, pretty)
		ans.body, ans.err = &encoded{body: body}, err
		a.grow(len(body))
		a.made.Inc()
	})
	switch {
	case ans.err != nil:
		return nil, ans.err
	case ans.body == nil:
		return build() // whoever built it panicked, and has been told so
	default:
		return ans.body, nil
	}
}

func (a *answers) entry(q question, v *catalog.View) *answerOf {
	a.mu.Lock()
	defer a.mu.Unlock()
	ans := a.kept[q]
	if ans != nil && ans.view == v {
		return ans
	}
	if len(a.kept) >= maxAnswers {
		a.forget()
	}
	ans = &answerOf{view: v}
	a.kept[q] = ans
	return ans
}

// grow counts an answer; over the bound, all are forgotten. Those in use live on
// with their users.
func (a *answers) grow(n int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.size += n; a.size > maxAnswerBytes {
		a.forget()
	}
}

func (a *answers) forget() {
	clear(a.kept)
	a.size = 0
}

// narrowing is the part of the query that selects from a view.
func narrowing(c *call) string {
	var b strings.Builder
	for _, name := range []string{"filter", "passing", "tag", "node-meta", "merge-central-config"} {
		for _, v := range c.query[name] {
			b.WriteString(name + "=" + v + "\x00")
		}
	}
	return b.String()
}
