package connect

import (
	"fmt"
	"log/slog"
	"sync"

	"github.com/weftmesh/weft/connect/tunnel"
)

// drivers shares the event loops among the proxies of a process: there are as many
// loops as processors, however many proxies run.
var drivers struct {
	mu    sync.Mutex
	users int
	d     tunnel.Driver
}

// shareDriver gives the driver of this process until release is called.
func shareDriver(log *slog.Logger) (d tunnel.Driver, release func(), err error) {
	s := &drivers
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.users == 0 {
		if s.d, err = newDriver(log); err != nil {
			return nil, nil, err
		}
	}
	s.users++
	return s.d, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.users--; s.users == 0 {
			_ = s.d.Close() // it reports nothing
			s.d = nil
		}
	}, nil
}

func newDriver(log *slog.Logger) (tunnel.Driver, error) {
	d, err := tunnel.New(tunnel.Config{Descriptors: NewGuard(GuardConfig{}).ceiling})
	if err == nil {
		return d, nil
	}
	log.Warn("no event loops, goroutines carry the connections: slower, and the same otherwise", "err", err)
	g, gerr := tunnel.NewGoroutines(tunnel.Config{})
	if gerr != nil {
		return nil, fmt.Errorf("neither event loops nor goroutines: %w, %w", err, gerr)
	}
	return g, nil
}
