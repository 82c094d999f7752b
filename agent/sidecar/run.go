package sidecar

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/connect"
)

// A proxy is asked often whether it listens until it does, then now and then.
// That it does not is no news while it starts: after a restart of the agent the
// check is passing still, and must not flap.
const (
	watchSoon   = 5 * time.Millisecond
	watchOften  = 100 * time.Millisecond
	watchSeldom = 2 * time.Second
	startGrace  = 3 * time.Second
)

// run assembles snapshots and runs the proxy until ctx ends and the proxy has
// drained. Policy stays live while it drains.
func (s *sidecar) run(ctx context.Context) {
	s.seed()
	s.mu.Lock() // halt may come at any time, and waits for what was begun before it
	if s.assembling.Err() == nil {
		s.busy.Go(func() { s.assemble(s.assembling) })
		if s.file != nil {
			s.busy.Go(func() { s.file.keep(s.assembling, s.id, &s.out, s.kept, s.log) })
		}
	}
	s.mu.Unlock()
	if s.external {
		s.outside.begin()
		<-ctx.Done()
	} else {
		s.serve(ctx)
	}
	s.halt()
	why := context.Cause(ctx)
	if !s.external && !errors.Is(why, errStopped) {
		// A proxy of this ID that is registered next does not listen yet.
		s.cfg.Listening(s.id, false, why.Error())
	}
	gone := errors.Is(why, errDeregistered)
	s.mu.Lock()
	captured := transparent(s.in.proxy)
	s.mu.Unlock()
	if gone && captured {
		s.log.Warn("a proxy in transparent mode was deregistered; where the host still redirects connections to it, they are refused",
			"hint", "weft connect redirect-traffic -remove")
	}
	s.out.Close(fmt.Errorf("proxy %s: deregistered: %w", s.id, catalog.ErrNotFound))
	if gone && s.file != nil {
		if err := s.file.remove(); err != nil {
			s.log.Warn("files of a deregistered proxy stay", "file", s.file.dir, "err", err)
		}
	}
}

// halt ends the making and keeping of snapshots. The proxy goes on.
func (s *sidecar) halt() {
	s.mu.Lock()
	s.stopAssembling()
	s.mu.Unlock()
	s.busy.Wait()
}

// serve runs the proxy, again and again when it fails.
func (s *sidecar) serve(ctx context.Context) {
	pause := 250 * time.Millisecond
	for ctx.Err() == nil {
		began := time.Now()
		err := s.once(ctx)
		if ctx.Err() != nil {
			if err != nil && !errors.Is(err, context.Canceled) && !errors.Is(err, context.Cause(ctx)) {
				s.log.Warn("a proxy did not end well", "err", err)
			}
			return
		}
		if err == nil {
			err = errors.New("it ended without being asked to")
		}
		if time.Since(began) > s.cfg.MaxRetry {
			pause = 250 * time.Millisecond
		}
		s.fail(err, pause)
		if !sleep(ctx, pause) {
			return
		}
		pause = min(pause*2, s.cfg.MaxRetry)
	}
}

func (s *sidecar) fail(err error, pause time.Duration) {
	s.log.Error("a proxy failed; it is started again", "err", err, "dur", pause)
	s.mu.Lock()
	s.failure = err.Error()
	s.mu.Unlock()
	s.cfg.Listening(s.id, false, "the proxy failed: "+err.Error())
}

// once makes the proxy and runs it to its end.
func (s *sidecar) once(ctx context.Context) error {
	pc := connect.ProxyConfig{
		ID:      s.id,
		Signer:  s.cfg.Signer(s.service),
		Logger:  s.cfg.Logger,
		Metrics: s.cfg.Metrics, AccessLog: s.cfg.AccessLog, Guard: s.cfg.guard, Port: s.cfg.port, ShortCut: s.cfg.short,
		Sockets: s.cfg.Sockets,
	}
	if s.file != nil {
		pc.KeyFile = filepath.Join(s.file.dir, keyName)
	}
	p, err := s.cfg.start(pc)
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.current, s.failure = p, ""
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		s.current = nil
		s.mu.Unlock()
	}()
	watching, stop := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() { s.watchListening(watching, p) })
	err = p.Run(ctx, feed{s})
	stop()
	wg.Wait()
	return err
}

// watchListening reports whether the proxy takes connections: the fact behind the
// check "Connect Sidecar Listening".
func (s *sidecar) watchListening(ctx context.Context, p proxy) {
	began, pause := time.Now(), watchSoon
	said, saidWhy := false, ""
	for {
		on, why, failed := listening(p.Status())
		news := on != said || why != saidWhy
		if news && (on || failed || saidWhy != "" || time.Since(began) >= startGrace) {
			s.cfg.Listening(s.id, on, why)
			said, saidWhy = on, why
		}
		if on {
			pause = watchSeldom
		} else {
			pause = min(pause*3/2, watchOften)
		}
		if !sleep(ctx, pause) {
			return
		}
	}
}

// listening says whether a proxy takes connections; failed, whether it tried to and could not.
func listening(st connect.Status) (on bool, output string, failed bool) {
	switch {
	case st.Inbound != nil && st.Inbound.Listening && !st.Ready:
		return false, "the proxy listens on " + st.Inbound.Addr + " and can let nothing through: " + st.Problem, false
	case st.Inbound != nil && st.Inbound.Listening:
		return true, "the proxy listens on " + st.Inbound.Addr, false
	case st.Inbound != nil && st.Inbound.Error != "":
		return false, "the proxy does not listen on " + st.Inbound.Addr + ": " + st.Inbound.Error, true
	case st.Inbound == nil && st.Applied > 0:
		return true, "the proxy runs and has no inbound listener", false
	default:
		return false, "the proxy waits for its policy from the servers", false
	}
}

// status shows the proxy, running or not.
func (s *sidecar) status() connect.Status {
	s.mu.Lock()
	p, failure, problems := s.current, s.failure, s.problems
	s.mu.Unlock()
	st := connect.Status{Proxy: s.id, Service: s.service, Datacenter: s.cfg.Datacenter}
	switch {
	case s.external:
		st = s.outside.show()
		st.Proxy, st.Service, st.Datacenter, st.External = s.id, s.service, s.cfg.Datacenter, true
	case p != nil:
		st = p.Status()
		st.Proxy = s.id
	}
	if failure != "" {
		st.Problem = failure
	}
	if len(problems) > 0 {
		if st.Problem != "" {
			st.Problem += "; "
		}
		st.Problem += strings.Join(problems, "; ")
	}
	return st
}
