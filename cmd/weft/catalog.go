package main

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/hashicorp/consul/api"
	"github.com/urfave/cli/v2"
)

func catalogCommand(s streams) *cli.Command {
	return group("catalog", "Look at the catalog: datacenters, nodes, services", "",
		catalogDatacenters(s), catalogNodes(s), catalogServices(s))
}

func catalogDatacenters(s streams) *cli.Command {
	return spec{
		name: "datacenters", usage: "List the datacenters", flags: clientFlags(),
		action: withClient(s, func(c *cli.Context, cl *client) error {
			var dcs []string // the API client's own method takes no context
			if _, err := cl.call(c.Context, "GET", "/v1/catalog/datacenters", nil, nil, &dcs); err != nil {
				return err
			}
			for _, dc := range dcs {
				fmt.Fprintln(c.App.Writer, dc)
			}
			return nil
		}),
	}.build()
}

func catalogNodes(s streams) *cli.Command {
	return spec{
		name: "nodes", usage: "List the nodes", flags: clientFlags(
			&cli.BoolFlag{Name: "detailed", Usage: "Show tagged addresses and metadata too."},
			&cli.StringFlag{Name: "filter", Usage: "An expression that chooses, such as 'Meta.rack == \"a\"'."},
			&cli.StringFlag{Name: "near", Usage: "Sort by distance to this node; _agent is the one that is asked."},
			&cli.StringSliceFlag{Name: "node-meta", Usage: "Only nodes with this metadata. May be given many times."},
			&cli.StringFlag{Name: "service", Usage: "Only nodes with an instance of this service."},
			formatFlag(),
		),
		examples: []string{"weft catalog nodes", "weft catalog nodes -service=web"},
		action: withClient(s, func(c *cli.Context, cl *client) error {
			meta, err := pairs(c, "node-meta")
			if err != nil {
				return err
			}
			opt := cl.read(c.Context)
			opt.Filter, opt.Near = c.String("filter"), c.String("near")
			if len(meta) > 0 {
				opt.NodeMeta = meta
			}
			nodes, err := listNodes(cl, c.String("service"), opt)
			if err != nil {
				return err
			}
			return formatted(c, nodes, func() error { return showNodes(c, nodes) })
		}),
	}.build()
}

func listNodes(cl *client, service string, opt *api.QueryOptions) ([]*api.Node, error) {
	if service == "" {
		nodes, _, err := cl.Catalog().Nodes(opt)
		return nodes, err
	}
	instances, _, err := cl.Catalog().Service(service, "", opt)
	if err != nil {
		return nil, err
	}
	var nodes []*api.Node
	seen := map[string]bool{}
	for _, in := range instances {
		if seen[in.Node] {
			continue
		}
		seen[in.Node] = true
		nodes = append(nodes, &api.Node{
			ID: in.ID, Node: in.Node, Address: in.Address, Datacenter: in.Datacenter,
			TaggedAddresses: in.TaggedAddresses, Meta: in.NodeMeta,
		})
	}
	return nodes, nil
}

func showNodes(c *cli.Context, nodes []*api.Node) error {
	if len(nodes) == 0 {
		fmt.Fprintln(c.App.ErrWriter, "There are no such nodes.")
		return nil
	}
	head := []string{"Node", "ID", "Address", "DC"}
	if c.Bool("detailed") {
		head = append(head, "TaggedAddresses", "Meta")
	}
	rows := [][]string{head}
	for _, n := range nodes {
		id := n.ID
		if !c.Bool("detailed") {
			id, _, _ = strings.Cut(id, "-")
		}
		row := []string{n.Node, id, n.Address, n.Datacenter}
		if c.Bool("detailed") {
			row = append(row, joined(n.TaggedAddresses), joined(n.Meta))
		}
		rows = append(rows, row)
	}
	return table(c.App.Writer, rows...)
}

func catalogServices(s streams) *cli.Command {
	return spec{
		name: "services", usage: "List the services", flags: clientFlags(
			&cli.StringFlag{Name: "node", Usage: "Only services of this node, by name."},
			&cli.StringSliceFlag{Name: "node-meta", Usage: "Only services of nodes with this metadata. May be given many times."},
			&cli.BoolFlag{Name: "tags", Usage: "Show the tags too."},
			formatFlag(),
		),
		examples: []string{"weft catalog services -tags"},
		action: withClient(s, func(c *cli.Context, cl *client) error {
			meta, err := pairs(c, "node-meta")
			if err != nil {
				return err
			}
			opt := cl.read(c.Context)
			if len(meta) > 0 {
				opt.NodeMeta = meta
			}
			services, err := listServices(cl, c.String("node"), opt)
			if err != nil {
				return err
			}
			return formatted(c, services, func() error { return showServices(c, services) })
		}),
	}.build()
}

func listServices(cl *client, node string, opt *api.QueryOptions) (map[string][]string, error) {
	if node == "" {
		services, _, err := cl.Catalog().Services(opt)
		return services, err
	}
	n, _, err := cl.Catalog().Node(node, opt)
	if err != nil {
		return nil, err
	}
	if n == nil {
		return nil, fmt.Errorf("there is no node %q", node)
	}
	out := map[string][]string{}
	for _, svc := range n.Services {
		tags := slices.Concat(out[svc.Service], svc.Tags)
		slices.Sort(tags)
		out[svc.Service] = slices.Compact(tags)
	}
	return out, nil
}

func showServices(c *cli.Context, services map[string][]string) error {
	var rows [][]string
	for _, name := range slices.Sorted(maps.Keys(services)) {
		row := []string{name}
		if c.Bool("tags") {
			row = append(row, strings.Join(services[name], ","))
		}
		rows = append(rows, row)
	}
	return table(c.App.Writer, rows...)
}
