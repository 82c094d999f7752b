package main

import (
	"context"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/urfave/cli/v2"
)

// childGrace is how long a child may take to end when it is asked to.
const childGrace = 5 * time.Second

// child prepares the command that the arguments from the i-th on make, for a
// handler or the holder of a lock. It ends with ctx, with all that it started:
// asked first, forced after a grace.
func child(ctx context.Context, c *cli.Context, i int, env ...string) *exec.Cmd {
	args := c.Args().Slice()[i:]
	if c.Bool("shell") {
		shell := os.Getenv("SHELL")
		if shell == "" {
			shell = "/bin/sh"
		}
		args = []string{shell, "-c", strings.Join(args, " ")}
	}
	cmd := exec.CommandContext(ctx, args[0], args[1:]...) //nolint:gosec // to run it is what the user asks for
	cmd.Env = append(os.Environ(), env...)
	cmd.Stdout, cmd.Stderr = c.App.Writer, c.App.ErrWriter
	ownGroup(cmd)
	cmd.WaitDelay = childGrace
	return cmd
}

func shellFlag() cli.Flag {
	return &cli.BoolFlag{Name: "shell", Value: true, Usage: "Run the child through a shell; -shell=false runs it directly."}
}
