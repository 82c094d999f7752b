package main

import (
	"fmt"
	"strings"

	"github.com/hashicorp/consul/api"
	"github.com/urfave/cli/v2"
)

func eventCommand(s streams) *cli.Command {
	return spec{
		name: "event", usage: "Send an event to every agent", args: "[PAYLOAD]", max: -1, anyArgs: true,
		about: "Agents that an event reaches hand it to who watches for it (weft watch -type=event).\n" +
			"Name, filters and payload together have at most 512 bytes. Events are not stored:\nwho is not there misses them.",
		flags: clientFlags(
			&cli.StringFlag{Name: "name", Usage: "The name of the event; needed."},
			&cli.StringFlag{Name: "node", Usage: "Only for nodes whose name this regular expression matches."},
			&cli.StringFlag{Name: "service", Usage: "Only for hosts with a service whose name this matches."},
			&cli.StringFlag{Name: "tag", Usage: "With -service: whose tag this matches."},
		),
		examples: []string{"weft event -name=deploy -service=web 1.4.2"},
		action: withClient(s, func(c *cli.Context, cl *client) error {
			if c.String("name") == "" {
				return usagef(c, "-name is needed")
			}
			e := &api.UserEvent{
				Name: c.String("name"), NodeFilter: c.String("node"), ServiceFilter: c.String("service"), TagFilter: c.String("tag"),
			}
			if c.NArg() > 0 {
				e.Payload = []byte(strings.Join(c.Args().Slice(), " "))
			}
			id, _, err := cl.Event().Fire(e, cl.write(c.Context))
			if err != nil {
				return err
			}
			fmt.Fprintf(c.App.Writer, "Event ID: %s\n", id)
			return nil
		}),
	}.build()
}
