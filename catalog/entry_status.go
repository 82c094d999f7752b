package catalog

import "time"

// EntryStatus is what the leader found out about an entry of a gateway. Clients
// read it; what they write of it is dropped.
type EntryStatus struct {
	Conditions []Condition
}

// Condition is one finding.
type Condition struct {
	Type               string
	Status             string // "True" or "False"
	Reason             string
	Message            string
	Resource           ResourceReference
	LastTransitionTime *time.Time
}

// StatusEntry is a ConfigEntry that has a status.
type StatusEntry interface {
	ConfigEntry
	EntryStatus() *EntryStatus
}

// SetEntryStatus replaces the status of an entry that was last changed at Index.
// Result: bool, false when the entry has changed since or is gone.
type SetEntryStatus struct {
	Kind   string
	Name   string
	Index  uint64
	Status EntryStatus
}

// CommandType implements Command.
func (*SetEntryStatus) CommandType() CommandType { return CmdSetEntryStatus }

// Validate implements Command.
func (c *SetEntryStatus) Validate() error {
	e, err := NewConfigEntry(c.Kind)
	if err != nil {
		return err
	}
	if _, ok := e.(StatusEntry); !ok {
		return Invalidf("set status: entries of kind %s have none", c.Kind)
	}
	return validName(c.Kind, c.Name)
}
