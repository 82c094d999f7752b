package main

import (
	"context"
	"fmt"
	"log/slog"

	"github.com/weftmesh/weft/agent/checks"
	"github.com/weftmesh/weft/agent/httpapi"
	"github.com/weftmesh/weft/agent/local"
	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/cmd/weft/config"
	"github.com/weftmesh/weft/server"
)

// checkParts asks the components whether they would take their part of the
// configuration, before anything is bound or written. It gives what they find odd.
func checkParts(cfg *config.Config) (warnings []string, err error) {
	if err := server.ValidateCA(caConfig(cfg)); err != nil {
		return nil, refused(cfg, "connect.ca_config", err)
	}
	if len(cfg.HTTPSAddrs()) > 0 {
		if err := httpapi.CheckTLS(httpapi.TLSFiles(cfg.HTTPSFiles())); err != nil {
			return nil, refused(cfg, "ports.https", err)
		}
	}
	warnings, err = dryRun(cfg, cfg.Services, cfg.Checks)
	if err == nil {
		return warnings, nil
	}
	// Together they stop at the first mistake: each alone shows its own.
	var found config.Mistakes
	for _, reg := range cfg.Services {
		_, err := dryRun(cfg, []*catalog.ServiceRegistration{reg}, nil)
		found.Add(err)
	}
	for _, def := range cfg.Checks {
		if def.ServiceID == "" {
			_, err := dryRun(cfg, nil, []*catalog.CheckDefinition{def})
			found.Add(err)
		}
	}
	if all := found.Err(); all != nil {
		err = all
	}
	return nil, refused(cfg, "", err)
}

// dryRun registers with a host that exists in memory only.
func dryRun(cfg *config.Config, services []*catalog.ServiceRegistration, defs []*catalog.CheckDefinition) (warnings []string, err error) {
	dry, err := local.New(local.Config{
		Node: &catalog.Node{Node: cfg.NodeName, Datacenter: cfg.Datacenter, Address: cfg.AdvertiseAddr}, Syncer: nobody{},
		MeshPort: cfg.Connect.MeshPort, SidecarMinPort: cfg.Ports.SidecarMinPort, SidecarMaxPort: cfg.Ports.SidecarMaxPort,
		ExposeMinPort: cfg.Ports.ExposeMinPort, ExposeMaxPort: cfg.Ports.ExposeMaxPort,
		Scripts:     cfg.ScriptGate(),
		AliasTarget: func(string, string) catalog.Watch[checks.Target] { return new(catalog.Latest[checks.Target]) },
		Logger:      slog.New(slog.DiscardHandler),
	})
	if err != nil {
		return nil, err
	}
	return dry.ApplyFiles(context.Background(), services, defs)
}

func refused(cfg *config.Config, key string, err error) error {
	if err == nil {
		return nil
	}
	if key != "" {
		err = fmt.Errorf("%s: %w", key, err)
	}
	if pos := cfg.Where(key); pos.File != "" {
		err = fmt.Errorf("%s: %w", pos, err)
	}
	return withCode(exitConfig, err)
}

func caConfig(cfg *config.Config) catalog.CAConfig {
	return catalog.CAConfig{Provider: cfg.Connect.CAProvider, Config: cfg.Connect.CAConfig}
}

// nobody takes no statements.
type nobody struct{}

// Sync implements local.Syncer.
func (nobody) Sync(context.Context, catalog.NodeState) (uint64, error) {
	return 0, catalog.ErrUnavailable
}
