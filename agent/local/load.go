package local

import (
	"encoding/json"
	"errors"
	"time"

	"github.com/weftmesh/weft/agent/checks"
	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/catalog/durable"
)

// load reads the registrations of the last run. Checks of services that are not
// there wait for configuration files to bring them.
func (s *State) load() error {
	if err := s.disk.read(dirServices, s.loadService); err != nil {
		return err
	}
	for id, e := range s.services {
		if e.sidecarOf != "" && s.services[e.sidecarOf] == nil {
			s.log.Warn("dropping the saved sidecar of a service that is gone", "service", id)
			delete(s.services, id)
			if err := s.disk.remove(dirServices, id); err != nil {
				return err
			}
		}
	}
	s.disk.states = map[string]savedState{}
	s.disk.readAlive()
	if err := s.disk.read(dirStates, s.loadState); err != nil {
		return err
	}
	if err := s.disk.read(dirChecks, s.loadCheck); err != nil {
		return err
	}
	for _, c := range s.checks {
		s.begin(c, nil)
	}
	return nil
}

func (s *State) loadService(b []byte) (string, error) {
	var saved savedService
	if err := json.Unmarshal(b, &saved); err != nil {
		return "", err
	}
	svc := saved.Service
	if svc == nil || svc.ID == "" || svc.ID != saved.ID || svc.Service == "" {
		return "", errors.New("it describes no service")
	}
	if svc.ID == catalog.ServerService {
		return "", validServiceID(svc.ID)
	}
	if err := statable(svc, nil); err != nil {
		return "", err
	}
	svc.Tags, svc.Meta = orEmpty(svc.Tags), orEmptyMap(svc.Meta)
	s.services[svc.ID] = &service{svc: svc, token: saved.Token, sidecarOf: saved.SidecarOf}
	return svc.ID, nil
}

// statable refuses what the servers would refuse, and with it all that this host says.
func statable(svc *catalog.Service, checks []*catalog.Check) error {
	return (&catalog.Register{Node: &catalog.Node{Node: "any"}, Service: svc, Checks: checks}).Validate()
}

func (s *State) loadState(b []byte) (string, error) {
	var saved savedState
	if err := json.Unmarshal(b, &saved); err != nil {
		return "", err
	}
	if saved.ID == "" || !catalog.ValidStatus(saved.Status) {
		return "", errors.New("it describes no status of a check")
	}
	s.disk.states[saved.ID] = saved
	return saved.ID, nil
}

func (s *State) loadCheck(b []byte) (string, error) {
	var saved savedCheck
	if err := json.Unmarshal(b, &saved); err != nil {
		return "", err
	}
	def := saved.Def
	if def == nil || def.CheckID == "" || def.CheckID != saved.ID {
		return "", errors.New("it describes no check")
	}
	c := &check{def: def, kind: saved.Kind, fact: saved.Fact}
	if c.kind != checks.TypeMaintenance {
		if _, err := checks.Validate(def); err != nil {
			return "", err
		}
		c.kind = checks.TypeOf(def)
		// What is kept on disk came over the API.
		if err := s.cfg.Scripts.Allow(def, false); err != nil {
			return "", err
		}
	}
	c.row = rowOf(s.cfg.Node.Node, c, false)
	c.row.Interval, c.row.Timeout = saved.Interval, saved.Timeout
	c.row.ServiceTags = orEmpty(saved.Tags)
	if err := statable(nil, []*catalog.Check{c.row}); err != nil {
		return "", err
	}
	if def.ServiceID != "" {
		e := s.services[def.ServiceID]
		if e == nil {
			s.orphans[def.CheckID] = c
			return def.CheckID, nil
		}
		c.row.ServiceName = e.svc.Service
	}
	s.checks[def.CheckID] = c
	return def.CheckID, nil
}

// dropOrphans forgets what belongs to services that no file brought.
func (s *State) dropOrphans() {
	s.changing.Lock()
	defer s.changing.Unlock()
	for id, c := range s.orphans {
		s.log.Warn("dropping the saved check of a service that is gone", "check", id, "service", c.def.ServiceID)
		s.removeQuietly(dirChecks, id)
	}
	s.mu.Lock()
	unclaimed := s.disk.states
	s.orphans = map[string]*check{}
	s.disk.states = nil
	s.mu.Unlock()
	for id := range unclaimed {
		s.removeQuietly(dirStates, id)
	}
}

func (s *State) removeQuietly(folder, id string) {
	if err := s.disk.remove(folder, id); err != nil {
		s.log.Warn("cannot clean up the data directory", "err", err)
	}
}

// saveStates writes the status of checks that have a new one, so that a restart of
// the agent does not make healthy services look sick. A lost write costs that, no more.
func (s *State) saveStates() {
	if s.disk.dir == "" {
		return
	}
	s.changing.Lock() // a check that is being removed must not come back
	defer s.changing.Unlock()
	var list []savedState
	s.mu.Lock()
	for id, c := range s.checks {
		if c.unsaved {
			c.unsaved = false
			list = append(list, savedState{ID: id, Status: c.row.Status, Output: c.row.Output, Expires: c.expires})
		}
	}
	s.mu.Unlock()
	for i := range list {
		if err := s.disk.put(dirStates, list[i].ID, &list[i], durable.Swap); err != nil {
			s.log.Warn("cannot save the state of a check", "check", list[i].ID, "err", err)
		}
	}
	if err := s.disk.touch(time.Now()); err != nil {
		s.log.Warn("cannot save that the agent runs", "err", err)
	}
}
