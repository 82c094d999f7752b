package httpapi

import (
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/catalog/acl"
	"github.com/weftmesh/weft/catalog/wire"
)

// agentAPI shows the agent itself and takes orders for it as a whole.
type agentAPI struct{ cfg Config }

func (a agentAPI) routes() []Route {
	get := func(path, summary string, perm Permission, params []Param, f func(*call) (any, error)) Route {
		return Route{
			Method: http.MethodGet, Path: "/v1/agent/" + path, Summary: summary, Params: params,
			Permission: perm, MaxBody: bodyNone, params: paramsToken, local: true, handle: f,
		}
	}
	put := func(path, summary string, perm Permission, params []Param, f func(*call) (any, error)) Route {
		r := get(path, summary, perm, params, f)
		r.Method = http.MethodPut
		return r
	}
	read, write := Permission{acl.Read, acl.Agent, ""}, Permission{acl.Write, acl.Agent, ""}
	operate := Permission{acl.Write, acl.Operator, ""}
	wan := Param{"wan", "accepted: there is one datacenter"}
	monitor := get("monitor", "the agent's log as it is written", read, []Param{
		{"loglevel", "the least level: trace, debug, info (default), warn, error"}, {"logjson", "one JSON object a line"},
	}, a.monitor)
	monitor.stream = true
	return []Route{
		get("self", "the agent: its configuration, its member of gossip, counters", read, nil, a.self),
		get("version", "the version of the binary", Permission{}, nil, a.version),
		get("members", "the participants in gossip", Permission{acl.Read, acl.Node, ""}, []Param{wan, {"segment", "refused"}, paramFilter}, a.members),
		get("host", "processor, memory and disk of the host", Permission{acl.Read, acl.Operator, ""}, nil, a.host),
		monitor,
		put("join/:address", "join the gossip of another agent", write, []Param{wan}, a.join),
		put("leave", "leave gracefully and stop", write, nil, a.leave),
		put("force-leave/:node", "declare a failed member gone", operate, []Param{{"prune", "forget it too"}, wan}, a.forceLeave),
		put("reload", "read the configuration again", write, nil, a.reload),
		put("maintenance", "take every service of this host out of discovery, or back in", Permission{acl.Write, acl.Node, ""},
			[]Param{paramEnable, paramReason}, a.maintenance),
	}
}

type selfView struct {
	Config      selfConfigView
	DebugConfig map[string]any
	Coord       *coordView
	Member      memberView
	Stats       map[string]map[string]string
	Meta        map[string]string
	XDS         xdsView `json:"xDS"`
}

type selfConfigView struct {
	Datacenter        string
	PrimaryDatacenter string
	NodeName          string
	NodeID            string
	Revision          string
	Server            bool
	Version           string
	BuildDate         string
}

// coordView is where the host is, null where it does not tell.
type coordView struct {
	Vec        []float64
	Error      float64
	Adjustment float64
	Height     float64
}

// xdsView tells clients that look for Envoy's port that none is served.
type xdsView struct {
	SupportedProxies map[string][]string
	Port             int
	Ports            struct{ Plaintext, TLS int }
}

func (a agentAPI) self(c *call) (any, error) {
	s, host := a.cfg.Self, a.cfg.Local.Host()
	v := selfView{
		Config: selfConfigView{
			Datacenter: s.Datacenter, PrimaryDatacenter: s.PrimaryDatacenter, NodeName: s.NodeName, NodeID: s.NodeID,
			Revision: s.Revision, Server: s.Server, Version: s.Version, BuildDate: s.BuildDate.UTC().Format(time.RFC3339),
		},
		DebugConfig: map[string]any{},
		Stats:       map[string]map[string]string{},
		XDS:         xdsView{SupportedProxies: map[string][]string{"envoy": {}}, Port: s.GRPCPort},
	}
	v.XDS.Ports.Plaintext, v.XDS.Ports.TLS = s.GRPCPort, s.GRPCTLSPort
	if s.Coordinate != nil {
		at := coordView(s.Coordinate())
		v.Coord = &at
	}
	if s.Debug != nil {
		v.DebugConfig = notNilMap(s.Debug())
	}
	if host.Node != nil {
		v.Meta = host.Node.Meta
	}
	v.Meta = notNilMap(v.Meta)
	v.Member = viewMember(a.ownMember())
	a.addStats(c, v.Stats)
	return v, nil
}

func (a agentAPI) ownMember() catalog.Member {
	if a.cfg.Members != nil {
		for _, m := range a.cfg.Members.Members() {
			if m.Name == a.cfg.Self.NodeName {
				return m
			}
		}
	}
	return catalog.Member{Name: a.cfg.Self.NodeName, ID: a.cfg.Self.NodeID}
}

// addStats collects what this agent and the server beside it count. A server that
// does not answer is left out: this page is read when things go wrong.
func (a agentAPI) addStats(c *call, into map[string]map[string]string) {
	if a.cfg.Self.Server {
		if st, err := a.cfg.Servers.Status(c.ctx(), &wire.StatusRequest{Token: c.token}); err == nil {
			maps.Copy(into, st.Stats)
		}
	}
	if a.cfg.Self.Stats != nil {
		for section, values := range a.cfg.Self.Stats() {
			if into[section] == nil {
				into[section] = map[string]string{}
			}
			maps.Copy(into[section], values) // both say what their state is
		}
	}
	host := a.cfg.Local.Host()
	into["agent"] = map[string]string{"services": strconv.Itoa(len(host.Services)), "checks": strconv.Itoa(len(host.Checks))}
}

func (a agentAPI) version(*call) (any, error) {
	s := a.cfg.Self
	return struct{ SHA, BuildDate, HumanVersion, FIPS string }{
		s.Revision, s.BuildDate.UTC().Format(time.RFC3339), orString(s.Version, "dev"), "",
	}, nil
}

func (a agentAPI) members(c *call) (any, error) {
	if c.query.Get("segment") != "" && c.query.Get("segment") != "_all" {
		return nil, internal("Network segments are not supported in this version")
	}
	f, err := newFilter[memberView](c.query.Get("filter"))
	if err != nil {
		return nil, err
	}
	if a.cfg.Members == nil {
		return []memberView{}, nil
	}
	members := a.cfg.Members.Members()
	out := make([]memberView, 0, len(members))
	for _, m := range members {
		out = append(out, viewMember(m))
	}
	return f.slice(out)
}

func (a agentAPI) control() (Control, error) {
	if a.cfg.Control == nil {
		return nil, errNotOffered("control of the agent")
	}
	return a.cfg.Control, nil
}

func (a agentAPI) join(c *call) (any, error) {
	ctl, err := a.control()
	if err != nil {
		return nil, err
	}
	if c.tail == "" {
		return nil, badRequest("Missing address to join")
	}
	wan, err := c.boolParam("wan")
	if err != nil {
		return nil, err
	}
	if err := ctl.Join(c.ctx(), c.tail, wan); err != nil {
		return nil, internal(err.Error())
	}
	return nil, nil
}

func (a agentAPI) leave(c *call) (any, error) {
	ctl, err := a.control()
	if err != nil {
		return nil, err
	}
	return nil, ctl.Leave(c.ctx())
}

func (a agentAPI) forceLeave(c *call) (any, error) {
	ctl, err := a.control()
	if err != nil {
		return nil, err
	}
	prune, err := c.boolParam("prune")
	if err != nil {
		return nil, err
	}
	if c.tail == "" {
		return nil, internal("agent: No node found with name ''")
	}
	if err := ctl.ForceLeave(c.ctx(), c.tail, prune); err != nil {
		return nil, internal(err.Error())
	}
	return nil, nil
}

func (a agentAPI) reload(c *call) (any, error) {
	ctl, err := a.control()
	if err != nil {
		return nil, err
	}
	if err := ctl.Reload(c.ctx()); err != nil {
		return nil, internal("Reload failed, the running configuration stays: " + err.Error())
	}
	return nil, nil
}

func (a agentAPI) maintenance(c *call) (any, error) {
	on, reason, err := c.maintenanceParams()
	if err != nil {
		return nil, err
	}
	return nil, a.cfg.Local.NodeMaintenance(on, reason)
}

// levels are the names of log levels, as Consul has them.
var levels = map[string]slog.Level{
	"": slog.LevelInfo, "trace": slog.LevelDebug - 4, "debug": slog.LevelDebug, "info": slog.LevelInfo,
	"warn": slog.LevelWarn, "warning": slog.LevelWarn, "error": slog.LevelError, "err": slog.LevelError,
}

func (a agentAPI) monitor(c *call) (any, error) {
	name := c.query.Get("loglevel")
	level, ok := levels[strings.ToLower(name)]
	if !ok {
		return nil, badRequest("Unknown log level: " + name)
	}
	asJSON, err := c.boolParam("logjson")
	if err != nil {
		return nil, err
	}
	if a.cfg.Monitor == nil {
		return nil, errNotOffered("its log")
	}
	h := c.w.Header()
	h.Set("Content-Type", "text/plain; charset=utf-8")
	c.w.WriteHeader(http.StatusOK)
	w := &flushingWriter{c.w, http.NewResponseController(c.w)}
	if err := w.rc.Flush(); err != nil {
		return nil, fmt.Errorf("this connection cannot stream: %w", err)
	}
	return nil, a.cfg.Monitor.Monitor(c.ctx(), level, asJSON, w)
}

// flushingWriter sends every write at once and bounds how long it may take.
type flushingWriter struct {
	w  io.Writer
	rc *http.ResponseController
}

// Write implements io.Writer.
func (f *flushingWriter) Write(b []byte) (int, error) {
	_ = f.rc.SetWriteDeadline(time.Now().Add(writeTimeout)) // writers of tests have none
	n, err := f.w.Write(b)
	if err != nil {
		return n, err
	}
	return n, f.rc.Flush()
}
