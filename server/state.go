package server

import (
	"cmp"
	"fmt"
	"strconv"
	"time"

	"github.com/weftmesh/weft/catalog/wire"
	"github.com/weftmesh/weft/server/consensus"
)

// statsOf are this server's sections of `weft info`.
func statsOf(s *Server) map[string]map[string]string {
	addr, self, _ := s.raft.Leader() // none known is an answer
	return map[string]map[string]string{
		wire.StatsState: stateOf(s),
		"consul": {
			"server": "true", "bootstrap": strconv.FormatBool(s.cfg.Bootstrap), "known_datacenters": "1",
			"leader": strconv.FormatBool(self), "leader_addr": addr,
		},
		"raft": s.raft.Stats(),
	}
}

// stateOf says in words how this server fares, and what to do about what is not well.
func stateOf(s *Server) map[string]string {
	out := map[string]string{}
	what, hint := standingWords(s)
	wire.Stated(out, "server", what, hint)
	if d := s.raft.Disk(); d.Dir != "" {
		what, hint = diskWords(d)
		wire.Stated(out, "disk", what, hint)
	}
	return out
}

func standingWords(s *Server) (what, hint string) {
	c, self := s.cluster, s.cfg.NodeID
	id, addr := s.raft.LeaderID()
	switch {
	case c == nil && id == self:
		return "leads; it is the only server (-dev)", ""
	case c == nil:
		return "does not lead yet", ""
	case s.raft.Fresh():
		return "is in no cluster yet: " + cmp.Or(c.founding.waitsFor(), "it has just started"),
			"the servers of a new cluster need the same bootstrap_expect and each other's addresses in retry_join; `weft members` shows whom this one sees"
	case c.dismissed.is():
		return "was removed from the cluster by an operator: it votes and serves no more",
			"restart it to let it join again; to take it away for good, stop it"
	case id == "":
		return c.lookout.why()
	}
	since := ""
	if at := c.lookout.leading(id); !at.IsZero() {
		since = " since " + stamp(at)
	}
	if id == self {
		return "leads" + since, ""
	}
	heard := ""
	if d := s.raft.LastContact(); d >= 0 {
		heard = fmt.Sprintf(", and heard from it %s ago", d.Round(time.Millisecond))
	}
	return fmt.Sprintf("follows %s (%s)%s%s", cmp.Or(s.leader.autopilot.name(id), id), addr, since, heard), ""
}

func diskWords(d consensus.DiskState) (what, hint string) {
	switch {
	case d.Hung:
		return fmt.Sprintf("hangs: a write to %s has taken %s; this server does not lead where another can, and answers no consistent reads", d.Dir, d.Age.Round(time.Millisecond)),
			"look at the disk, its controller or its network; after 30 s the process ends"
	case d.Low:
		return fmt.Sprintf("is nearly full: %d MiB are free on the disk of %s; this server hands leadership over and writes nothing new", d.Free>>20, d.Dir),
			"free some space there: it goes on within a second"
	}
	return fmt.Sprintf("answers; %d MiB are free (%s)", d.Free>>20, d.Dir), ""
}

// stamp is a time as the words above have it.
func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }
