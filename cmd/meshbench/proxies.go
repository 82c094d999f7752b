package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"sync"
	"syscall"

	"github.com/weftmesh/weft/connect"
	"github.com/weftmesh/weft/connect/identity"
)

// noSigner is for proxies whose certificates outlive the run.
type noSigner struct{}

func (noSigner) Sign(context.Context, []byte) (identity.Chain, error) {
	return identity.Chain{}, errors.New("meshbench signs nothing")
}

// runProxies runs a proxy for each snapshot file in one process, as an agent does. With
// oneToOne their connections go without tunnels. For each line of its input it gives the
// memory that it does not use back to the system, and says so.
func runProxies(oneToOne bool, snapshots []string) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	// A line for each connection is formatted, as in an agent, and goes nowhere.
	log := slog.New(slog.NewTextHandler(io.Discard, nil)) //nolint:sloglint // it is to be formatted
	go func() {
		for in := bufio.NewScanner(os.Stdin); in.Scan(); {
			debug.FreeOSMemory()
			debug.FreeOSMemory() // what finalizers let go
			fmt.Println("rested")
		}
	}()
	guard := connect.NewGuard(connect.GuardConfig{})
	metrics := connect.NewMetrics(nil)
	var wg sync.WaitGroup
	for _, file := range snapshots {
		p, err := connect.NewProxy(connect.ProxyConfig{
			ID: filepath.Base(file), Signer: noSigner{}, KeyFile: keyOf(file), Logger: log, Metrics: metrics, Guard: guard, OneToOne: oneToOne,
		})
		if err != nil {
			return err
		}
		wg.Go(func() {
			if err := p.Run(ctx, &connect.FileSource{Path: file, Logger: log}); err != nil {
				log.Error("a proxy ended", "err", err)
				os.Exit(1)
			}
		})
	}
	wg.Wait()
	return nil
}
