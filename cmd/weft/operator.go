package main

import (
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/consul/api"
	"github.com/urfave/cli/v2"
)

// Commands for those who look after the servers.

func operatorCommand(s streams) *cli.Command {
	return group("operator", "Look after the servers: Raft, autopilot, usage", "",
		operatorRecover(s),
		group("autopilot", "How the servers look after themselves", "", autopilotGet(s), autopilotSet(s), autopilotState(s)),
		group("raft", "The servers that take part in Raft", "", raftList(s), raftRemove(s), raftTransfer(s)),
		group("usage", "What the catalog holds", "", usageInstances(s)),
	)
}

func raftList(s streams) *cli.Command {
	return spec{
		name: "list-peers", usage: "List the servers that take part in Raft", flags: clientFlags(formatFlag()),
		action: withClient(s, func(c *cli.Context, cl *client) error {
			conf, err := cl.Operator().RaftGetConfiguration(cl.read(c.Context))
			if err != nil {
				return err
			}
			return formatted(c, conf, func() error { return showPeers(c, conf.Servers) })
		}),
	}.build()
}

func showPeers(c *cli.Context, servers []*api.RaftServer) error {
	leaderAt := uint64(0)
	for _, p := range servers {
		if p.Leader {
			leaderAt = p.LastIndex
		}
	}
	rows := [][]string{{"Node", "ID", "Address", "State", "Voter", "RaftProtocol", "Commit Index", "Trails Leader By"}}
	for _, p := range servers {
		state, index, trails := "follower", "-", "-"
		if p.Leader {
			state = "leader"
		}
		if p.LastIndex > 0 {
			index = strconv.FormatUint(p.LastIndex, 10)
			if !p.Leader && leaderAt >= p.LastIndex {
				trails = fmt.Sprintf("%d commits", leaderAt-p.LastIndex)
			}
		}
		rows = append(rows, []string{p.Node, p.ID, p.Address, state, strconv.FormatBool(p.Voter), p.ProtocolVersion, index, trails})
	}
	return table(c.App.Writer, rows...)
}

func raftRemove(s streams) *cli.Command {
	return spec{
		name: "remove-peer", usage: "Take a server out of Raft", flags: clientFlags(
			&cli.StringFlag{Name: "id", Usage: "The ID of the server."},
			&cli.StringFlag{Name: "address", Usage: "The address of the server, ip:port."},
		),
		about:    "For a server that is gone for good and that `weft force-leave` does not remove. It is not\nasked, and must not be started again with its old data.",
		examples: []string{"weft operator raft remove-peer -id=2a5b…"},
		action: withClient(s, func(c *cli.Context, cl *client) error {
			id, addr := c.String("id"), c.String("address")
			switch {
			case (id == "") == (addr == ""):
				return usagef(c, "an address or id is required for the peer to remove, and not both")
			case id != "":
				if err := cl.Operator().RaftRemovePeerByID(id, cl.write(c.Context)); err != nil {
					return err
				}
				fmt.Fprintf(c.App.Writer, "Removed peer with id %q\n", id)
			default:
				if err := cl.Operator().RaftRemovePeerByAddress(addr, cl.write(c.Context)); err != nil {
					return err
				}
				fmt.Fprintf(c.App.Writer, "Removed peer with address %q\n", addr)
			}
			return nil
		}),
	}.build()
}

func raftTransfer(s streams) *cli.Command {
	return spec{
		name: "transfer-leader", usage: "Hand leadership over to another server", flags: clientFlags(
			&cli.StringFlag{Name: "id", Usage: "The ID of the server that is to lead. The one best up to date when it is not set."},
		),
		action: withClient(s, func(c *cli.Context, cl *client) error {
			if _, err := cl.Operator().RaftLeaderTransfer(c.String("id"), cl.read(c.Context)); err != nil {
				return err
			}
			fmt.Fprintln(c.App.Writer, "Success")
			return nil
		}),
	}.build()
}

func operatorRecover(s streams) *cli.Command {
	return spec{
		name: "recover", usage: "Go on without servers that are lost for ever", flags: clientFlags(
			&cli.StringSliceFlag{Name: "i-have-lost", Usage: "The ID of a server that will never come back. Give it once for each."},
		),
		about: "For the day on which so many servers are lost, with their disks, that those left are no majority\n" +
			"and no leader can be. Ask an agent on a server that lives, the one whose log is longest: another\n" +
			"refuses. Writes that only the lost servers had are gone. Never start a lost server again with\n" +
			"its old data: empty its data directory first. `weft operator raft list-peers -stale` shows the IDs.",
		examples: []string{"weft operator recover -i-have-lost=2a5b… -i-have-lost=77f0…"},
		action: withClient(s, func(c *cli.Context, cl *client) error {
			lost := c.StringSlice("i-have-lost")
			if len(lost) == 0 {
				return usagef(c, "name the servers that are lost: -i-have-lost=<ID>")
			}
			var r struct {
				Server                string
				Removed, Servers      []string
				LastIndex, KnownIndex uint64
				LastContact           string
			}
			if _, err := cl.call(c.Context, http.MethodPut, "/v1/internal/raft/recover", url.Values{"lost": lost}, nil, &r); err != nil {
				return err
			}
			w := c.App.Writer
			fmt.Fprintf(w, "The cluster serves again, with %s: %s\n", countOf(len(r.Servers), "server"), strings.Join(r.Servers, ", "))
			fmt.Fprintf(w, "Removed: %s\n", strings.Join(r.Removed, ", "))
			fmt.Fprintf(w, "Kept: all writes up to index %d. Of those above %d it was not known here whether they were acknowledged.\n", r.LastIndex, r.KnownIndex)
			fmt.Fprintf(w, "Lost: whatever was acknowledged and had not reached server %s, which last heard from a leader %s before.\n", r.Server, r.LastContact)
			fmt.Fprintln(w, "Next: empty the data directories of the lost servers before they are started again, and add servers until there are three.")
			return nil
		}),
	}.build()
}

func countOf(n int, what string) string {
	if n != 1 {
		what += "s"
	}
	return fmt.Sprintf("%d %s", n, what)
}

func autopilotGet(s streams) *cli.Command {
	return spec{
		name: "get-config", usage: "Show the configuration of autopilot", flags: clientFlags(),
		action: withClient(s, func(c *cli.Context, cl *client) error {
			conf, err := cl.Operator().AutopilotGetConfiguration(cl.read(c.Context))
			if err != nil {
				return err
			}
			w := c.App.Writer
			fmt.Fprintf(w, "CleanupDeadServers = %v\n", conf.CleanupDeadServers)
			fmt.Fprintf(w, "LastContactThreshold = %v\n", conf.LastContactThreshold.String())
			fmt.Fprintf(w, "MaxTrailingLogs = %v\n", conf.MaxTrailingLogs)
			fmt.Fprintf(w, "MinQuorum = %v\n", conf.MinQuorum)
			fmt.Fprintf(w, "ServerStabilizationTime = %v\n", conf.ServerStabilizationTime.String())
			fmt.Fprintf(w, "RedundancyZoneTag = %q\n", conf.RedundancyZoneTag)
			fmt.Fprintf(w, "DisableUpgradeMigration = %v\n", conf.DisableUpgradeMigration)
			fmt.Fprintf(w, "UpgradeVersionTag = %q\n", conf.UpgradeVersionTag)
			return nil
		}),
	}.build()
}

func autopilotSet(s streams) *cli.Command {
	return spec{
		name: "set-config", usage: "Change the configuration of autopilot", flags: clientFlags(
			&cli.BoolFlag{Name: "cleanup-dead-servers", Usage: "Remove dead servers when others replace them."},
			&cli.DurationFlag{Name: "last-contact-threshold", Usage: "After how long without the leader a server counts as unhealthy."},
			&cli.UintFlag{Name: "max-trailing-logs", Usage: "How far a server may lag and be healthy."},
			&cli.UintFlag{Name: "min-quorum", Usage: "How many servers are always kept."},
			&cli.DurationFlag{Name: "server-stabilization-time", Usage: "How long a new server is healthy before it votes."},
			&cli.StringFlag{Name: "redundancy-zone-tag", Usage: "Kept and shown; zones are a Consul Enterprise feature."},
			&cli.BoolFlag{Name: "disable-upgrade-migration", Usage: "Kept and shown; upgrade migration is a Consul Enterprise feature."},
			&cli.StringFlag{Name: "upgrade-version-tag", Usage: "Kept and shown, as well."},
		),
		about:    "What no flag names stays as it is.",
		examples: []string{"weft operator autopilot set-config -last-contact-threshold=500ms"},
		action: withClient(s, func(c *cli.Context, cl *client) error {
			conf, err := cl.Operator().AutopilotGetConfiguration(cl.read(c.Context))
			if err != nil {
				return err
			}
			setIf(c, "cleanup-dead-servers", c.Bool, &conf.CleanupDeadServers)
			setIf(c, "disable-upgrade-migration", c.Bool, &conf.DisableUpgradeMigration)
			setIf(c, "redundancy-zone-tag", c.String, &conf.RedundancyZoneTag)
			setIf(c, "upgrade-version-tag", c.String, &conf.UpgradeVersionTag)
			setIf(c, "min-quorum", c.Uint, &conf.MinQuorum)
			if c.IsSet("max-trailing-logs") {
				conf.MaxTrailingLogs = uint64(c.Uint("max-trailing-logs"))
			}
			if c.IsSet("last-contact-threshold") {
				conf.LastContactThreshold = api.NewReadableDuration(c.Duration("last-contact-threshold"))
			}
			if c.IsSet("server-stabilization-time") {
				conf.ServerStabilizationTime = api.NewReadableDuration(c.Duration("server-stabilization-time"))
			}
			ok, err := cl.Operator().AutopilotCASConfiguration(conf, cl.write(c.Context))
			if err != nil {
				return err
			}
			if !ok {
				return fmt.Errorf("the configuration was changed by somebody else at the same time: try again")
			}
			fmt.Fprintln(c.App.Writer, "Configuration updated!")
			return nil
		}),
	}.build()
}

func setIf[T any](c *cli.Context, name string, get func(string) T, into *T) {
	if c.IsSet(name) {
		*into = get(name)
	}
}

func autopilotState(s streams) *cli.Command {
	return spec{
		name: "state", usage: "Show how healthy the servers are", flags: clientFlags(formatFlag()),
		action: withClient(s, func(c *cli.Context, cl *client) error {
			state, err := cl.Operator().AutopilotState(cl.read(c.Context))
			if err != nil {
				return err
			}
			return formatted(c, state, func() error { return showAutopilot(c, state) })
		}),
	}.build()
}

func showAutopilot(c *cli.Context, st *api.AutopilotState) error {
	w := c.App.Writer
	fmt.Fprintf(w, "Healthy:                      %t\n", st.Healthy)
	fmt.Fprintf(w, "Failure Tolerance:            %d\n", st.FailureTolerance)
	fmt.Fprintf(w, "Optimistic Failure Tolerance: %d\n", st.OptimisticFailureTolerance)
	fmt.Fprintf(w, "Leader:                       %s\n", st.Leader)
	fmt.Fprintf(w, "Voters:\n")
	for _, id := range st.Voters {
		fmt.Fprintf(w, "   %s\n", id)
	}
	fmt.Fprintf(w, "\nServers:\n")
	for _, id := range slices.Sorted(maps.Keys(st.Servers)) {
		srv := st.Servers[id]
		fmt.Fprintf(w, "   %s\n", id)
		for _, f := range [][2]string{
			{"Name", srv.Name},
			{"Address", srv.Address},
			{"Version", srv.Version},
			{"Status", string(srv.Status)},
			{"Node Type", string(srv.NodeType)},
			{"Node Status", srv.NodeStatus},
			{"Healthy", strconv.FormatBool(srv.Healthy)},
			{"Last Contact", srv.LastContact.String()},
			{"Last Term", strconv.FormatUint(srv.LastTerm, 10)},
			{"Last Index", strconv.FormatUint(srv.LastIndex, 10)},
			{"Stable Since", srv.StableSince.Format(time.RFC3339)},
		} {
			fmt.Fprintf(w, "      %-15s%s\n", f[0]+":", f[1])
		}
		fmt.Fprintf(w, "      Meta\n")
		for _, k := range slices.Sorted(maps.Keys(srv.Meta)) {
			fmt.Fprintf(w, "         %q: %q\n", k, srv.Meta[k])
		}
	}
	return nil
}

func usageInstances(s streams) *cli.Command {
	return spec{
		name: "instances", usage: "Count services and their instances", flags: clientFlags(
			&cli.BoolFlag{Name: "all-datacenters", Usage: "Count those of all datacenters."},
			&cli.BoolFlag{Name: "billable", Usage: "Show only services that are no proxies and no gateways."},
			&cli.BoolFlag{Name: "connect", Usage: "Show only what belongs to the mesh."},
			formatFlag(),
		),
		action: withClient(s, func(c *cli.Context, cl *client) error {
			opt := cl.read(c.Context)
			opt.Global = c.Bool("all-datacenters")
			u, _, err := cl.Operator().Usage(opt)
			if err != nil {
				return err
			}
			return formatted(c, u.Usage, func() error { return showUsage(c, u.Usage) })
		}),
	}.build()
}

func showUsage(c *cli.Context, by map[string]api.ServiceUsage) error {
	w := c.App.Writer
	dcs := slices.Sorted(maps.Keys(by))
	both := c.Bool("billable") == c.Bool("connect")
	if both || c.Bool("billable") {
		total := 0
		for _, dc := range dcs {
			total += by[dc].BillableServiceInstances
		}
		fmt.Fprintf(w, "Billable Service Instances Total: %d\n", total)
		rows := [][]string{{"Datacenter", "Services", "Service instances"}}
		for _, dc := range dcs {
			fmt.Fprintf(w, "%s Billable Service Instances: %d\n", dc, by[dc].BillableServiceInstances)
			rows = append(rows, []string{dc, strconv.Itoa(by[dc].Services), strconv.Itoa(by[dc].BillableServiceInstances)})
		}
		fmt.Fprintf(w, "\nBillable Services\n")
		if err := table(w, rows...); err != nil {
			return err
		}
	}
	if both {
		fmt.Fprintln(w)
	}
	if both || c.Bool("connect") {
		fmt.Fprintf(w, "Connect Services\n")
		rows := [][]string{{"Datacenter", "Type", "Service instances"}}
		for _, dc := range dcs {
			for _, kind := range slices.Sorted(maps.Keys(by[dc].ConnectServiceInstances)) {
				rows = append(rows, []string{dc, kind, strconv.Itoa(by[dc].ConnectServiceInstances[kind])})
			}
		}
		return table(w, rows...)
	}
	return nil
}

func rttCommand(s streams) *cli.Command {
	return spec{
		name: "rtt", usage: "Estimate the round-trip time between two nodes", args: "NODE [NODE]", min: 1, max: 2,
		flags: clientFlags(&cli.BoolFlag{Name: "wan", Usage: "Between servers, named node.datacenter."}),
		about: "With one node: between it and the agent's own. The estimate comes from network coordinates,\nwithout a packet being sent.",
		action: withClient(s, func(c *cli.Context, cl *client) error {
			names := c.Args().Slice()
			if len(names) == 1 {
				self, err := cl.Agent().Self()
				if err != nil {
					return err
				}
				name, _ := self["Config"]["NodeName"].(string)
				if dc, _ := self["Config"]["Datacenter"].(string); c.Bool("wan") {
					name += "." + dc
				}
				names = append(names, name)
			}
			all, kind, err := coordinates(c, cl)
			if err != nil {
				return err
			}
			found := make([]*api.CoordinateEntry, 2)
			for i, name := range names {
				at := slices.IndexFunc(all, func(e *api.CoordinateEntry) bool { return strings.EqualFold(e.Node, name) })
				if at < 0 || all[at].Coord == nil {
					return fmt.Errorf("could not find a coordinate for node %q: hosts tell where they are about 30 seconds after they start", name)
				}
				found[i] = all[at]
			}
			ms := found[0].Coord.DistanceTo(found[1].Coord).Seconds() * 1000
			fmt.Fprintf(c.App.Writer, "Estimated %s <-> %s rtt: %.3f ms (using %s coordinates)\n", names[0], names[1], ms, kind)
			return nil
		}),
	}.build()
}

func coordinates(c *cli.Context, cl *client) ([]*api.CoordinateEntry, string, error) {
	if !c.Bool("wan") {
		all, _, err := cl.Coordinate().Nodes(cl.read(c.Context))
		return all, "LAN", err
	}
	var maps []*api.CoordinateDatacenterMap // the API client's own method takes no context
	if _, err := cl.call(c.Context, http.MethodGet, "/v1/coordinate/datacenters", url.Values{}, nil, &maps); err != nil {
		return nil, "", err
	}
	var all []*api.CoordinateEntry
	for _, m := range maps {
		for i := range m.Coordinates {
			all = append(all, &m.Coordinates[i])
		}
	}
	return all, "WAN", nil
}
