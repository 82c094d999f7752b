package main

import (
	"context"
	"errors"
	"os"
	"os/signal"
	"syscall"

	"github.com/urfave/cli/v2"

	"github.com/weftmesh/weft/cmd/weft/demo"
)

func demoCommand(s streams) *cli.Command {
	return spec{
		name: "demo", usage: "See it work: two services refused, allowed over mutual TLS, cut off",
		about: "Starts two agents, as on two hosts, each with a small service, on free ports of this host, and\n" +
			"shows web refused by db, then allowed over mutual TLS, then cut off in the middle of a\n" +
			"connection. Every fact it prints is read from the running system. Then it stays up for you to\n" +
			"try the commands, until Ctrl-C.",
		examples: []string{"weft demo", "weft demo -once   # exit 0, or 1 when a step was not as it should be"},
		flags:    []cli.Flag{&cli.BoolFlag{Name: "once", Usage: "End after the last step."}},
		action: func(c *cli.Context) error {
			binary, err := demo.Binary()
			if err != nil {
				return err
			}
			ctx, stop := signal.NotifyContext(c.Context, os.Interrupt, syscall.SIGTERM)
			defer stop()
			out, isFile := s.out.(*os.File)
			err = demo.Run(ctx, demo.Options{
				Binary: binary, Once: c.Bool("once"), Out: s.out, Color: isFile && demo.Interactive(out),
			})
			switch {
			case errors.Is(err, context.Canceled):
				return &exitError{code: exitForced, quiet: true}
			case err != nil:
				return &exitError{code: exitFailure, quiet: true, err: err} // the demo said it already
			}
			return nil
		},
	}.build()
}
