package checks

import (
	"context"
	"sync"
	"time"

	"github.com/weftmesh/weft/catalog"
)

// TTL is a check that is told its status, and turns critical when it is not told
// again in time.
type TTL struct {
	ttl     time.Duration
	maxSize int
	report  Report
	moved   chan struct{} // the deadline changed

	mu       sync.Mutex
	deadline time.Time // zero: expired, until the next Update
	last     string
}

// NewTTL returns the runner of a valid TTL definition. remaining is the time until
// it expires when its last Update was before a restart; zero means a whole TTL.
func NewTTL(def *catalog.CheckDefinition, report Report, remaining time.Duration, lastOutput string) *TTL {
	if remaining <= 0 || remaining > def.TTL {
		remaining = def.TTL
	}
	return &TTL{
		ttl:      def.TTL,
		maxSize:  def.OutputMaxSize,
		report:   report,
		moved:    make(chan struct{}, 1),
		deadline: time.Now().Add(remaining),
		last:     lastOutput,
	}
}

// Update reports status and output at once, cut to the size of the definition, and
// starts the time anew. It returns when the status will expire.
func (t *TTL) Update(status catalog.Status, output string) (shown string, expires time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	output = Truncate(output, t.maxSize)
	t.last = output
	t.deadline = time.Now().Add(t.ttl)
	t.report(status, output)
	select {
	case t.moved <- struct{}{}:
	default:
	}
	return output, t.deadline
}

// Run implements Runner.
func (t *TTL) Run(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.moved:
		case <-timer.C:
		}
		if left := t.expire(); left > 0 {
			timer.Reset(left)
		} else {
			timer.Stop()
		}
	}
}

// expire reports an expiry when it is time and returns the time left until one, 0
// when there is none to wait for.
func (t *TTL) expire() time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.deadline.IsZero() {
		return 0
	}
	if left := time.Until(t.deadline); left > 0 {
		return left
	}
	t.deadline = time.Time{}
	output := "TTL expired"
	if t.last != "" {
		output += " (last output before timeout follows): " + t.last
	}
	t.report(catalog.StatusCritical, output)
	return 0
}
