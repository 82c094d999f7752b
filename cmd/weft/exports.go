package main

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/hashicorp/consul/api"
	"github.com/urfave/cli/v2"

	"github.com/weftmesh/weft/catalog"
)

// exportTries is how often an export is written again when others write too.
const exportTries = 10

func servicesExport(s streams) *cli.Command {
	return spec{
		name: "export", usage: "Let other clusters see a service",
		about:    "Adds consumers to the service in the config entry exported-services. Those that it has stay.",
		examples: []string{"weft services export -name=web -consumer-peers=east,west"},
		flags: clientFlags(
			&cli.StringFlag{Name: "name", Usage: "The service; needed."},
			&cli.StringFlag{Name: "consumer-peers", Usage: "The peers that may see it, separated by commas; needed."},
			&cli.StringFlag{Name: "consumer-partitions", Usage: "Refused: there is one tenancy."},
		),
		action: withClient(s, func(c *cli.Context, cl *client) error {
			name := c.String("name")
			peers := splitList(c.String("consumer-peers"))
			switch {
			case name == "":
				return usagef(c, "-name is needed")
			case c.String("consumer-partitions") != "":
				return usagef(c, "-consumer-partitions: admin partitions are a Consul Enterprise feature")
			case len(peers) == 0:
				return usagef(c, "-consumer-peers is needed")
			}
			for range exportTries {
				done, err := export(c, cl, name, peers)
				if err != nil {
					return cl.explain(err)
				}
				if done {
					_, err := fmt.Fprintf(c.App.Writer, "Successfully exported service %q to cluster peers %q\n", name, strings.Join(peers, ","))
					return err
				}
			}
			return errors.New("others change what is exported all the time: try again")
		}),
	}.build()
}

func splitList(s string) []string {
	return strings.FieldsFunc(s, func(r rune) bool { return r == ',' || r == ' ' })
}

// export adds peers to the entry, unless somebody else wrote it meanwhile.
func export(c *cli.Context, cl *client, name string, peers []string) (bool, error) {
	entry := &api.ExportedServicesConfigEntry{Name: catalog.ExportedServicesName}
	got, _, err := cl.ConfigEntries().Get(api.ExportedServices, catalog.ExportedServicesName, cl.read(c.Context))
	var status api.StatusError
	if err != nil && (!errors.As(err, &status) || status.Code != http.StatusNotFound) {
		return false, err
	}
	if e, ok := got.(*api.ExportedServicesConfigEntry); ok && err == nil {
		entry = e
	}
	at := slices.IndexFunc(entry.Services, func(s api.ExportedService) bool { return s.Name == name })
	if at < 0 {
		entry.Services = append(entry.Services, api.ExportedService{Name: name})
		at = len(entry.Services) - 1
	}
	s, added := &entry.Services[at], false
	for _, p := range peers {
		if !slices.ContainsFunc(s.Consumers, func(c api.ServiceConsumer) bool { return c.Peer == p }) {
			s.Consumers = append(s.Consumers, api.ServiceConsumer{Peer: p})
			added = true
		}
	}
	if !added {
		return true, nil
	}
	done, _, err := cl.ConfigEntries().CAS(entry, entry.ModifyIndex, (&api.WriteOptions{}).WithContext(c.Context))
	return done, err
}

func servicesExported(s streams) *cli.Command {
	return spec{
		name: "exported-services", usage: "List the services that other clusters may see",
		examples: []string{"weft services exported-services", "weft services exported-services -format=json"},
		flags:    clientFlags(formatFlag(), &cli.StringFlag{Name: "filter", Usage: "An expression that chooses."}),
		action: withClient(s, func(c *cli.Context, cl *client) error {
			params := url.Values{}
			if f := c.String("filter"); f != "" {
				params.Set("filter", f)
			}
			var list []api.ResolvedExportedService
			if _, err := cl.call(c.Context, http.MethodGet, "/v1/exported-services", params, nil, &list); err != nil {
				return cl.explain(err)
			}
			return formatted(c, list, func() error {
				if len(list) == 0 {
					_, err := fmt.Fprintln(c.App.Writer, "No service is exported.")
					return err
				}
				rows := [][]string{{"Service", "Consumer Peers"}}
				for _, e := range list {
					rows = append(rows, []string{e.Service, strings.Join(e.Consumers.Peers, ", ")})
				}
				return table(c.App.Writer, rows...)
			})
		}),
	}.build()
}
