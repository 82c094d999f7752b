package handover

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/weftmesh/weft/agent/sidecar"
	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/connect"
)

const (
	feedName = "handover.sock"
	// maxFeeds bounds the proxies of drainers that are fed at once.
	maxFeeds = 1024
	// maxQuestion bounds what a drainer may ask.
	maxQuestion = 64 << 10
	// questionTime is for how long it may ask.
	questionTime = 5 * time.Second
	// feedWrite bounds the writing of one answer.
	feedWrite = 10 * time.Second
	// listenPoll is how often a proxy that does not listen yet is looked at.
	listenPoll = 20 * time.Millisecond
	feedRetry  = 50 * time.Millisecond
	// countEvery is how often a drainer says what it has counted, in maxCounts bytes.
	countEvery = 2 * time.Second
	maxCounts  = 2 << 20
	// lastWord bounds a telling once the process is to end: a successor that does not read
	// must not hold that up.
	lastWord = time.Second
)

// question is what a drainer sends: whose policy it wants, and, from then on, what it
// still carries. Where it says that it counts it wants nothing, and says what it has
// counted, in lines of connect.Counts.
type question struct {
	Proxy  string `json:",omitempty"`
	PID    int    `json:",omitempty"`
	Counts bool   `json:",omitempty"`
	sidecar.Carried
}

// Source is what a feed is made of: the proxies of this process.
type Source interface {
	// Snapshot watches what a proxy enforces; it fails with ErrNotFound where there is none.
	Snapshot(proxyID string) catalog.Watch[*connect.Snapshot]
	// Listens tells whether a proxy takes all the connections that it is to take.
	Listens(proxyID string) bool
	// Draining notes what the process pid says of a proxy; nil: it is not heard any more.
	Draining(proxyID string, pid int, said *sidecar.Carried)
	// Counted notes what the process pid has counted until now.
	Counted(pid int, counts *connect.Counts)
}

// Serve feeds the drainers of this host until ctx ends, over a socket in dir that
// nobody but the user of the agent can open.
func Serve(ctx context.Context, dir string, src Source, log *slog.Logger) error {
	l, err := listenFeed(ctx, dir)
	if err != nil {
		return fmt.Errorf("feed of drainers: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer stop()
	var wg sync.WaitGroup
	defer wg.Wait()
	places := make(chan struct{}, maxFeeds)
	for {
		c, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return nil //nolint:nilerr // told to end
			}
			log.Warn("the feed of drainers cannot accept, will retry", "err", err)
			if !sleep(ctx, time.Second) {
				return nil
			}
			continue
		}
		if !isOwn(c) {
			log.Warn("another user asked for the policy of this host's proxies; nothing was told", "file", filepath.Join(dir, feedName))
			_ = c.Close() // it has nothing to say
			continue
		}
		select {
		case places <- struct{}{}:
		default:
			_ = c.Close() // it tries again
			continue
		}
		wg.Go(func() {
			defer func() { <-places }()
			serveFeed(ctx, c, src)
		})
	}
}

func listenFeed(ctx context.Context, dir string) (net.Listener, error) {
	path, done, err := shortPath(dir)
	if err != nil {
		return nil, err
	}
	defer done()
	// The data directory belongs to one agent at a time: what is there is stale.
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "unix", path)
	if err != nil {
		return nil, err
	}
	if u, ok := l.(*net.UnixListener); ok {
		u.SetUnlinkOnClose(false) // its path is that of a moment; the next one replaces it
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

// shortPath is a path of the socket that is short enough for the kernel, whatever the
// data directory is called, until done is called.
func shortPath(dir string) (path string, done func(), err error) {
	if path = filepath.Join(dir, feedName); len(path) < 100 {
		return path, func() {}, nil
	}
	d, err := os.Open(dir)
	if err != nil {
		return "", nil, err
	}
	return fmt.Sprintf("/proc/self/fd/%d/%s", d.Fd(), feedName), func() { _ = d.Close() }, nil
}

// serveFeed answers one drainer about one proxy.
func serveFeed(ctx context.Context, c net.Conn, src Source) {
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(ctx, func() { _ = c.Close() })
	defer func() { cancel(); stop(); _ = c.Close() }()
	in := bufio.NewReaderSize(c, maxQuestion)
	_ = c.SetReadDeadline(time.Now().Add(questionTime)) // fails with the connection
	var q question
	if line, err := in.ReadSlice('\n'); err != nil || json.Unmarshal(line, &q) != nil || q.Proxy == "" && !q.Counts {
		return
	}
	_ = c.SetReadDeadline(time.Time{}) // as above
	if q.Counts {
		takeCounts(bufio.NewReaderSize(in, maxCounts), q.PID, src)
		return
	}
	go func() {
		defer cancel() // the drainer is gone
		defer src.Draining(q.Proxy, q.PID, nil)
		for {
			line, err := in.ReadSlice('\n')
			var said question
			if err != nil || json.Unmarshal(line, &said) != nil {
				return
			}
			src.Draining(q.Proxy, q.PID, &said.Carried)
		}
	}()
	answer := func(fed sidecar.Fed) bool {
		_ = c.SetWriteDeadline(time.Now().Add(feedWrite)) // as above
		return json.NewEncoder(c).Encode(fed) == nil
	}
	feed(ctx, q.Proxy, src, answer)
}

// takeCounts takes what a drainer has counted until it is gone.
func takeCounts(in *bufio.Reader, pid int, src Source) {
	for {
		line, err := in.ReadSlice('\n')
		if err != nil {
			return
		}
		if counts, err := connect.ReadCounts(line); err == nil && counts != nil {
			src.Counted(pid, counts)
		}
	}
}

// feed answers with each version of what a proxy enforces, and when it begins to listen.
func feed(ctx context.Context, proxy string, src Source, answer func(sidecar.Fed) bool) {
	watch := src.Snapshot(proxy)
	var after uint64
	var fed sidecar.Fed
	for {
		wctx, stop := ctx, context.CancelFunc(func() {})
		if !fed.Listens {
			wctx, stop = context.WithTimeout(ctx, listenPoll)
		}
		snap, index, err := watch.Next(wctx, after)
		stop()
		switch {
		case ctx.Err() != nil:
			return
		case errors.Is(err, catalog.ErrNotFound):
			answer(sidecar.Fed{Gone: true})
			return
		case err != nil && !errors.Is(err, context.DeadlineExceeded):
			return
		case err == nil:
			after, fed.Snapshot = index, snap
		}
		listens := fed.Listens
		fed.Listens = fed.Snapshot != nil && (listens || src.Listens(proxy))
		if (err == nil || fed.Listens != listens) && !answer(fed) {
			return
		}
	}
}

// Feed asks the process that serves dir. It implements sidecar.Feed.
type Feed struct {
	Dir string
	Log *slog.Logger
}

// Follow hands to take what the successor says of a proxy until ctx ends, or the
// successor says that it does not know the proxy. While nobody serves it tries again.
// carried is told to the successor from its first answer on.
func (f Feed) Follow(ctx context.Context, proxyID string, carried func(context.Context) sidecar.Carried, take func(sidecar.Fed)) {
	quiet := false
	for ctx.Err() == nil {
		gone, err := f.follow(ctx, proxyID, carried, take)
		if gone {
			return
		}
		if err != nil && !quiet && ctx.Err() == nil {
			quiet = true
			f.Log.Info("no new policy for what is still carried; the last one stays in force", "id", proxyID, "err", err)
		}
		sleep(ctx, feedRetry)
	}
}

func (f Feed) follow(ctx context.Context, proxyID string, carried func(context.Context) sidecar.Carried, take func(sidecar.Fed)) (gone bool, err error) {
	c, err := f.dial(ctx)
	if err != nil {
		return false, err
	}
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(ctx, func() { _ = c.Close() })
	defer func() { cancel(); stop(); _ = c.Close() }()
	if err := json.NewEncoder(c).Encode(question{Proxy: proxyID, PID: os.Getpid()}); err != nil {
		return false, err
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	tell := func() {
		for {
			said := carried(ctx)
			if ctx.Err() != nil {
				return
			}
			line, err := told(said)
			if err != nil {
				return
			}
			_ = c.SetWriteDeadline(time.Now().Add(feedWrite)) // fails with the connection
			if _, err := c.Write(line); err != nil {
				return
			}
		}
	}
	in := json.NewDecoder(c)
	for first := true; ; first = false {
		var fed sidecar.Fed
		if err := in.Decode(&fed); err != nil {
			return false, err
		}
		fed.Anew = first
		take(fed)
		if first {
			wg.Go(tell) // not before: what is told is of what this process says
		}
		if fed.Gone {
			return true, nil
		}
	}
}

// Count tells the process that serves dir what this one has counted, until ctx ends, and
// once more then: what ended last counts, too.
func (f Feed) Count(ctx context.Context, counts func() connect.Counts) {
	for {
		last := ctx.Err() != nil
		err := f.count(ctx, counts)
		if errors.Is(err, errManyCounts) { // there will not be fewer
			f.Log.Warn("the metrics of the next process are without what this one counts from now on", "err", err)
			return
		}
		if err == nil || last {
			return
		}
		f.Log.Debug("the next process was not told what this one has counted", "err", err)
		sleep(ctx, countEvery)
	}
}

var errManyCounts = fmt.Errorf("what it has counted takes more than %d bytes", maxCounts)

func (f Feed) count(ctx context.Context, counts func() connect.Counts) error {
	dialling, cancel := context.WithTimeout(context.WithoutCancel(ctx), feedWrite)
	defer cancel()
	c, err := f.dial(dialling)
	if err != nil {
		return err
	}
	defer c.Close() //nolint:errcheck // all has been said, or could not be
	within := func(d time.Duration) {
		_ = c.SetWriteDeadline(time.Now().Add(d)) // fails with the connection
	}
	stop := context.AfterFunc(ctx, func() { within(lastWord) })
	defer stop()
	within(feedWrite) // the first words find room
	if err := json.NewEncoder(c).Encode(question{PID: os.Getpid(), Counts: true}); err != nil {
		return err
	}
	for {
		over := ctx.Err() != nil // before it counts: the last telling has all
		said, err := json.Marshal(counts())
		switch {
		case err != nil:
			return err
		case len(said) >= maxCounts:
			return errManyCounts
		}
		if within(feedWrite); ctx.Err() != nil {
			within(lastWord)
		}
		if _, err := c.Write(append(said, '\n')); err != nil || over {
			return err
		}
		sleep(ctx, countEvery)
	}
}

// dial connects to the process that serves, if that is of the same user.
func (f Feed) dial(ctx context.Context) (net.Conn, error) {
	path, done, err := shortPath(f.Dir)
	if err != nil {
		return nil, err
	}
	defer done()
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", path)
	if err != nil {
		return nil, err
	}
	if !isOwn(c) {
		return nil, errors.Join(errors.New("the process that serves is another user's: start it as the user of this one"), c.Close())
	}
	return c, nil
}

// maxPeers bounds the pairs that a drainer tells of.
const maxPeers = 100

// told is the line that says what a drainer carries: of pairs no more than go into a line
// that is read.
func told(said sidecar.Carried) ([]byte, error) {
	said.Peers = said.Peers[:min(len(said.Peers), maxPeers)]
	for {
		line, err := json.Marshal(question{Carried: said})
		if n := len(said.Peers); err == nil && n > 0 && len(line) >= maxQuestion {
			said.Peers = said.Peers[:min(n-1, n*maxQuestion/len(line))]
			continue
		}
		return append(line, '\n'), err
	}
}

func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
