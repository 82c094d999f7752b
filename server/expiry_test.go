package server

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"github.com/weftmesh/weft/catalog"
)

// timedStore is a store that holds sessions and delays, and a log that ends them.
type timedStore struct {
	mu       sync.Mutex
	sessions catalog.Latest[*catalog.View]
	delays   catalog.Latest[*catalog.View]
	ttls     []string
	ended    []string
	at       []time.Duration // since the beginning
	begin    time.Time
	fails    int // how many commands fail
}

func (s *timedStore) WatchOwn(q catalog.Query) catalog.Watch[*catalog.View] {
	if q.Kind == catalog.QuerySessions {
		return &s.sessions
	}
	return &s.delays
}

func (s *timedStore) Apply(_ context.Context, cmd catalog.Command) (uint64, any, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fails > 0 {
		s.fails--
		return 0, nil, catalog.ErrNoLeader
	}
	switch c := cmd.(type) {
	case *catalog.DestroySessions:
		s.ended = append(s.ended, c.IDs...)
		s.ttls = slices.DeleteFunc(s.ttls, func(ttl string) bool { return slices.Contains(c.IDs, "s"+ttl) })
		s.publish()
	case *catalog.EndKeyDelays:
		for _, d := range c.Delays {
			s.ended = append(s.ended, d.Key+"@"+strconv.FormatUint(d.ModifyIndex, 10))
		}
	}
	s.at = append(s.at, time.Since(s.begin))
	return 1, nil, nil
}

func (s *timedStore) has(ttls ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ttls = ttls
	s.publish()
}

func (s *timedStore) publish() {
	v := &catalog.View{}
	for _, ttl := range s.ttls {
		v.Sessions = append(v.Sessions, &catalog.Session{ID: "s" + ttl, TTL: ttl})
	}
	s.sessions.Publish(v)
}

// over is what ended so far.
func (s *timedStore) over() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.ended)
}

func (s *timedStore) first() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.at[0]
}

func startExpiry(t *testing.T) (*timedStore, *expiry, func()) {
	s := &timedStore{begin: time.Now()}
	e, err := newExpiry(s, s, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); e.run(ctx) }()
	return s, e, func() { cancel(); <-done }
}

func TestSessionsExpire(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, e, stop := startExpiry(t)
		defer stop()
		s.has("10s", "30s", "")
		synctest.Wait()
		if n := e.sessions.len(); n != 2 {
			t.Fatalf("%d sessions have timers", n)
		}
		for range 5 {
			time.Sleep(15 * time.Second)
			if !e.Renew("s30s") {
				t.Fatal("a session that lives could not be renewed")
			}
		}
		synctest.Wait()
		if !slices.Equal(s.over(), []string{"s10s"}) || s.first() != 20*time.Second {
			t.Fatalf("ended %v", s.over())
		}
		time.Sleep(61 * time.Second)
		synctest.Wait()
		if !slices.Equal(s.over(), []string{"s10s", "s30s"}) {
			t.Fatalf("ended %v", s.over())
		}
		var m dto.Metric
		if err := e.expired.Write(&m); err != nil || m.GetCounter().GetValue() != 2 {
			t.Fatalf("%v sessions are counted: %v", m.GetCounter().GetValue(), err)
		}
		if !e.Renew("just made") {
			t.Fatal("a session that the timers have yet to hear of could not be renewed")
		}
	})
}

func TestEndsAreTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, e, stop := startExpiry(t)
		defer stop()
		s.fails = 2
		s.has("10s")
		synctest.Wait()
		time.Sleep(21 * time.Second)
		if e.Renew("s10s") {
			t.Fatal("it is not known whether the session ended, and it was renewed")
		}
		time.Sleep(2 * expiryRetry)
		synctest.Wait()
		if len(s.over()) != 1 {
			t.Fatalf("ended %v", s.over())
		}
	})
}

func TestDelaysEndEachByItself(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, _, stop := startExpiry(t)
		defer stop()
		delay := func(at uint64) *catalog.View {
			return &catalog.View{Delays: []*catalog.KeyDelay{{Key: "k", Delay: 15 * time.Second, RaftIndex: catalog.RaftIndex{ModifyIndex: at}}}}
		}
		s.delays.Publish(delay(7))
		synctest.Wait()
		time.Sleep(10 * time.Second)
		s.delays.Publish(delay(9)) // held and lost once more
		synctest.Wait()
		time.Sleep(14 * time.Second)
		if len(s.over()) != 0 {
			t.Fatalf("ended %v early", s.over())
		}
		time.Sleep(time.Second + time.Millisecond)
		synctest.Wait()
		if !slices.Equal(s.over(), []string{"k@9"}) {
			t.Fatalf("ended %v", s.over())
		}
	})
}

func TestANewLeaderStartsTimersAnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, e, stop := startExpiry(t)
		s.has("10s")
		synctest.Wait()
		time.Sleep(19 * time.Second)
		stop()
		if e.sessions.len() != 0 {
			t.Fatal("timers outlive leadership")
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); e.run(ctx) }()
		time.Sleep(19 * time.Second)
		if len(s.over()) != 0 {
			t.Fatalf("ended %v", s.over())
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if len(s.over()) != 1 {
			t.Fatalf("ended %v", s.over())
		}
		s.sessions.Close(errors.New("store closed"))
		s.delays.Close(errors.New("store closed"))
		cancel()
		<-done
	})
}
