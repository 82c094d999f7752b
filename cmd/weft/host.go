package main

import (
	"bufio"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/hashicorp/consul/api"
	"github.com/urfave/cli/v2"

	"github.com/weftmesh/weft/catalog/wire"
)

// Commands about the agent that is asked, and its cluster.

func infoCommand(s streams) *cli.Command {
	return spec{
		name: "info", usage: "Say how the agent and its server fare",
		about: "First in words, with what to do about what is not well: whom the server follows, or why nobody leads;\n" +
			"the disk; which server the agent is connected to, or why none lets it in; whether the catalog has what\n" +
			"the host registers; how many members are alive. Then come counters.",
		flags: clientFlags(),
		action: withClient(s, func(c *cli.Context, cl *client) error {
			var self struct {
				Stats map[string]map[string]any
			}
			if _, err := cl.call(c.Context, http.MethodGet, "/v1/agent/self", nil, nil, &self); err != nil {
				return err
			}
			showState(c.App.Writer, self.Stats[wire.StatsState])
			delete(self.Stats, wire.StatsState)
			for _, section := range slices.Sorted(maps.Keys(self.Stats)) {
				fmt.Fprintf(c.App.Writer, "%s:\n", section)
				for _, key := range slices.Sorted(maps.Keys(self.Stats[section])) {
					fmt.Fprintf(c.App.Writer, "\t%s = %v\n", key, self.Stats[section][key])
				}
			}
			return nil
		}),
	}.build()
}

// showState says in words how a host fares. An agent that does not tell is of another version.
func showState(w io.Writer, state map[string]any) {
	if len(state) == 0 {
		return
	}
	fmt.Fprintln(w, "this host:")
	for _, part := range []string{"server", "disk", "agent", "catalog", "members"} {
		if what := state[part]; what != nil {
			fmt.Fprintf(w, "\t%-8s %v\n", part, what)
		}
		if hint := state[part+wire.StatsHint]; hint != nil {
			fmt.Fprintf(w, "\t         To do: %v\n", hint)
		}
	}
	fmt.Fprintln(w)
}

func membersCommand(s streams) *cli.Command {
	return spec{
		name: "members", usage: "List the members of the cluster",
		flags: clientFlags(
			&cli.BoolFlag{Name: "detailed", Usage: "Show all tags of each member."},
			&cli.StringFlag{Name: "status", Value: ".*", Usage: "Only members whose status matches this regular expression."},
			&cli.StringFlag{Name: "filter", Usage: "An expression that chooses."},
			&cli.BoolFlag{Name: "wan", Usage: "The servers of all datacenters."},
			formatFlag(),
		),
		examples: []string{"weft members", "weft members -status='failed|left'"},
		action: withClient(s, func(c *cli.Context, cl *client) error {
			status, err := regexp.Compile("^(?:" + c.String("status") + ")$")
			if err != nil {
				return usagef(c, "-status: %w", err)
			}
			params := url.Values{}
			if c.Bool("wan") {
				params.Set("wan", "1")
			}
			if f := c.String("filter"); f != "" {
				params.Set("filter", f)
			}
			var members []*api.AgentMember
			if _, err := cl.call(c.Context, http.MethodGet, "/v1/agent/members", params, nil, &members); err != nil {
				return err
			}
			members = slices.DeleteFunc(members, func(m *api.AgentMember) bool { return !status.MatchString(memberStatus(m)) })
			slices.SortFunc(members, func(a, b *api.AgentMember) int { return strings.Compare(a.Name, b.Name) })
			return formatted(c, members, func() error { return showMembers(c, members) })
		}),
	}.build()
}

func memberStatus(m *api.AgentMember) string {
	names := []string{"none", "alive", "leaving", "left", "failed"}
	if m.Status < 0 || m.Status >= len(names) {
		return strconv.Itoa(m.Status)
	}
	return names[m.Status]
}

func showMembers(c *cli.Context, members []*api.AgentMember) error {
	if len(members) == 0 {
		return withCode(exitUsage, fmt.Errorf("no member has that status"))
	}
	rows := [][]string{{"Node", "Address", "Status", "Type", "Build", "Protocol", "DC", "Partition", "Segment"}}
	if c.Bool("detailed") {
		rows = [][]string{{"Node", "Address", "Status", "Tags"}}
	}
	for _, m := range members {
		addr := joinAddr(m.Addr, int(m.Port))
		if c.Bool("detailed") {
			rows = append(rows, []string{m.Name, addr, memberStatus(m), joined(m.Tags)})
			continue
		}
		role, segment := "client", m.Tags["segment"]
		if m.Tags["role"] == "consul" {
			role = "server"
			segment = "<all>"
		} else if segment == "" {
			segment = "<default>"
		}
		build, _, _ := strings.Cut(m.Tags["build"], ":")
		rows = append(rows, []string{m.Name, addr, memberStatus(m), role, build, m.Tags["vsn"], m.Tags["dc"], "default", segment})
	}
	return table(c.App.Writer, rows...)
}

func reloadCommand(s streams) *cli.Command {
	return spec{
		name: "reload", usage: "Let the agent read its configuration again",
		about: "Services, checks, node metadata and the log level change; other keys need a restart. A\nconfiguration with a mistake is refused as a whole, and the old one stays.",
		flags: clientFlags(),
		action: withClient(s, func(c *cli.Context, cl *client) error {
			if _, err := cl.call(c.Context, http.MethodPut, "/v1/agent/reload", nil, nil, nil); err != nil {
				return err
			}
			fmt.Fprintln(c.App.Writer, "Configuration reload triggered")
			return nil
		}),
	}.build()
}

func leaveCommand(s streams) *cli.Command {
	return spec{
		name: "leave", usage: "Let the agent leave the cluster and end",
		about: "The agent leaves gossip, lets running connections finish, and ends.",
		flags: clientFlags(),
		action: withClient(s, func(c *cli.Context, cl *client) error {
			if _, err := cl.call(c.Context, http.MethodPut, "/v1/agent/leave", nil, nil, nil); err != nil {
				return err
			}
			fmt.Fprintln(c.App.Writer, "Graceful leave complete")
			return nil
		}),
	}.build()
}

func maintCommand(s streams) *cli.Command {
	return spec{
		name: "maint", usage: "Put this host, or one service of it, into maintenance",
		about: "What is in maintenance is critical, and receives no traffic. Without flags it is listed.",
		examples: []string{
			"weft maint -enable -reason='new disk'",
			"weft maint -enable -service=web",
			"weft maint -disable",
		},
		flags: clientFlags(
			&cli.BoolFlag{Name: "enable", Usage: "Begin maintenance."},
			&cli.BoolFlag{Name: "disable", Usage: "End maintenance."},
			&cli.StringFlag{Name: "service", Usage: "The ID of a service. The whole host when it is not set."},
			&cli.StringFlag{Name: "reason", Usage: "Why, for people to read."},
		),
		action: withClient(s, maintain),
	}.build()
}

func maintain(c *cli.Context, cl *client) error {
	enable, disable, service := c.Bool("enable"), c.Bool("disable"), c.String("service")
	switch {
	case enable && disable:
		return usagef(c, "-enable and -disable exclude each other")
	case !enable && !disable && (service != "" || c.String("reason") != ""):
		return usagef(c, "-service and -reason need -enable or -disable")
	case disable && c.String("reason") != "":
		return usagef(c, "-reason goes with -enable only")
	case !enable && !disable:
		return listMaintenance(c, cl)
	}
	params := url.Values{"enable": {strconv.FormatBool(enable)}}
	if r := c.String("reason"); r != "" {
		params.Set("reason", r)
	}
	path, what := "/v1/agent/maintenance", "Node maintenance"
	if service != "" {
		path, what = "/v1/agent/service/maintenance/"+service, fmt.Sprintf("Service maintenance for %q", service)
	}
	if _, err := cl.call(c.Context, http.MethodPut, path, params, nil, nil); err != nil {
		return err
	}
	state := "disabled"
	if enable {
		state = "enabled"
	}
	fmt.Fprintf(c.App.Writer, "%s is now %s\n", what, state)
	return nil
}

func listMaintenance(c *cli.Context, cl *client) error {
	checks, err := cl.Agent().ChecksWithFilterOpts("", cl.read(c.Context))
	if err != nil {
		return err
	}
	for _, id := range slices.Sorted(maps.Keys(checks)) {
		ch := checks[id]
		switch {
		case id == api.NodeMaint:
			fmt.Fprintf(c.App.Writer, "Node:\n  Name:   %s\n  Reason: %s\n\n", ch.Node, ch.Notes)
		case strings.HasPrefix(id, api.ServiceMaintPrefix):
			fmt.Fprintf(c.App.Writer, "Service:\n  ID:     %s\n  Reason: %s\n\n", strings.TrimPrefix(id, api.ServiceMaintPrefix), ch.Notes)
		}
	}
	return nil
}

func monitorCommand(s streams) *cli.Command {
	return spec{
		name: "monitor", usage: "Follow the log of the agent",
		about: "Shows the log of a running agent until Ctrl-C, at a level of its own.",
		flags: clientFlags(
			&cli.StringFlag{Name: "log-level", Value: "info", Usage: "The least severe line that is shown: debug, info, warn or error."},
			&cli.BoolFlag{Name: "log-json", Usage: "Show JSON, one object a line."},
		),
		examples: []string{"weft monitor -log-level=debug"},
		action:   withClient(s, monitor),
	}.build()
}

func monitor(c *cli.Context, cl *client) error {
	params := url.Values{"loglevel": {c.String("log-level")}}
	if c.Bool("log-json") {
		params.Set("logjson", "true")
	}
	ctx, stop := untilSignal(c.Context)
	defer stop()
	resp, err := cl.do(ctx, http.MethodGet, "/v1/agent/monitor", params, nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	lines := bufio.NewReader(resp.Body)
	for {
		line, err := lines.ReadString('\n')
		if _, werr := io.WriteString(c.App.Writer, line); werr != nil {
			return werr
		}
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			return fmt.Errorf("the agent at %s ended", cl.addr)
		}
	}
}
