package agent

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/weftmesh/weft/catalog"
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
		r.Joined, r.NotAfter = c.Ready(), c.NotAfter()
	}
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

// stats are the sections of `weft info` that an agent fills, with a server beside it or not.
func (a agentStats) sections() map[string]map[string]string {
	r := ReportOf(a.agent)
	out := map[string]map[string]string{}
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
