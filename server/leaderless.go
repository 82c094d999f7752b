package server

import (
	"cmp"
	"context"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/weftmesh/weft/catalog/wire"
)

const (
	// leaderlessAfter is how long nobody may lead before that is said.
	leaderlessAfter = 10 * time.Second
	leaderlessLook  = 2 * time.Second
)

// leaderless says in the log that nobody leads, who does not answer, and what to do:
// Raft's own lines tell of elections.
type leaderless struct {
	self  string // node ID
	peers func() ([]wire.RaftPeer, error)
	// leads tells whether this server knows of a leader, or is in no cluster yet.
	leads     func() bool
	standings func(ctx context.Context, whom map[string]string) map[string]*wire.StandingReply
	log       *slog.Logger

	since, said time.Time // zero: there is a leader; nothing was said
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
	switch {
	case l.leads():
		if !l.said.IsZero() {
			l.log.Info("there is a leader again", "dur", now.Sub(l.since).Round(time.Second))
		}
		l.since, l.said = time.Time{}, time.Time{}
		return
	case l.since.IsZero():
		l.since = now
		return
	case now.Sub(l.since) < leaderlessAfter, now.Sub(l.said) < sayAgain:
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
	var silent []string
	for id, addr := range others {
		if answers[id] == nil {
			silent = append(silent, cmp.Or(addr, id))
		}
	}
	slices.Sort(silent)
	needed := voters/2 + 1
	hint := "start the servers that do not answer, or make them reachable from here; if they are lost for ever, with their disks: weft operator recover -help"
	if voters-len(silent) >= needed {
		hint = "enough servers answer this one: do they reach each other, and does each keep up with its disk and its clock? Their logs say what each waits for"
	}
	l.said = now
	l.log.Error("nobody leads: writes and consistent reads fail, and what is known goes on being served", "voters", voters, "needed", needed,
		"silent", strings.Join(silent, " "), "dur", now.Sub(l.since).Round(time.Second), "hint", hint)
}
