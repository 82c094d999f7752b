package agent

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/weftmesh/weft/agent/local"
	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/catalog/wire"
	"github.com/weftmesh/weft/connect/enroll"
)

// Report is what an agent can say of its standing without asking anybody.
type Report struct {
	Members, Failed int // of the cluster, this host included
	Servers         int // that this host knows; 0 beside a server
	// Server is the one that is spoken to, "" for none or the one in this process.
	Server    string
	Connected bool
	// Joined tells whether this host has, or needs no, certificate; NotAfter is its end.
	Joined   bool
	NotAfter time.Time
	Services int
	Proxies  int
	// Refused is why the last attempt to join or to renew the certificate failed, Unstated
	// why what this host registers does not reach the catalog, local.ErrUnstated before it was
	// tried. Nil: nothing of the kind.
	Refused, Unstated error
	// Turned is why, at TurnedAt, other servers turned the server beside this agent away.
	Turned   error
	TurnedAt time.Time
}

// ReportOf takes the locks that all work of an agent needs, and so also shows that
// the agent is alive.
func ReportOf(a *Agent) Report {
	r := Report{Joined: true, Connected: a.remote.Connected(), Server: a.remote.Server(), Services: len(a.local.Host().Services)}
	r.Proxies = len(a.sidecars.Status())
	if a.gossip != nil {
		for _, m := range a.gossip.Members() {
			switch m.Status {
			case catalog.MemberFailed:
				r.Failed++
				r.Members++
			case catalog.MemberAlive:
				r.Members++
			}
		}
	}
	if a.cfg.Pool != nil {
		r.Servers = len(a.cfg.Pool.Servers())
	}
	if c := a.cfg.Credentials; c != nil {
		r.Joined, r.NotAfter, r.Refused = c.Ready(), c.NotAfter(), c.Failure()
	}
	if t := a.joiner.turnedAway.Load(); t != nil {
		r.Turned, r.TurnedAt = t.err, t.at
	}
	r.Unstated = a.local.Failure()
	return r
}

// String is one line for people.
func (r Report) String() string {
	parts := []string{fmt.Sprintf("%d of %d members alive", r.Members-r.Failed, r.Members)}
	switch {
	case !r.Joined:
		parts = append(parts, "waiting for a server to let this host in")
	case r.Server == "" && r.Connected:
	case r.Connected:
		parts = append(parts, "server "+r.Server)
	default:
		parts = append(parts, "no server answers, what is known goes on being served")
	}
	parts = append(parts, fmt.Sprintf("%d services, %d proxies", r.Services, r.Proxies))
	return strings.Join(parts, "; ")
}

// words say how the agent fares, and what to do about what is not well.
func (r Report) words() map[string]string {
	out := map[string]string{}
	what, hint := r.standing()
	wire.Stated(out, "agent", what, hint)
	switch {
	case r.Unstated == nil:
		wire.Stated(out, "catalog", fmt.Sprintf("has what this host registers: %d services", r.Services), "")
	case errors.Is(r.Unstated, local.ErrUnstated):
		wire.Stated(out, "catalog", fmt.Sprintf("was not told since the start what this host registers: %d services", r.Services), "")
	default:
		wire.Stated(out, "catalog", "lacks what this host registers: "+line(r.Unstated), "")
	}
	what, hint = fmt.Sprintf("%d of %d are alive", r.Members-r.Failed, r.Members), ""
	if r.Failed > 0 {
		hint = "`weft members -status=failed` names the others; `weft force-leave NAME` says of one that it does not come back"
	}
	wire.Stated(out, "members", what, hint)
	return out
}

func (r Report) standing() (what, hint string) {
	const reach = "mend what the reason names; where none answers: do the servers run, and is TCP 8300 open from here to them? retry_join names where they are looked for"
	var refusal *enroll.Refusal
	switch {
	case r.Turned != nil:
		return fmt.Sprintf("speaks to the server in this process, which others turned away at %s: %s", r.TurnedAt.UTC().Format(time.RFC3339), line(r.Turned)),
			"unless it leads or follows a leader by now, do what the reason says"
	case !r.Joined && errors.As(r.Refused, &refusal):
		return "has joined no cluster: " + line(r.Refused), "" // a refusal says what to do
	case !r.Joined && r.Refused != nil:
		return "has joined no cluster: " + line(r.Refused), reach
	case !r.Joined:
		return "has joined no cluster yet", ""
	case r.Server == "" && r.Connected:
		return "speaks to the server in this process", ""
	case !r.Connected && errors.As(r.Refused, &refusal):
		return "the servers turn this host away: " + line(r.Refused) + "; what is known goes on being served", ""
	case !r.Connected:
		return "no server answers; what is known goes on being served", reach
	case r.Refused != nil:
		return fmt.Sprintf("is connected to the server %s; its certificate, good until %s, was not renewed: %s",
			r.Server, r.NotAfter.UTC().Format(time.RFC3339), line(r.Refused)), "nothing, unless it stays so: it is tried again"
	}
	return "is connected to the server " + r.Server, ""
}

// line is an error in one line.
func line(err error) string { return strings.Join(strings.Split(err.Error(), "\n"), "; ") }

// stats are the sections of `weft info` that an agent fills, with a server beside it or not.
func (a agentStats) sections() map[string]map[string]string {
	r := ReportOf(a.agent)
	out := map[string]map[string]string{wire.StatsState: r.words()}
	if a.agent.gossip != nil {
		out["serf_lan"] = map[string]string{
			"members": strconv.Itoa(r.Members), "failed": strconv.Itoa(r.Failed), "encrypted": "true",
		}
	}
	if a.agent.cfg.Pool == nil {
		return out
	}
	own := map[string]string{
		"server": "false", "known_servers": strconv.Itoa(r.Servers), "connected": strconv.FormatBool(r.Connected),
		"joined": strconv.FormatBool(r.Joined),
	}
	if r.Connected {
		own["connected_to"] = r.Server
	}
	if !r.NotAfter.IsZero() {
		own["certificate_until"] = r.NotAfter.UTC().Format(time.RFC3339)
	}
	out["consul"] = own
	return out
}

// agentStats gives an agent's sections of `weft info`.
type agentStats struct{ agent *Agent }

// hosts is how many members the cluster has, at least this one.
func hosts(g Gossip) func() int {
	return func() int {
		if g == nil {
			return 1
		}
		return max(len(g.Members()), 1)
	}
}
