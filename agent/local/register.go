package local

import (
	"context"
	"fmt"
	"slices"

	"github.com/weftmesh/weft/agent/checks"
	"github.com/weftmesh/weft/catalog"
)

// Register adds or replaces a service with its checks and, where the registration
// asks for one, its sidecar. It returns once they are on disk. The warnings are
// logged too. reg must not be changed afterwards.
func (s *State) Register(ctx context.Context, reg *catalog.ServiceRegistration, opt RegisterOptions) (warnings []string, err error) {
	if reg == nil {
		return nil, refuse("Missing service name")
	}
	err = s.change(ctx, func(d *draft) error {
		if err := d.register(reg, opt); err != nil {
			return err
		}
		warnings = d.warnings
		return nil
	})
	s.logWarnings(warnings, "service", serviceID(reg))
	return warnings, err
}

// Deregister removes a service with its checks and the sidecar made for it.
func (s *State) Deregister(ctx context.Context, id string) error {
	return s.change(ctx, func(d *draft) error {
		if d.services[id] == nil {
			return unknownService(id)
		}
		d.remove(id)
		return nil
	})
}

// RegisterCheck adds or replaces a check of the node, or of the service that it
// names. The warnings are logged too. given must not be changed afterwards.
func (s *State) RegisterCheck(ctx context.Context, given *catalog.CheckDefinition) (warnings []string, err error) {
	if given == nil {
		return nil, refuse("Missing check name")
	}
	err = s.change(ctx, func(d *draft) error {
		if err := d.registerCheck(given, false); err != nil {
			return err
		}
		warnings = d.warnings
		return nil
	})
	s.logWarnings(warnings, "check", checkID(given))
	return warnings, err
}

func (d *draft) registerCheck(given *catalog.CheckDefinition, fromFile bool) error {
	if given.Name == "" {
		return refuse("Missing check name")
	}
	if given.Status != "" && !catalog.ValidStatus(given.Status) {
		return refuse("Bad check status")
	}
	def := *given
	def.CheckID = checkID(given)
	if def.CheckID == "" {
		def.CheckID = given.Name
	}
	def.ID = ""
	if err := validCheckID(def.CheckID); err != nil {
		return err
	}
	warnings, err := checks.Validate(&def)
	if err != nil {
		return err
	}
	d.warn(warnings...)
	var e *service
	if def.ServiceID != "" {
		if e = d.services[def.ServiceID]; e == nil {
			return &refusal{text: fmt.Sprintf("ServiceID %q does not exist", def.ServiceID), is: catalog.ErrNotFound}
		}
	}
	return d.putCheck(&def, e, checkOptions{fromFile: fromFile, showZero: true})
}

// DeregisterCheck removes a check.
func (s *State) DeregisterCheck(ctx context.Context, id string) error {
	return s.change(ctx, func(d *draft) error {
		if d.checks[id] == nil {
			return unknownCheck(id)
		}
		delete(d.checks, id)
		return nil
	})
}

// ServiceMaintenance switches the maintenance mode of a service.
func (s *State) ServiceMaintenance(id string, on bool, reason string) error {
	return s.change(context.Background(), func(d *draft) error {
		e := d.services[id]
		if e == nil {
			return unknownService(id)
		}
		if err := validServiceID(id); on && err != nil {
			return err // it is from a time when more was allowed
		}
		d.maintain(catalog.ServiceMaintenancePrefix+id, "Service Maintenance Mode", e, on, reason,
			"Maintenance mode is enabled for this service, but no reason was provided. This is a default message.")
		return nil
	})
}

// NodeMaintenance switches the maintenance mode of this host.
func (s *State) NodeMaintenance(on bool, reason string) error {
	return s.change(context.Background(), func(d *draft) error {
		d.maintain(catalog.NodeMaintenanceCheckID, "Node Maintenance Mode", nil, on, reason,
			"Maintenance mode is enabled for this node, but no reason was provided. This is a default message.")
		return nil
	})
}

func (d *draft) maintain(checkID, name string, e *service, on bool, reason, fallback string) {
	if !on {
		delete(d.checks, checkID)
		return
	}
	if reason == "" {
		reason = fallback
	}
	def := &catalog.CheckDefinition{CheckID: checkID, Name: name, Notes: reason, Status: catalog.StatusCritical}
	if e != nil {
		def.ServiceID = e.svc.ID
	}
	c := &check{def: def, kind: checks.TypeMaintenance}
	c.row = rowOf(d.s.cfg.Node.Node, c, false)
	if e != nil {
		c.row.ServiceName, c.row.ServiceTags = e.svc.Service, e.svc.Tags
	}
	d.putEntry(c)
}

// ApplyFiles makes what comes from configuration files exactly this: adds, updates
// and removes. A file wins over a registration with the same ID. It is refused as a
// whole, and then nothing has changed.
func (s *State) ApplyFiles(ctx context.Context, regs []*catalog.ServiceRegistration, defs []*catalog.CheckDefinition) (warnings []string, err error) {
	err = s.change(ctx, func(d *draft) error {
		wanted := map[string]bool{}
		for _, reg := range regs {
			id := serviceID(reg)
			if wanted[id] {
				return refuse("service ID %q is defined twice in the configuration files", id)
			}
			wanted[id] = true
		}
		for id, e := range s.services {
			if e.fromFile && e.sidecarOf == "" && !wanted[id] {
				d.remove(id)
			}
		}
		for _, reg := range explicitFirst(regs) {
			if err := d.register(reg, RegisterOptions{FromFile: true}); err != nil {
				return fmt.Errorf("service %s of the configuration files: %w", serviceID(reg), err)
			}
		}
		if err := d.applyCheckFiles(defs); err != nil {
			return err
		}
		d.adoptOrphans()
		warnings = d.warnings
		return nil
	})
	s.logWarnings(warnings, "file", "configuration files")
	return warnings, err
}

// explicitFirst puts what names the port of its sidecar before what takes any.
func explicitFirst(regs []*catalog.ServiceRegistration) []*catalog.ServiceRegistration {
	takesAny := func(r *catalog.ServiceRegistration) int {
		if r.Connect != nil && r.Connect.SidecarService != nil && r.Connect.SidecarService.Port == 0 {
			return 1
		}
		return 0
	}
	out := slices.Clone(regs)
	slices.SortStableFunc(out, func(a, b *catalog.ServiceRegistration) int { return takesAny(a) - takesAny(b) })
	return out
}

func (d *draft) applyCheckFiles(defs []*catalog.CheckDefinition) error {
	ofServices := make(map[string]bool, len(d.touched))
	for id := range d.touched {
		ofServices[id] = true
	}
	for _, def := range defs {
		id := checkID(def)
		if id == "" {
			id = def.Name
		}
		if ofServices[id] {
			return refuse("check ID %q is defined twice in the configuration files", id)
		}
		ofServices[id] = true
		if err := d.registerCheck(def, true); err != nil {
			return fmt.Errorf("check %s of the configuration files: %w", id, err)
		}
	}
	for id, c := range d.checks {
		if c.fromFile && !d.touched[id] {
			delete(d.checks, id)
		}
	}
	return nil
}

// adoptOrphans takes back checks that were registered for services of files.
func (d *draft) adoptOrphans() {
	for id, c := range d.s.orphans {
		e := d.services[c.def.ServiceID]
		if e == nil || d.checks[id] != nil {
			continue
		}
		c.row.ServiceName, c.row.ServiceTags = e.svc.Service, e.svc.Tags
		d.checks[id] = c
	}
}

func (s *State) logWarnings(warnings []string, key, value string) {
	for _, w := range warnings {
		s.log.Warn("registered, with a warning", key, value, "hint", w)
	}
}
