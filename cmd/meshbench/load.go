package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

const answerSize = 1024

// front is where the load goes, and what is spoken there.
type front struct {
	addr string
	http bool // for contenders that understand what they carry
}

// request asks for n bytes, or for bytes without end.
func (f front) request(n int) []byte {
	b := make([]byte, requestSize)
	if f.http {
		for i := range b {
			b[i] = 'x'
		}
		copy(b, fmt.Sprintf("GET /%d HTTP/1.1\r\nHost: backend\r\nX-Pad: ", n))
		copy(b[len(b)-4:], "\r\n\r\n")
		return b
	}
	binary.BigEndian.PutUint32(b, uint32(n)) //nolint:gosec // small constants
	return b
}

// maxHead bounds what comes before the bytes that were asked for.
const maxHead = 1024

// room is for an answer of n bytes.
func (f front) room(n int) []byte {
	if f.http {
		return make([]byte, n+maxHead)
	}
	return make([]byte, n)
}

func (f front) dial(ctx context.Context) (net.Conn, error) {
	d := net.Dialer{Timeout: 5 * time.Second}
	return d.DialContext(ctx, "tcp", f.addr)
}

// exchange sends a request and reads its answer.
func (f front) exchange(c net.Conn, req, room []byte) error {
	if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return err
	}
	if _, err := c.Write(req); err != nil {
		return err
	}
	if f.http {
		return hear(c, room)
	}
	if _, err := io.ReadFull(c, room); err != nil {
		return fmt.Errorf("no answer: %w", err)
	}
	return nil
}

// hear reads an answer over HTTP.
func hear(c net.Conn, room []byte) error {
	for got, want := 0, len(room); got < want; {
		n, err := c.Read(room[got:])
		if err != nil {
			return fmt.Errorf("no answer: %w", err)
		}
		if got += n; want < len(room) {
			continue
		}
		if end := bytes.Index(room[:got], []byte("\r\n\r\n")); end >= 0 {
			if !bytes.HasPrefix(room, []byte("HTTP/1.1 200 ")) {
				return fmt.Errorf("it answers %.60q", room[:end])
			}
			want = end + 4 + len(room) - maxHead
		}
	}
	return nil
}

// rate is what keeping connections busy with requests gave.
type rate struct {
	perSecond, count float64
	p50, p99         time.Duration
}

// requests keeps conns connections busy with requests for the window, once each has had
// its first answer, so that no handshake is in it; begin is called then.
func requests(ctx context.Context, at front, conns int, window time.Duration, begin func()) (rate, error) {
	var mu sync.Mutex
	var all []time.Duration
	open := make([]net.Conn, conns)
	for i := range open {
		c, err := at.dial(ctx)
		if err != nil {
			return rate{}, err
		}
		defer c.Close()
		open[i] = c
	}
	err := parallel(conns, func(i int) error { return at.exchange(open[i], at.request(answerSize), at.room(answerSize)) })
	if err != nil {
		return rate{}, err
	}
	if begin != nil {
		begin()
	}
	start := time.Now()
	err = parallel(conns, func(i int) error {
		c := open[i]
		req, ans := at.request(answerSize), at.room(answerSize)
		var times []time.Duration
		for time.Since(start) < window {
			t := time.Now()
			if err := at.exchange(c, req, ans); err != nil {
				return err
			}
			times = append(times, time.Since(t))
		}
		mu.Lock()
		all = append(all, times...)
		mu.Unlock()
		return nil
	})
	took := time.Since(start)
	slices.Sort(all)
	n := float64(len(all))
	return rate{n / took.Seconds(), n, percentile(all, 0.5), percentile(all, 0.99)}, err
}

// connections opens, uses once and closes connections for the window.
func connections(ctx context.Context, at front, workers int, window time.Duration) (perSecond float64, err error) {
	var done atomic.Int64
	start := time.Now()
	err = parallel(workers, func(int) error {
		req, ans := at.request(answerSize), at.room(answerSize)
		for time.Since(start) < window {
			c, err := at.dial(ctx)
			if err != nil {
				return err
			}
			err = at.exchange(c, req, ans)
			if tc, ok := c.(*net.TCPConn); ok {
				_ = tc.SetLinger(0) // keep the port range for the next ones
			}
			c.Close()
			if err != nil {
				return err
			}
			done.Add(1)
		}
		return nil
	})
	return float64(done.Load()) / time.Since(start).Seconds(), err
}

// bulk reads streams at full speed for the window and returns bits a second.
func bulk(ctx context.Context, at front, streams int, window time.Duration) (bits float64, bytes int64, err error) {
	var total atomic.Int64
	start := time.Now()
	err = parallel(streams, func(int) error {
		c, err := at.dial(ctx)
		if err != nil {
			return err
		}
		defer c.Close()
		if _, err := c.Write(at.request(0)); err != nil {
			return err
		}
		buf := make([]byte, 256<<10)
		for time.Since(start) < window {
			n, err := c.Read(buf)
			total.Add(int64(n))
			if err != nil {
				return err
			}
		}
		return nil
	})
	return float64(total.Load()) * 8 / time.Since(start).Seconds(), total.Load(), err
}

// besideBulk is the median of requests on one connection while streams run at full speed.
func besideBulk(ctx context.Context, at front, streams int, window time.Duration) (time.Duration, error) {
	done := make(chan error, 1)
	go func() {
		_, _, err := bulk(ctx, at, streams, window+window/4)
		done <- err
	}()
	time.Sleep(window / 8) // until they run
	r, err := requests(ctx, at, 1, window, nil)
	return r.p50, errors.Join(err, <-done)
}

// idle opens n connections that each had an answer of size bytes and then rest, calls
// measure, and closes them.
func idle(ctx context.Context, at front, n, size int, measure func() error) error {
	open := make([]net.Conn, 0, n)
	defer func() {
		for _, c := range open {
			c.Close()
		}
	}()
	req, ans := at.request(size), at.room(size)
	for range n {
		c, err := at.dial(ctx)
		if err != nil {
			return err
		}
		open = append(open, c)
		if err := at.exchange(c, req, ans); err != nil {
			return err
		}
	}
	return measure()
}

func parallel(n int, f func(i int) error) error {
	errs := make(chan error, n)
	for i := range n {
		go func() { errs <- f(i) }()
	}
	var first error
	for range n {
		if err := <-errs; err != nil && first == nil {
			first = err
		}
	}
	return first
}

func percentile(sorted []time.Duration, p float64) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[min(len(sorted)-1, int(p*float64(len(sorted))))]
}

// firstThrough dials until one exchange succeeds, and returns that connection.
func firstThrough(ctx context.Context, at front, since time.Time) (net.Conn, error) {
	for {
		c, err := at.dial(ctx)
		if err == nil {
			if err = at.exchange(c, at.request(1), at.room(1)); err == nil {
				return c, nil
			}
			c.Close()
		}
		if time.Since(since) > 10*time.Second {
			return nil, fmt.Errorf("an allowed connection did not get through within 10 s: %w", err)
		}
		time.Sleep(time.Millisecond)
	}
}
