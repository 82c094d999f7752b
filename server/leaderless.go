package server

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/weftmesh/weft/catalog/wire"
)

const (
	// leaderlessAfter is how long nobody may lead before that is said.
	leaderlessAfter = 10 * time.Second
	leaderlessLook  = 2 * time.Second
	// findAgain is how often it is looked who does not answer.
	findAgain = 10 * time.Second
)

// leaderless says in the log that nobody leads, who does not answer, and what to do:
// Raft's own lines tell of elections.
type leaderless struct {
	self  string // node ID
	peers func() ([]wire.RaftPeer, error)
	// leads gives the ID of the leader, and whether one is known or this server is in no
	// cluster.
	leads     func() (leader string, ok bool)
	standings func(ctx context.Context, whom map[string]string) map[string]*wire.StandingReply
	log       *slog.Logger

	mu          sync.Mutex
	since, said time.Time // zero: there is a leader; nothing was said
	leader      string    // as it was seen last
	led         time.Time // since when
	found       found     // why nobody leads
}

// found is what a look found out while nobody led.
type found struct {
	at     time.Time
	voters int
	needed int
	silent []string
	hint   string
}

// run looks until ctx ends.
func (l *leaderless) run(ctx context.Context) {
	tick := time.NewTicker(leaderlessLook)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			l.look(ctx, time.Now())
		}
	}
}

func (l *leaderless) look(ctx context.Context, now time.Time) {
	if !l.misses(now) {
		return
	}
	peers, err := l.peers()
	if err != nil {
		return // this server stops
	}
	others, voters := map[string]string{}, 0
	for _, p := range peers {
		if p.Voter {
			voters++
			others[p.ID] = p.Address
		}
	}
	delete(others, l.self)
	answers := l.standings(ctx, others)
	f := found{at: now, voters: voters, needed: voters/2 + 1}
	for id, addr := range others {
		if answers[id] == nil {
			f.silent = append(f.silent, cmp.Or(addr, id))
		}
	}
	slices.Sort(f.silent)
	f.hint = "start the servers that do not answer, or make them reachable from here; if they are lost for ever, with their disks: weft operator recover -help"
	if voters-len(f.silent) >= f.needed {
		f.hint = "enough servers answer this one: do they reach each other, and does each keep up with its disk and its clock? Their logs say what each waits for"
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.found = f
	if now.Sub(l.said) < sayAgain {
		return
	}
	l.said = now
	l.log.Error("nobody leads: writes and consistent reads fail, and what is known goes on being served", "voters", f.voters, "needed", f.needed,
		"silent", strings.Join(f.silent, " "), "dur", now.Sub(l.since).Round(time.Second), "hint", f.hint)
}

// misses tells whether it is time to find out why nobody leads.
func (l *leaderless) misses(now time.Time) bool {
	leader, ok := l.leads()
	l.mu.Lock()
	defer l.mu.Unlock()
	if leader != l.leader {
		l.leader, l.led = leader, now
	}
	if ok {
		if !l.said.IsZero() {
			l.log.Info("there is a leader again", "dur", now.Sub(l.since).Round(time.Second))
		}
		l.since, l.said, l.found = time.Time{}, time.Time{}, found{}
		return false
	}
	if l.since.IsZero() {
		l.since = now
	}
	return now.Sub(l.since) >= leaderlessAfter && now.Sub(l.found.at) >= findAgain
}

// leading is since when somebody leads, zero when that is too fresh to be known.
func (l *leaderless) leading(id string) time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.leader != id {
		return time.Time{}
	}
	return l.led
}

// why says why nobody leads, and what to do about it.
func (l *leaderless) why() (what, hint string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.found.at.IsZero() {
		return "nobody leads; an election takes a moment", ""
	}
	what = fmt.Sprintf("nobody leads since %s: writes and consistent reads fail, and what is known goes on being served; %d of %d servers are needed",
		stamp(l.since), l.found.needed, l.found.voters)
	if len(l.found.silent) > 0 {
		what += ", and these do not answer: " + strings.Join(l.found.silent, " ")
	}
	return what, l.found.hint
}
