package httpapi

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/catalog/acl"
	"github.com/weftmesh/weft/catalog/wire"
)

// operatorAPI is for those who look after the servers.
type operatorAPI struct {
	cfg Config
	q   *queries
}

func (a operatorAPI) routes() []Route {
	const failed = http.StatusInternalServerError
	read, write := Permission{acl.Read, acl.Operator, ""}, Permission{acl.Write, acl.Operator, ""}
	get := func(path, summary string, f func(*call) (any, error)) Route {
		return Route{
			Method: http.MethodGet, Path: path, Summary: summary, Permission: read, MaxBody: bodyNone,
			params: paramsConsistency, invalid: failed, handle: f,
		}
	}
	usage := get("/v1/operator/usage", "how many nodes, services and instances there are", a.usage)
	usage.Params = []Param{{"global", "accepted: there is one datacenter"}}
	usage.params, usage.effective = paramsRead, true
	return []Route{
		get("/v1/operator/raft/configuration", "the servers that take part in Raft", a.raftPeers),
		{
			Method: http.MethodPost, Path: "/v1/operator/raft/transfer-leader", Summary: "hand leadership over to another server",
			Params:     []Param{{"id", "the ID of the server that is to lead; the one best up to date when it is not set"}},
			Permission: write, MaxBody: bodyNone, params: paramsWrite, invalid: failed, handle: a.transferLeader,
		},
		{
			Method: http.MethodDelete, Path: "/v1/operator/raft/peer", Summary: "take a server out of Raft",
			Params:     []Param{{"id", "its ID"}, {"address", "its address, ip:port; instead of id"}},
			Permission: write, MaxBody: bodyNone, params: paramsWrite, invalid: failed, handle: a.removePeer,
		},
		{
			Method: http.MethodPut, Path: "/v1/internal/raft/recover",
			Summary:    "go on, on the server that is asked, without servers that are lost for ever, where those that are left are no majority",
			Params:     []Param{{"lost", "the ID of a lost server; given once for each"}},
			Permission: write, MaxBody: bodyNone, params: paramsWrite, handle: a.recover,
		},
		get("/v1/internal/fingerprint", "a digest of all that the server which is asked has stored: servers that are equal have the same one", a.fingerprint),
		get("/v1/operator/autopilot/configuration", "how the servers look after themselves", a.autopilot),
		{
			Method: http.MethodPut, Path: "/v1/operator/autopilot/configuration", Summary: "replace that configuration; what is left out takes its default",
			Params: []Param{paramCAS}, Body: "JSON: the fields of the answer to GET", Permission: write,
			MaxBody: bodySmall, params: paramsWrite, handle: a.setAutopilot,
		},
		get("/v1/operator/autopilot/health", "how healthy each server is; 429 unless all are", a.health),
		get("/v1/operator/autopilot/state", "the same, by the ID of the server", a.state),
		usage,
	}
}

func (c *call) stale() bool { return c.opts.consistency == wire.Stale }

// fingerprint lets an operator, or a test, see whether servers are equal.
func (a operatorAPI) fingerprint(c *call) (any, error) {
	st, err := a.cfg.Servers.Status(c.ctx(), &wire.StatusRequest{Token: c.token, Fingerprint: true})
	if err != nil {
		return nil, err
	}
	return struct {
		Fingerprint string
		Index       uint64
	}{st.Fingerprint, st.Index}, nil
}

type raftPeerView struct {
	ID, Node, Address string
	Leader            bool
	ProtocolVersion   string
	Voter             bool
	LastIndex         uint64
}

func (a operatorAPI) raftPeers(c *call) (any, error) {
	if a.cfg.Operators == nil {
		return nil, errNotOffered("the operator API")
	}
	rep, err := a.cfg.Operators.RaftPeers(c.ctx(), &wire.RaftPeersRequest{Token: c.token, Stale: c.stale()})
	if err != nil {
		return nil, err
	}
	out := struct {
		Servers []raftPeerView
		Index   uint64
	}{Servers: []raftPeerView{}}
	for _, p := range rep.Peers {
		out.Servers = append(out.Servers, raftPeerView{p.ID, p.Node, p.Address, p.Leader, p.ProtocolVersion, p.Voter, p.LastIndex})
	}
	return out, nil
}

// changeRaft asks for a change; what it names and is not there is no path that is
// not there.
func (a operatorAPI) changeRaft(c *call, req *wire.ChangeRaftRequest) error {
	if a.cfg.Operators == nil {
		return errNotOffered("the operator API")
	}
	req.Token = c.token
	_, err := a.cfg.Operators.ChangeRaft(c.ctx(), req)
	if errors.Is(err, catalog.ErrNotFound) {
		return internal(err.Error())
	}
	return err
}

func (a operatorAPI) transferLeader(c *call) (any, error) {
	if err := a.changeRaft(c, &wire.ChangeRaftRequest{TransferLeader: true, ID: c.query.Get("id")}); err != nil {
		return nil, err
	}
	return struct{ Success bool }{true}, nil
}

func (a operatorAPI) removePeer(c *call) (any, error) {
	id, address := c.query.Get("id"), c.query.Get("address")
	switch {
	case id == "" && address == "":
		return nil, badRequest("Must specify either ?id with the server's ID or ?address with IP:port of peer to remove")
	case id != "" && address != "":
		return nil, badRequest("Must specify only one of ?id or ?address")
	}
	return nil, a.changeRaft(c, &wire.ChangeRaftRequest{ID: id, Address: address})
}

// recoveryView is what going on without lost servers found.
type recoveryView struct {
	Server                string
	Removed, Servers      []string
	LastIndex, KnownIndex uint64
	LastContact           readableDuration
}

func (a operatorAPI) recover(c *call) (any, error) {
	lost := c.query["lost"]
	if len(lost) == 0 {
		return nil, badRequest("Missing the ID of a lost server: ?lost=")
	}
	if a.cfg.Operators == nil {
		return nil, errNotOffered("the operator API")
	}
	rep, err := a.cfg.Operators.ChangeRaft(c.ctx(), &wire.ChangeRaftRequest{Token: c.token, Lost: lost})
	if err != nil {
		return nil, err
	}
	if rep.Recovery == nil {
		return nil, internal("the server does not know how to recover: it runs an older version")
	}
	r := rep.Recovery
	return recoveryView{r.Server, r.Removed, r.Servers, r.LastIndex, r.KnownIndex, readableDuration(r.LastContact)}, nil
}

// readableDuration is a duration in words.
type readableDuration time.Duration

// MarshalJSON implements json.Marshaler.
func (d readableDuration) MarshalJSON() ([]byte, error) {
	return json.Marshal(time.Duration(d).String())
}

type autopilotView struct {
	CleanupDeadServers      bool
	LastContactThreshold    readableDuration
	MaxTrailingLogs         uint64
	MinQuorum               uint
	ServerStabilizationTime readableDuration
	RedundancyZoneTag       string
	DisableUpgradeMigration bool
	UpgradeVersionTag       string
	CreateIndex             uint64
	ModifyIndex             uint64
}

func (a operatorAPI) autopilot(c *call) (any, error) {
	v, err := a.q.peek(c, catalog.Query{Kind: catalog.QueryAutopilot})
	if err != nil {
		return nil, err
	}
	p := v.Autopilot
	if p == nil {
		// The leader is about to write it.
		def := catalog.DefaultAutopilot()
		p = &def
	}
	return autopilotView{
		p.CleanupDeadServers, readableDuration(p.LastContactThreshold), p.MaxTrailingLogs, p.MinQuorum,
		readableDuration(p.ServerStabilizationTime), p.RedundancyZoneTag, p.DisableUpgradeMigration, p.UpgradeVersionTag,
		p.CreateIndex, p.ModifyIndex,
	}, nil
}

func (a operatorAPI) setAutopilot(c *call) (any, error) {
	cmd := &catalog.SetAutopilot{Config: catalog.DefaultAutopilot()}
	if err := c.decode(&cmd.Config); err != nil {
		if text, ok := strings.CutPrefix(err.Error(), "Request decode failed: "); ok {
			return nil, badRequest("Error parsing autopilot config: " + text)
		}
		return nil, err
	}
	cmd.Config.RaftIndex = catalog.RaftIndex{}
	if c.query.Has("cas") {
		index, err := strconv.ParseUint(c.query.Get("cas"), 10, 64)
		if err != nil {
			return nil, badRequest("Error parsing cas value: " + err.Error())
		}
		cmd.CAS, cmd.Index = true, index
	}
	rep, err := c.apply(a.cfg.Servers, cmd)
	if err != nil {
		return nil, err
	}
	return rep.OK, nil
}

func (a operatorAPI) servers(c *call) (*wire.AutopilotReply, error) {
	if a.cfg.Operators == nil {
		return nil, errNotOffered("the operator API")
	}
	return a.cfg.Operators.Autopilot(c.ctx(), &wire.AutopilotRequest{Token: c.token})
}

type serverHealthView struct {
	ID, Name, Address, SerfStatus, Version string
	Leader                                 bool
	LastContact                            readableDuration
	LastTerm, LastIndex                    uint64
	Healthy, Voter                         bool
	StableSince                            time.Time
}

func (a operatorAPI) health(c *call) (any, error) {
	rep, err := a.servers(c)
	if err != nil {
		return nil, err
	}
	out := struct {
		Healthy          bool
		FailureTolerance int
		Servers          []serverHealthView
	}{Healthy: rep.Healthy, FailureTolerance: rep.FailureTolerance, Servers: []serverHealthView{}}
	for _, s := range rep.Servers {
		leads := s.Status == "leader"
		out.Servers = append(out.Servers, serverHealthView{
			ID: s.ID, Name: s.Name, Address: s.Address, SerfStatus: s.NodeStatus, Version: s.Version,
			Leader: leads, LastContact: readableDuration(s.LastContact), LastTerm: s.LastTerm, LastIndex: s.LastIndex,
			Healthy: s.Healthy, Voter: leads || s.Status == "voter", StableSince: s.StableSince,
		})
	}
	if !rep.Healthy {
		return withStatus{http.StatusTooManyRequests, out}, nil
	}
	return out, nil
}

type serverStateView struct {
	ID, Name, Address, NodeStatus, Version string
	LastContact                            readableDuration
	LastTerm, LastIndex                    uint64
	Healthy                                bool
	StableSince                            time.Time
	ReadReplica                            bool
	Status                                 string
	Meta                                   map[string]string
	NodeType                               string
}

func (a operatorAPI) state(c *call) (any, error) {
	rep, err := a.servers(c)
	if err != nil {
		return nil, err
	}
	out := struct {
		Healthy                    bool
		FailureTolerance           int
		OptimisticFailureTolerance int
		Servers                    map[string]serverStateView
		Leader                     string
		Voters                     []string
	}{rep.Healthy, rep.FailureTolerance, rep.OptimisticFailureTolerance, map[string]serverStateView{}, rep.Leader, notNil(rep.Voters)}
	for _, s := range rep.Servers {
		out.Servers[s.ID] = serverStateView{
			ID: s.ID, Name: s.Name, Address: s.Address, NodeStatus: s.NodeStatus, Version: s.Version,
			LastContact: readableDuration(s.LastContact), LastTerm: s.LastTerm, LastIndex: s.LastIndex, Healthy: s.Healthy,
			StableSince: s.StableSince, Status: s.Status, Meta: notNilMap(s.Meta), NodeType: s.NodeType,
		}
	}
	return out, nil
}

// queryMetaView stands in the answers of which Consul shows how good they are.
type queryMetaView struct {
	Index                 uint64
	LastContact           int64
	KnownLeader           bool
	ConsistencyLevel      string
	NotModified           bool
	Backend               int
	ResultsFilteredByACLs bool
}

func (c *call) queryMeta(v *catalog.View) queryMetaView {
	known, err := strconv.ParseBool(c.w.Header().Get("X-Consul-KnownLeader"))
	return queryMetaView{Index: max(v.Index, 1), KnownLeader: known && err == nil, ConsistencyLevel: c.effectiveConsistency()}
}

type usageView struct {
	Services                 int
	ServiceInstances         int
	ConnectServiceInstances  map[string]int
	BillableServiceInstances int
	Nodes                    int
}

func (a operatorAPI) usage(c *call) (any, error) {
	v, err := a.q.read(c, catalog.Query{Kind: catalog.QueryDump})
	if err != nil {
		return nil, err
	}
	return struct {
		Usage map[string]usageView
		queryMetaView
	}{map[string]usageView{a.cfg.Self.Datacenter: usageOf(v)}, c.queryMeta(v)}, nil
}

func usageOf(v *catalog.View) usageView {
	const native = "connect-native"
	u := usageView{Nodes: len(v.Nodes), ServiceInstances: len(v.Instances), ConnectServiceInstances: map[string]int{native: 0}}
	for _, k := range []catalog.ServiceKind{
		catalog.KindConnectProxy, catalog.KindMeshGateway, catalog.KindTerminatingGateway, catalog.KindIngressGateway, catalog.KindAPIGateway,
	} {
		u.ConnectServiceInstances[string(k)] = 0
	}
	names := map[string]bool{}
	for _, i := range v.Instances {
		names[i.Service.Service] = true
		switch {
		case i.Service.Kind != catalog.KindTypical:
			u.ConnectServiceInstances[string(i.Service.Kind)]++
			continue
		case i.Service.Connect.Native:
			u.ConnectServiceInstances[native]++
		}
		if i.Service.Service != catalog.ServerService {
			u.BillableServiceInstances++
		}
	}
	u.Services = len(names)
	return u
}

// keyringAPI changes the keys that encrypt gossip.
type keyringAPI struct{ cfg Config }

func (a keyringAPI) routes() []Route {
	const path = "/v1/operator/keyring"
	relay := Param{"relay-factor", "accepted, 0 to 5: members answer directly"}
	change := func(method, summary string, op catalog.KeyringOp) Route {
		return Route{
			Method: method, Path: path, Summary: summary, Params: []Param{relay}, Body: "JSON: Key, in base64",
			Permission: Permission{acl.Write, acl.Keyring, ""}, MaxBody: bodySmall, params: paramsToken, local: true,
			invalid: http.StatusInternalServerError, handle: a.change(op),
		}
	}
	return []Route{
		{
			Method: http.MethodGet, Path: path, Summary: "the keys that encrypt gossip, and on how many members each is",
			Params:     []Param{relay, {"local-only", "only the members of this datacenter, not the servers of all"}},
			Permission: Permission{acl.Read, acl.Keyring, ""}, MaxBody: bodyNone, params: paramsToken, local: true,
			invalid: http.StatusInternalServerError, handle: a.list,
		},
		change(http.MethodPost, "install a key on all members", catalog.KeyringInstall),
		change(http.MethodPut, "encrypt with a key that is installed", catalog.KeyringUse),
		change(http.MethodDelete, "remove a key that is not in use from all members", catalog.KeyringRemove),
	}
}

func (a keyringAPI) do(c *call, op catalog.KeyringOp, key string) (*catalog.KeyringReport, error) {
	if a.cfg.Keyring == nil {
		return nil, errNotOffered("a gossip keyring")
	}
	if v := c.query.Get("relay-factor"); v != "" {
		if n, err := strconv.Atoi(v); err != nil || n < 0 || n > 5 {
			return nil, badRequest(fmt.Sprintf("Invalid relay-factor: %q is no number from 0 to 5", v))
		}
	}
	r, err := a.cfg.Keyring.Keyring(c.ctx(), op, key)
	if errors.Is(err, catalog.ErrNotFound) {
		return nil, internal(err.Error())
	}
	return r, err
}

type keyringView struct {
	WAN         bool
	Datacenter  string
	Segment     string
	Messages    map[string]string `json:",omitempty"`
	Keys        map[string]int
	PrimaryKeys map[string]int
	NumNodes    int
}

func (a keyringAPI) list(c *call) (any, error) {
	local, err := c.boolParam("local-only")
	if err != nil {
		return nil, err
	}
	r, err := a.do(c, catalog.KeyringList, "")
	if err != nil {
		return nil, err
	}
	lan := a.view(r, func(string) bool { return true })
	if local {
		return []keyringView{lan}, nil
	}
	// Servers of all datacenters share a ring; here that is the one of this datacenter.
	servers := a.servers()
	wan := a.view(r, func(node string) bool { return servers[node] })
	wan.WAN = true
	return []keyringView{wan, lan}, nil
}

func (a keyringAPI) servers() map[string]bool {
	out := map[string]bool{}
	if a.cfg.Self.Server {
		out[a.cfg.Self.NodeName] = true
	}
	if a.cfg.Members != nil {
		for _, m := range a.cfg.Members.Members() {
			if m.Tags["role"] == "consul" {
				out[m.Name] = true
			}
		}
	}
	return out
}

func (a keyringAPI) view(r *catalog.KeyringReport, want func(node string) bool) keyringView {
	v := keyringView{Datacenter: a.cfg.Self.Datacenter, Keys: map[string]int{}, PrimaryKeys: map[string]int{}}
	nodes := map[string]bool{}
	for node, keys := range r.Keys {
		if !want(node) {
			continue
		}
		nodes[node] = true
		for i, k := range keys {
			v.Keys[k]++
			if i == 0 {
				v.PrimaryKeys[k]++
			}
		}
	}
	for node, text := range r.Errors {
		if !want(node) {
			continue
		}
		nodes[node] = true
		if v.Messages == nil {
			v.Messages = map[string]string{}
		}
		v.Messages[node] = text
	}
	v.NumNodes = len(nodes)
	return v
}

func (a keyringAPI) change(op catalog.KeyringOp) func(*call) (any, error) {
	return func(c *call) (any, error) {
		if c.query.Has("local-only") {
			return nil, badRequest("local-only can only be used with GET")
		}
		var in struct{ Key string }
		if err := c.decode(&in); err != nil {
			return nil, err
		}
		r, err := a.do(c, op, in.Key)
		if err != nil {
			return nil, err
		}
		if len(r.Errors) > 0 {
			return nil, internal(keyringFailures(op, r))
		}
		return nil, nil
	}
}

// keyringFailures names the members on which a change failed.
func keyringFailures(op catalog.KeyringOp, r *catalog.KeyringReport) string {
	parts := make([]string, 0, len(r.Errors))
	for node, text := range r.Errors {
		parts = append(parts, node+": "+text)
	}
	slices.Sort(parts)
	return fmt.Sprintf("keyring %s failed on %d members: %s", op, len(parts), strings.Join(parts, "; "))
}
