package consensus

import (
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"
	"time"

	"github.com/weftmesh/weft/catalog"
)

// Raft keeps a leader whose disk hangs: its heartbeats go out beside the writer
// that waits, so nobody misses it, while no write is done. The watchdog ends that
// from outside: past hangAfter the transport is closed for what a leader sends,
// the others elect one, and who asks this server is told at once.
const (
	lookEvery  = 100 * time.Millisecond  // how often the watchdog looks
	probeEvery = 500 * time.Millisecond  // how often it writes and syncs, and measures the space
	hangAfter  = 1500 * time.Millisecond // a write that takes longer hangs
	hangFatal  = 30 * time.Second        // and after this the process should end
	// A look that comes later than this was not made by a busy host but by one
	// that was suspended: that time is no fault of the disk.
	suspended = 500 * time.Millisecond
)

// ErrHung is why a node stops whose disk has not finished a write for long.
var ErrHung = errors.New("the disk hangs")

// watchdog knows whether the disk answers, and whether there is room on it.
type watchdog struct {
	dir     string
	log     *slog.Logger
	metrics *diskMetrics
	probe   func() error                           // writes and syncs; nil: nothing to probe
	space   func() (free, total uint64, err error) // nil: room without end
	reserve reserve
	fail    func(error) // ends the use of the disk
	alone   func() bool // nobody else could lead
	stays   func() bool // nobody else wants to
	onLow   func()      // called, from time to time, while there is little room
	onHang  func()      // called when the disk begins to hang
	onLook  func(lag time.Duration)

	mu     sync.Mutex
	seq    uint64
	begun  map[uint64]time.Time // writes under way
	full   int                  // how many of them wait for room
	hung   chan struct{}        // closed while the disk hangs
	isHung bool
	low    bool
	free   uint64
}

func newWatchdog(dir string, log *slog.Logger) *watchdog {
	return &watchdog{
		dir: dir, log: log, begun: map[uint64]time.Time{}, hung: make(chan struct{}), metrics: newDiskMetrics(),
		alone: func() bool { return true }, stays: func() bool { return true }, onLow: func() {}, onHang: func() {}, onLook: func(time.Duration) {}, fail: func(error) {},
	}
}

// begin notes that a write is under way until the func that it returns is called.
func (w *watchdog) begin() (end func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.seq++
	id := w.seq
	w.begun[id] = time.Now()
	return func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		delete(w.begun, id)
	}
}

// DiskState is how the disk of a node fares.
type DiskState struct {
	Dir  string        // "" in memory
	Age  time.Duration // of the oldest write that is under way
	Hung bool          // and that is too long
	Low  bool          // little room is left: nothing new is written
	Free uint64        // bytes
}

func (w *watchdog) state(now time.Time) DiskState {
	w.mu.Lock()
	defer w.mu.Unlock()
	d := DiskState{Dir: w.dir, Low: w.low, Free: w.free}
	for _, at := range w.begun {
		d.Age = max(d.Age, now.Sub(at))
	}
	d.Hung = w.isHung || d.Age >= hangAfter
	return d
}

// waitForRoom notes that a write waits until there is space again.
func (w *watchdog) waitForRoom(n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.full += n
	if n > 0 {
		w.low = true
	}
}

// hangs gives a channel that is closed while the disk hangs.
func (w *watchdog) hangs() <-chan struct{} {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.hung
}

// errHangs is what a leader whose disk hangs tells those who ask it: nothing of
// what they want was begun, and another server should be asked.
var errHangs = fmt.Errorf("consensus: this server's disk hangs, it does not lead: %w", catalog.ErrNoLeader)

// errHandsOver is what a leader says while it gives leadership to another.
var errHandsOver = fmt.Errorf("consensus: this server's disk is nearly full, another one will lead: %w", catalog.ErrNoLeader)

// refuseLead says why this server must not act as leader, nil when it may.
func (w *watchdog) refuseLead() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.isHung {
		return errHangs
	}
	return nil
}

// refuseWrite says why nothing new is written through this server, nil when it is.
func (w *watchdog) refuseWrite() error {
	w.mu.Lock()
	hung, low, free := w.isHung, w.low, w.free
	w.mu.Unlock()
	switch {
	case hung:
		return errHangs
	case low && !w.stays():
		return errHandsOver
	case low:
		return unavailable("nothing was written: the leader has %d MiB left on the disk of %s, too little to go on writing; free some space there",
			free>>20, w.dir)
	}
	return nil
}

// run watches until done is closed.
func (w *watchdog) run(done <-chan struct{}) {
	var wg sync.WaitGroup
	if w.probe != nil {
		// A probe of a disk that hangs for ever is left behind: the process ends.
		go w.probes(done)
	}
	if w.space != nil {
		go w.measures(done) // which touches the disk, too
	}
	defer wg.Wait()
	t := time.NewTicker(lookEvery)
	defer t.Stop()
	last := time.Now()
	for {
		select {
		case <-t.C:
		case <-done:
			return
		}
		now := time.Now()
		lag := max(0, now.Sub(last)-lookEvery)
		last = now
		if lag > suspended {
			w.forgive(lag)
		}
		w.onLook(lag)
		w.look(now)
	}
}

// forgive takes a time in which this process did not run off the age of writes.
func (w *watchdog) forgive(lag time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for id, at := range w.begun {
		w.begun[id] = at.Add(lag)
	}
}

// measures looks after the space on the disk. It is apart from the judge, which must
// go on while the disk hangs.
func (w *watchdog) measures(done <-chan struct{}) {
	t := time.NewTicker(probeEvery)
	defer t.Stop()
	for {
		w.measure()
		select {
		case <-t.C:
		case <-done:
			return
		}
	}
}

func (w *watchdog) probes(done <-chan struct{}) {
	t := time.NewTicker(probeEvery)
	defer t.Stop()
	for {
		select {
		case <-t.C:
		case <-done:
			return
		}
		end, start := w.begin(), time.Now()
		err := w.probe()
		end()
		w.metrics.probe.Observe(time.Since(start).Seconds())
		select {
		case <-done:
			return
		default:
		}
		if err != nil && !noSpace(err) {
			w.fail(err)
			return
		}
	}
}

// look judges by the oldest write that is under way.
func (w *watchdog) look(now time.Time) {
	w.mu.Lock()
	var age time.Duration
	for _, at := range w.begun {
		age = max(age, now.Sub(at))
	}
	was, full := w.isHung, w.full > 0
	w.mu.Unlock()
	hung := (age >= hangAfter || full) && !w.alone()
	if age >= hangFatal && !full {
		w.fail(fmt.Errorf("%w: a write to %s has taken %s", ErrHung, w.dir, age.Round(time.Second)))
		return
	}
	if hung == was {
		return
	}
	w.mu.Lock()
	w.isHung = hung
	if hung {
		close(w.hung)
	} else {
		w.hung = make(chan struct{})
	}
	w.mu.Unlock()
	if hung {
		w.metrics.hung.Set(1)
		reason := "a write has not ended"
		if full {
			reason = "there is no space left"
		}
		w.log.Error("the disk hangs: this server does not lead, and answers no consistent reads, until it is well",
			"dir", w.dir, "reason", reason, "dur", age.Round(time.Millisecond))
		w.onHang()
		return
	}
	w.metrics.hung.Set(0)
	w.log.Warn("the disk answers again", "dir", w.dir)
}

// marks are how much must be free: below low nothing new is written, from high on
// it is again. A small disk has small marks.
func marks(total uint64) (low, high uint64) {
	low = reserveSize(total)
	return low, low + low/4
}

func (w *watchdog) measure() {
	free, total, err := w.space()
	if err != nil {
		w.log.Debug("the free space is not known", "dir", w.dir, "err", err)
		return
	}
	low, high := marks(total)
	w.mu.Lock()
	was := w.low
	switch {
	case free < low:
		w.low = true
	case free >= high && w.full == 0:
		w.low = false
	}
	is := w.low
	w.free = free
	w.mu.Unlock()
	w.metrics.free.Set(float64(free))
	switch {
	case is && !was:
		w.metrics.low.Set(1)
		w.log.Error("the disk is nearly full: this server hands leadership over and writes nothing new until there is room",
			"dir", w.dir, "free_mib", free>>20, "need_mib", high>>20)
	case was && !is:
		w.metrics.low.Set(0)
		w.log.Warn("there is room on the disk again", "dir", w.dir, "free_mib", free>>20)
	}
	if is {
		w.onLow()
	} else if err := w.reserve.keep(free, total); err != nil {
		w.log.Debug("no reserve is kept", "file", w.reserve.file, "err", err)
	}
}

// release gives the reserve back to the disk, so that a term, a vote and a backup
// can still be written. It reports false when there was none.
func (w *watchdog) release() bool {
	if !w.reserve.release() {
		return false
	}
	w.log.Warn("the disk is full: the reserve was given up", "file", filepath.Join(w.dir, reserveFile))
	return true
}
