package main

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strconv"

	"github.com/hashicorp/consul/api"
	"github.com/urfave/cli/v2"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/cmd/weft/config"
)

func servicesCommand(s streams) *cli.Command {
	return group("services", "Register, deregister and export services", "", servicesRegister(s), servicesDeregister(s), servicesExport(s), servicesExported(s))
}

// serviceFlags describe one service without a file.
func serviceFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "id", Usage: "The ID of the instance. The name when it is not set."},
		&cli.StringFlag{Name: "name", Usage: "The name of the service."},
		&cli.StringFlag{Name: "address", Usage: "The address of the instance. The host's when it is not set."},
		&cli.IntFlag{Name: "port", Usage: "The port of the instance."},
		&cli.StringFlag{Name: "socket", Usage: "The path of the Unix socket of the instance, instead of a port."},
		&cli.StringFlag{Name: "kind", Usage: "The kind of service, for proxies and gateways."},
		&cli.StringSliceFlag{Name: "tag", Usage: "A tag. May be given many times."},
		&cli.StringSliceFlag{Name: "meta", Usage: "Metadata. May be given many times."},
		&cli.StringSliceFlag{Name: "tagged-address", Usage: "A further address, as name=host:port. May be given many times."},
	}
}

func servicesRegister(s streams) *cli.Command {
	return spec{
		name: "register", usage: "Register services with the agent of this host", args: "[FILE…]", max: -1,
		about: "Registers the services of files (HCL or JSON, as in the agent's configuration), or the one\nthat flags describe. They stay registered until they are deregistered.",
		examples: []string{
			"weft services register web.hcl",
			"weft services register -name=web -port=8080 -tag=v1",
		},
		flags: clientFlags(serviceFlags()...),
		action: withClient(s, func(c *cli.Context, cl *client) error {
			if c.NArg() > 0 {
				for _, f := range serviceFlags() {
					if name := f.Names()[0]; c.IsSet(name) {
						return usagef(c, "-%s describes a service without a file: give flags or files, not both", name)
					}
				}
				return registerFiles(c, cl)
			}
			reg, err := serviceFromFlags(c)
			if err != nil {
				return err
			}
			if err := cl.Agent().ServiceRegisterOpts(reg, api.ServiceRegisterOpts{}.WithContext(c.Context)); err != nil {
				return err
			}
			fmt.Fprintf(c.App.Writer, "Registered service: %s\n", reg.Name)
			return nil
		}),
	}.build()
}

func registerFiles(c *cli.Context, cl *client) error {
	services, err := serviceFiles(c)
	if err != nil {
		return err
	}
	for _, reg := range services {
		if _, err := cl.call(c.Context, http.MethodPut, "/v1/agent/service/register", nil, reg, nil); err != nil {
			return fmt.Errorf("service %s: %w", reg.Name, cl.explain(err))
		}
		fmt.Fprintf(c.App.Writer, "Registered service: %s\n", reg.Name)
	}
	return nil
}

// serviceFiles reads every file before anything is sent.
func serviceFiles(c *cli.Context) ([]*catalog.ServiceRegistration, error) {
	var out []*catalog.ServiceRegistration
	for _, path := range c.Args().Slice() {
		b, err := readInput(path, c.App.Reader)
		if err != nil {
			return nil, err
		}
		list, err := config.Services(path, b)
		if err != nil {
			return nil, err
		}
		out = append(out, list...)
	}
	return out, nil
}

func serviceFromFlags(c *cli.Context) (*api.AgentServiceRegistration, error) {
	if c.String("name") == "" {
		return nil, usagef(c, "name a file, or a service with -name")
	}
	meta, err := pairs(c, "meta")
	if err != nil {
		return nil, err
	}
	tagged, err := pairs(c, "tagged-address")
	if err != nil {
		return nil, err
	}
	reg := &api.AgentServiceRegistration{
		Kind: api.ServiceKind(c.String("kind")), ID: c.String("id"), Name: c.String("name"), Address: c.String("address"),
		Port: c.Int("port"), SocketPath: c.String("socket"), Tags: c.StringSlice("tag"), Meta: meta,
	}
	for name, addr := range tagged {
		host, port, err := net.SplitHostPort(addr)
		n, numErr := strconv.Atoi(port)
		if err = errors.Join(err, numErr); err != nil {
			return nil, usagef(c, "-tagged-address %s=%s is not name=host:port", name, addr)
		}
		if reg.TaggedAddresses == nil {
			reg.TaggedAddresses = map[string]api.ServiceAddress{}
		}
		reg.TaggedAddresses[name] = api.ServiceAddress{Address: host, Port: n}
	}
	return reg, nil
}

func servicesDeregister(s streams) *cli.Command {
	return spec{
		name: "deregister", usage: "Deregister services from the agent of this host", args: "[FILE…]", max: -1,
		about:    "Deregisters the services of files, or the one with the given ID. Its sidecar drains and goes\nwith it.",
		examples: []string{"weft services deregister -id=web", "weft services deregister web.hcl"},
		flags:    clientFlags(&cli.StringFlag{Name: "id", Usage: "The ID of the instance."}),
		action: withClient(s, func(c *cli.Context, cl *client) error {
			ids := []string{c.String("id")}
			switch {
			case c.NArg() > 0 && c.IsSet("id"):
				return usagef(c, "-id and files exclude each other")
			case c.NArg() == 0 && ids[0] == "":
				return usagef(c, "name a file, or a service with -id")
			case c.NArg() > 0:
				services, err := serviceFiles(c)
				if err != nil {
					return err
				}
				ids = nil
				for _, reg := range services {
					ids = append(ids, cmp.Or(reg.ID, reg.Name))
				}
			}
			for _, id := range ids {
				if err := cl.Agent().ServiceDeregisterOpts(id, cl.read(c.Context)); err != nil {
					return fmt.Errorf("service %s: %w", id, cl.explain(err))
				}
				fmt.Fprintf(c.App.Writer, "Deregistered service: %s\n", id)
			}
			return nil
		}),
	}.build()
}
