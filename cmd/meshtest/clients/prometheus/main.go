// Command prometheus-consul runs Prometheus's own Consul discovery, unchanged and
// wired as Prometheus wires it, and prints what Prometheus would scrape: a line of
// JSON for each change, a list of groups of targets. Its argument is the YAML of a
// consul_sd_config.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"slices"
	"syscall"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/discovery"
	"github.com/prometheus/prometheus/discovery/consul"
	"github.com/prometheus/prometheus/discovery/targetgroup"
	"go.yaml.in/yaml/v2"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: prometheus-consul <YAML of a consul_sd_config>")
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "prometheus-consul:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, config string) error {
	var sd consul.SDConfig
	if err := yaml.Unmarshal([]byte(config), &sd); err != nil {
		return err
	}
	registry := prometheus.NewRegistry()
	metrics, err := discovery.CreateAndRegisterSDMetrics(registry)
	if err != nil {
		return err
	}
	logger := slog.New(slog.NewTextHandler(os.Stderr, nil))
	manager := discovery.NewManager(ctx, logger, registry, metrics)
	if manager == nil {
		return fmt.Errorf("no discovery manager: its metrics cannot be registered")
	}
	if err := manager.ApplyConfig(map[string]discovery.Configs{"mesh": {&sd}}); err != nil {
		return err
	}
	go func() { _ = manager.Run() }()
	out := json.NewEncoder(os.Stdout)
	for {
		select {
		case <-ctx.Done():
			return nil
		case sets := <-manager.SyncCh():
			if err := out.Encode(flat(sets["mesh"])); err != nil {
				return err
			}
		}
	}
}

// flat gives each target with the labels of its group.
func flat(groups []*targetgroup.Group) []model.LabelSet {
	all := []model.LabelSet{}
	for _, g := range groups {
		for _, t := range g.Targets {
			all = append(all, g.Labels.Merge(t))
		}
	}
	slices.SortFunc(all, func(a, b model.LabelSet) int {
		if a.Before(b) {
			return -1
		}
		return 1
	})
	return all
}
