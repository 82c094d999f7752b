package main

import (
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

func request(n int) []byte {
	b := make([]byte, requestSize)
	binary.BigEndian.PutUint32(b, uint32(n)) //nolint:gosec // small constants
	return b
}

func dial(ctx context.Context, addr string) (net.Conn, error) {
	d := net.Dialer{Timeout: 5 * time.Second}
	return d.DialContext(ctx, "tcp", addr)
}

// requests keeps conns connections busy with requests for the window; it returns
// how many were answered a second and the median and 99th percentile of their times.
func requests(ctx context.Context, addr string, conns int, window time.Duration) (perSecond float64, p50, p99 time.Duration, err error) {
	var mu sync.Mutex
	var all []time.Duration
	open := make([]net.Conn, conns)
	for i := range open {
		c, err := dial(ctx, addr)
		if err != nil {
			return 0, 0, 0, err
		}
		defer c.Close()
		open[i] = c
	}
	start := time.Now()
	err = parallel(conns, func(i int) error {
		c := open[i]
		req, ans := request(answerSize), make([]byte, answerSize)
		var times []time.Duration
		for time.Since(start) < window {
			t := time.Now()
			if err := exchange(c, req, ans); err != nil {
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
	return float64(len(all)) / took.Seconds(), percentile(all, 0.5), percentile(all, 0.99), err
}

// connections opens, uses once and closes connections for the window.
func connections(ctx context.Context, addr string, workers int, window time.Duration) (perSecond float64, err error) {
	var done atomic.Int64
	start := time.Now()
	err = parallel(workers, func(int) error {
		req, ans := request(answerSize), make([]byte, answerSize)
		for time.Since(start) < window {
			c, err := dial(ctx, addr)
			if err != nil {
				return err
			}
			err = exchange(c, req, ans)
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
func bulk(ctx context.Context, addr string, streams int, window time.Duration) (bits float64, bytes int64, err error) {
	var total atomic.Int64
	start := time.Now()
	err = parallel(streams, func(int) error {
		c, err := dial(ctx, addr)
		if err != nil {
			return err
		}
		defer c.Close()
		if _, err := c.Write(request(0)); err != nil {
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
func besideBulk(ctx context.Context, addr string, streams int, window time.Duration) (time.Duration, error) {
	done := make(chan error, 1)
	go func() {
		_, _, err := bulk(ctx, addr, streams, window+window/4)
		done <- err
	}()
	time.Sleep(window / 8) // until they run
	_, p50, _, err := requests(ctx, addr, 1, window)
	return p50, errors.Join(err, <-done)
}

// idle opens n connections that each did one exchange and then rest, calls
// measure, and closes them.
func idle(ctx context.Context, addr string, n int, measure func() error) error {
	open := make([]net.Conn, 0, n)
	defer func() {
		for _, c := range open {
			c.Close()
		}
	}()
	req, ans := request(answerSize), make([]byte, answerSize)
	for range n {
		c, err := dial(ctx, addr)
		if err != nil {
			return err
		}
		open = append(open, c)
		if err := exchange(c, req, ans); err != nil {
			return err
		}
	}
	return measure()
}

func exchange(c net.Conn, req, ans []byte) error {
	if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return err
	}
	if _, err := c.Write(req); err != nil {
		return err
	}
	if _, err := io.ReadFull(c, ans); err != nil {
		return fmt.Errorf("no answer: %w", err)
	}
	return nil
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
func firstThrough(ctx context.Context, addr string, since time.Time) (net.Conn, error) {
	for {
		c, err := dial(ctx, addr)
		if err == nil {
			if err = exchange(c, request(1), make([]byte, 1)); err == nil {
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
