package local

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	"github.com/weftmesh/weft/agent/checks"
	"github.com/weftmesh/weft/catalog"
)

// draft is what this host is about to say. It is built from the present, refused as
// a whole or committed as a whole. State.changing is held while one lives.
type draft struct {
	s        *State
	services map[string]*service
	checks   map[string]*check
	touched  map[string]bool // IDs of checks that were put, or asked for and kept
	placed   []*catalog.Service
	warnings []string
}

func (s *State) newDraft() *draft {
	return &draft{
		s:        s,
		services: maps.Clone(s.services),
		checks:   maps.Clone(s.checks),
		touched:  map[string]bool{},
	}
}

func (d *draft) warn(texts ...string) {
	for _, t := range texts {
		if !slices.Contains(d.warnings, t) {
			d.warnings = append(d.warnings, t)
		}
	}
}

// register puts the service of a registration, its checks and its sidecar.
func (d *draft) register(reg *catalog.ServiceRegistration, opt RegisterOptions) error {
	warnings, err := validate(reg)
	if err != nil {
		return err
	}
	d.warn(warnings...)
	id := serviceID(reg)
	e := &service{svc: serviceFrom(reg), token: reg.Token, fromFile: opt.FromFile}
	if old := d.services[id]; old != nil && old.sidecarOf != "" {
		d.warn(fmt.Sprintf("service %q replaces the sidecar that the agent made for %q", id, old.sidecarOf))
	}
	d.put(e)
	if err := d.putChecks(e, definitions(reg), opt.ReplaceExistingChecks, false); err != nil {
		return err
	}
	if reg.Connect != nil && reg.Connect.SidecarService != nil {
		return d.registerSidecar(reg, opt)
	}
	if old := d.services[id+sidecarSuffix]; old != nil && old.sidecarOf == id {
		d.remove(old.svc.ID) // the new definition asks for none
	}
	return nil
}

func (d *draft) registerSidecar(reg *catalog.ServiceRegistration, opt RegisterOptions) error {
	side := sidecarFrom(reg)
	if side.Port == 0 && side.SocketPath == "" {
		port, err := d.sidecarPort(side.ID, side.Proxy.DestinationServiceName)
		if err != nil {
			return err
		}
		side.Port = port
	}
	standard := side.Check == nil && len(side.Checks) == 0
	if standard {
		side.Checks = sidecarChecks(side, d.s.cfg.SidecarDeregisterAfter)
	}
	warnings, err := validate(side)
	if err != nil {
		return err
	}
	d.warn(warnings...)
	e := &service{svc: serviceFrom(side), token: side.Token, fromFile: opt.FromFile, sidecarOf: serviceID(reg)}
	d.put(e)
	return d.putChecks(e, definitions(side), true, standard && RunsHere(e.svc))
}

// put adds or replaces a service. An equal one stays as it is, so that repeating a
// registration costs nothing.
func (d *draft) put(e *service) {
	if old := d.services[e.svc.ID]; old != nil && reflect.DeepEqual(old, e) {
		return
	}
	d.services[e.svc.ID] = e
	d.placed = append(d.placed, e.svc)
}

// putChecks gives a service the checks defined. Others that it has stay, unless
// replace; maintenance is an operator's word, and stays always. factual marks the
// listener check as one that the agent knows the answer to.
func (d *draft) putChecks(e *service, defs []*catalog.CheckDefinition, replace, factual bool) error {
	keep := map[string]bool{}
	for _, def := range defs {
		keep[def.CheckID] = true
		fact := factual && def.Name == listenerCheck
		if err := d.putCheck(def, e, checkOptions{fact: fact, fromFile: e.fromFile}); err != nil {
			return err
		}
	}
	if !replace {
		return nil
	}
	for id, c := range d.checks {
		if c.def.ServiceID == e.svc.ID && !keep[id] && c.kind != checks.TypeMaintenance {
			delete(d.checks, id)
		}
	}
	return nil
}

type checkOptions struct {
	fact     bool
	fromFile bool
	// showZero shows a missing interval and timeout as "0s", as for checks that are
	// registered on their own.
	showZero bool
}

// putCheck adds or replaces a check of a service, or of the node where e is nil.
func (d *draft) putCheck(def *catalog.CheckDefinition, e *service, opt checkOptions) error {
	if err := d.s.cfg.Scripts.Allow(def, opt.fromFile); err != nil {
		return err
	}
	c := &check{def: def, kind: checks.TypeOf(def), fact: opt.fact, fromFile: opt.fromFile}
	if c.kind == checks.TypeAlias && !d.s.isLocalAlias(def) && d.s.cfg.AliasTarget == nil {
		return refuse("check %s: this agent cannot follow other nodes (alias_node %q)", def.CheckID, def.AliasNode)
	}
	c.row = rowOf(d.s.cfg.Node.Node, c, opt.showZero)
	if e != nil {
		c.row.ServiceName = e.svc.Service
		c.row.ServiceTags = e.svc.Tags
	}
	d.putEntry(c)
	return nil
}

func (d *draft) putEntry(c *check) {
	id := c.def.CheckID
	d.touched[id] = true
	old := d.checks[id]
	if old != nil && old.def.ServiceID != c.def.ServiceID {
		d.warn(fmt.Sprintf("check ID %q was that of another check, which it replaces: check IDs are unique on a node", id))
	}
	if old != nil && sameCheck(old, c) {
		return
	}
	d.checks[id] = c
}

func sameCheck(a, b *check) bool {
	return a.kind == b.kind && a.fromFile == b.fromFile && a.fact == b.fact &&
		a.row.Notes == b.row.Notes && a.row.ServiceName == b.row.ServiceName &&
		slices.Equal(a.row.ServiceTags, b.row.ServiceTags) && reflect.DeepEqual(a.def, b.def)
}

// remove drops a service with its checks and the sidecar made for it.
func (d *draft) remove(id string) {
	delete(d.services, id)
	for cid, c := range d.checks {
		if c.def.ServiceID == id {
			delete(d.checks, cid)
		}
	}
	if side := d.services[id+sidecarSuffix]; side != nil && side.sidecarOf == id {
		d.remove(side.svc.ID)
	}
}

// rowOf is a check as the catalog shows it before its first result. The definition
// stays on this host: headers and bodies of checks may hold secrets.
func rowOf(node string, c *check, showZero bool) *catalog.Check {
	def := c.def
	row := &catalog.Check{
		Node:        node,
		CheckID:     def.CheckID,
		Name:        def.Name,
		Status:      def.Status,
		Notes:       def.Notes,
		ServiceID:   def.ServiceID,
		ServiceTags: []string{},
		Type:        c.kind,
	}
	if row.Status == "" {
		row.Status = catalog.StatusCritical
	}
	if showZero || def.Interval != 0 {
		row.Interval = def.Interval.String()
	}
	if showZero || def.Timeout != 0 {
		row.Timeout = def.Timeout.String()
	}
	return row
}

// isLocalAlias tells whether the target of an alias is on this host.
func (s *State) isLocalAlias(def *catalog.CheckDefinition) bool {
	return def.AliasNode == "" || strings.EqualFold(def.AliasNode, s.cfg.Node.Node)
}
