package catalog

import (
	"regexp"
	"strings"
	"unicode"
	"unicode/utf8"
)

// maxName bounds every name that becomes a key.
const maxName = 512

func validName(noun, n string) error {
	if n == "" {
		return Invalidf("%s: the name is empty", noun)
	}
	if len(n) > maxName {
		return Invalidf("%s: the name has %d bytes, at most %d are allowed", noun, len(n), maxName)
	}
	// Control characters separate keys in the store; what is not UTF-8 would not
	// survive JSON and so name another thing on the next host.
	if !utf8.ValidString(n) || strings.ContainsFunc(n, unicode.IsControl) {
		return Invalidf("%s: the name %q has control characters or is not UTF-8", noun, n)
	}
	return nil
}

// validOptionalName is validName where no name is fine.
func validOptionalName(noun, n string) error {
	if n == "" {
		return nil
	}
	return validName(noun, n)
}

func validNode(n *Node) error {
	if n == nil {
		return Invalidf("node: empty")
	}
	if err := validName("node", n.Node); err != nil {
		return err
	}
	return validOptionalName("node "+n.Node+": ID", n.ID)
}

// validRegex refuses what RE2 cannot compile; empty is no expression.
func validRegex(field, expr string) error {
	if expr == "" {
		return nil
	}
	if _, err := regexp.Compile(expr); err != nil {
		return Invalidf("%s: %w", field, err)
	}
	return nil
}

// Validate implements Command.
func (c *SyncNode) Validate() error {
	if err := validNode(c.State.Node); err != nil {
		return err
	}
	services := make(map[string]bool, len(c.State.Services))
	for _, s := range c.State.Services {
		if err := validService(s); err != nil {
			return err
		}
		if services[s.ID] {
			return Invalidf("node %s: service ID %q is stated twice", c.State.Node.Node, s.ID)
		}
		services[s.ID] = true
	}
	return validChecks(c.State.Node.Node, c.State.Checks)
}

// Validate implements Command.
func (c *Register) Validate() error {
	if err := validNode(c.Node); err != nil {
		return err
	}
	if c.Service != nil {
		if err := validService(c.Service); err != nil {
			return err
		}
	}
	return validChecks(c.Node.Node, c.Checks)
}

func validService(s *Service) error {
	if s == nil {
		return Invalidf("service: empty")
	}
	if err := validName("service", s.Service); err != nil {
		return err
	}
	if s.Service == Wildcard {
		return Invalidf("service: the name %q stands for any service in intentions and cannot be one", Wildcard)
	}
	if err := validName("service "+s.Service+": ID", s.ID); err != nil {
		return err
	}
	switch s.Kind {
	case KindTypical, KindMeshGateway, KindTerminatingGateway, KindIngressGateway, KindAPIGateway:
		return nil
	case KindConnectProxy:
		d := s.Proxy.DestinationServiceName
		if d == "" || d == Wildcard {
			return Invalidf("service %s: Proxy.DestinationServiceName must name one service", s.ID)
		}
		if s.Connect.Native {
			return Invalidf("service %s: a proxy cannot be Connect.Native as well", s.ID)
		}
		return validName("service "+s.ID+": Proxy.DestinationServiceName", d)
	default:
		return Invalidf("service %s: unknown kind %q", s.ID, s.Kind)
	}
}

func validChecks(node string, checks []*Check) error {
	seen := make(map[string]bool, len(checks))
	for _, c := range checks {
		if err := validCheck(c); err != nil {
			return err
		}
		if seen[c.CheckID] {
			return Invalidf("node %s: check ID %q is stated twice", node, c.CheckID)
		}
		seen[c.CheckID] = true
	}
	return nil
}

func validCheck(c *Check) error {
	if c == nil {
		return Invalidf("check: empty")
	}
	if err := validName("check ID", c.CheckID); err != nil {
		return err
	}
	if err := validOptionalName("check "+c.CheckID+": service ID", c.ServiceID); err != nil {
		return err
	}
	if !ValidStatus(c.Status) {
		return Invalidf("check %s: invalid status %q, want passing, warning or critical", c.CheckID, c.Status)
	}
	return nil
}

// Validate implements Command.
func (c *Deregister) Validate() error {
	if err := validName("node", c.Node); err != nil {
		return err
	}
	if c.ServiceID != "" && c.CheckID != "" {
		return Invalidf("deregister: name a service or a check, not both")
	}
	if err := validOptionalName("service ID", c.ServiceID); err != nil {
		return err
	}
	return validOptionalName("check ID", c.CheckID)
}

// Validate implements Command.
func (c *SetConfigEntry) Validate() error {
	if c.Entry.ConfigEntry == nil {
		return Invalidf("config entry: empty")
	}
	if err := c.Entry.Validate(); err != nil {
		return err
	}
	if err := validWritten(c.Entry.ConfigEntry); err != nil {
		return err
	}
	return validName(c.Entry.EntryKind(), c.Entry.EntryName())
}

// Validate implements Command.
func (c *DeleteConfigEntry) Validate() error {
	if _, err := NewConfigEntry(c.Kind); err != nil {
		return err
	}
	return validName(c.Kind, c.Name)
}

// Validate implements Command.
func (c *SetIntention) Validate() error {
	e := &ServiceIntentions{Name: c.Destination, Sources: []*SourceIntention{&c.Source}}
	if err := validName("intention destination", c.Destination); err != nil {
		return err
	}
	if err := e.Validate(); err != nil {
		return err
	}
	return validWritten(e)
}

// Validate implements Command.
func (c *DeleteIntention) Validate() error {
	if (c.ID != "") == (c.Source != "" || c.Destination != "") {
		return Invalidf("delete intention: name a source and a destination, or an ID")
	}
	if c.ID == "" && (c.Source == "" || c.Destination == "") {
		return Invalidf("delete intention: source and destination are both needed")
	}
	return nil
}

// Validate implements Command.
func (c *SetCAConfig) Validate() error {
	if c.Config.Provider == "" {
		return Invalidf("CA configuration: no provider")
	}
	return nil
}

// Validate implements Command.
func (c *SetRoots) Validate() error {
	active := 0
	seen := make(map[string]bool, len(c.Roots))
	for _, r := range c.Roots {
		if r == nil {
			return Invalidf("roots: a root is empty")
		}
		if err := validName("root ID", r.ID); err != nil {
			return err
		}
		if seen[r.ID] {
			return Invalidf("roots: ID %s is given twice", r.ID)
		}
		seen[r.ID] = true
		if r.Active {
			active++
		}
	}
	if active != 1 {
		return Invalidf("roots: %d are active, exactly one must be", active)
	}
	return nil
}
