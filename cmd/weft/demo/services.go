package demo

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// dbService is a small real service: to a line "word" it answers with its word,
// to "tick" with a tick every 50 ms until its caller is gone.
type dbService struct {
	ln   net.Listener
	word string
	wg   sync.WaitGroup
	mu   sync.Mutex
	open map[net.Conn]struct{}
}

func startDB() (*dbService, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("service db: %w", err)
	}
	var b [6]byte
	_, _ = rand.Read(b[:]) // never fails (crypto/rand)
	d := &dbService{ln: ln, word: "heddle-" + hex.EncodeToString(b[:]), open: map[net.Conn]struct{}{}}
	d.wg.Go(d.accept)
	return d, nil
}

func (d *dbService) port() int { return d.ln.Addr().(*net.TCPAddr).Port }

func (d *dbService) accept() {
	for {
		c, err := d.ln.Accept()
		if err != nil {
			return
		}
		d.mu.Lock()
		d.open[c] = struct{}{}
		d.mu.Unlock()
		d.wg.Go(func() {
			defer c.Close()
			d.serve(c)
		})
	}
}

func (d *dbService) serve(c net.Conn) {
	defer func() {
		d.mu.Lock()
		delete(d.open, c)
		d.mu.Unlock()
	}()
	line, err := bufio.NewReader(io.LimitReader(c, 64)).ReadString('\n')
	if err != nil {
		return
	}
	switch strings.TrimSpace(line) {
	case "word":
		_, _ = fmt.Fprintf(c, "%s\n", d.word)
	case "tick":
		for {
			if _, err := io.WriteString(c, "tick "+d.word+"\n"); err != nil {
				return
			}
			time.Sleep(50 * time.Millisecond)
		}
	}
}

func (d *dbService) close() {
	d.ln.Close()
	d.mu.Lock()
	for c := range d.open {
		c.Close()
	}
	d.mu.Unlock()
	d.wg.Wait()
}

// webService is an HTTP service that asks db through its upstream listener, which
// is all that it knows of the mesh.
type webService struct {
	ln       net.Listener
	srv      *http.Server
	upstream string

	ticks       atomic.Int64
	streamEnded chan struct{}
	mu          sync.Mutex
	ended       time.Time
	endErr      error
	live        net.Conn
}

// webAnswer is what web says of its question to db.
type webAnswer struct {
	Text string
	Word string // empty when db did not answer
}

func startWeb(upstreamPort int) (*webService, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("service web: %w", err)
	}
	w := &webService{ln: ln, upstream: net.JoinHostPort("127.0.0.1", strconv.Itoa(upstreamPort)), streamEnded: make(chan struct{})}
	w.srv = &http.Server{Handler: http.HandlerFunc(w.serveHTTP), ReadHeaderTimeout: 5 * time.Second}
	go func() { _ = w.srv.Serve(ln) }()
	return w, nil
}

func (w *webService) addr() string { return w.ln.Addr().String() }
func (w *webService) port() int    { return w.ln.Addr().(*net.TCPAddr).Port }

func (w *webService) serveHTTP(rw http.ResponseWriter, r *http.Request) {
	word, err := w.askDB(r.Context())
	if err != nil {
		rw.WriteHeader(http.StatusBadGateway)
		_, _ = fmt.Fprintf(rw, "I cannot reach db: %v\n", err)
		return
	}
	_, _ = fmt.Fprintf(rw, "db's word is %s\n", word)
}

func (w *webService) askDB(ctx context.Context) (string, error) {
	d := net.Dialer{Timeout: 5 * time.Second}
	c, err := d.DialContext(ctx, "tcp", w.upstream)
	if err != nil {
		return "", err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.WriteString(c, "word\n"); err != nil {
		return "", plain(err)
	}
	line, err := bufio.NewReader(io.LimitReader(c, 256)).ReadString('\n')
	if err != nil {
		return "", plain(err)
	}
	return strings.TrimSpace(line), nil
}

// plain says without addresses what ended a connection.
func plain(err error) error {
	switch text := err.Error(); {
	case errors.Is(err, io.EOF) || strings.Contains(text, "connection reset") || strings.Contains(text, "broken pipe"):
		return fmt.Errorf("the connection was closed before an answer came")
	default:
		return err
	}
}

// ask calls web over HTTP, as a browser would.
func (w *webService) ask(ctx context.Context) (webAnswer, error) {
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+w.addr()+"/", nil)
	if err != nil {
		return webAnswer{}, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return webAnswer{}, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, 4096))
	if err != nil {
		return webAnswer{}, err
	}
	a := webAnswer{Text: resp.Status + ": " + strings.TrimSpace(string(b))}
	if resp.StatusCode == http.StatusOK {
		a.Word = strings.TrimSpace(string(b))
	}
	return a, nil
}

// stream opens a long connection from web to db and counts the ticks on it.
func (w *webService) stream(ctx context.Context) error {
	d := net.Dialer{Timeout: 5 * time.Second}
	c, err := d.DialContext(ctx, "tcp", w.upstream)
	if err != nil {
		return err
	}
	if _, err := io.WriteString(c, "tick\n"); err != nil {
		c.Close()
		return err
	}
	w.mu.Lock()
	w.live = c
	w.mu.Unlock()
	go func() {
		defer close(w.streamEnded)
		defer c.Close()
		r := bufio.NewScanner(c)
		for r.Scan() {
			w.ticks.Add(1)
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		w.ended, w.endErr = time.Now(), r.Err()
		if w.endErr == nil {
			w.endErr = io.EOF
		}
	}()
	return nil
}

func (w *webService) endedAt() time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.ended
}

func (w *webService) streamErr() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.endErr
}

func (w *webService) close() {
	_ = w.srv.Close()
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.live != nil {
		w.live.Close()
	}
}
