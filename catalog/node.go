package catalog

// RaftIndex says in which log entries a stored object was created and last changed.
type RaftIndex struct {
	CreateIndex uint64 `weft:",omitempty"`
	ModifyIndex uint64 `weft:",omitempty"`
}

// Node is a host as a catalog row. Its name is the key; its ID tells two hosts
// that claim one name apart.
type Node struct {
	ID              string `weft:",omitempty"` // UUID
	Node            string `weft:",omitempty"` // name
	Address         string `weft:",omitempty"`
	Datacenter      string `weft:",omitempty"`
	TaggedAddresses map[string]string
	Meta            map[string]string
	Locality        *Locality `weft:",omitempty"`
	RaftIndex
}

// Locality places a node or a service.
type Locality struct {
	Region string
	Zone   string
}

// Distance is how far it is to another place: 0 within a zone, 1 within a region, 2
// farther, or where nobody said. A region without zones is one zone.
func (l *Locality) Distance(to *Locality) int {
	switch {
	case l == nil || to == nil || l.Region == "" || l.Region != to.Region:
		return 2
	case l.Zone != to.Zone:
		return 1
	default:
		return 0
	}
}

// Place is where an instance stands: what its service says, else what its node does.
func (i *Instance) Place() *Locality {
	if i.Service != nil && i.Service.Locality != nil {
		return i.Service.Locality
	}
	if i.Node != nil {
		return i.Node.Locality
	}
	return nil
}

// Validate refuses a zone of no region.
func (l *Locality) Validate() error {
	if l != nil && l.Zone != "" && l.Region == "" {
		return Invalidf("zone cannot be set without region")
	}
	return nil
}

// ValidNodeID refuses an ID of a node that is no UUID. Nodes may have none.
func ValidNodeID(id string) error {
	if id == "" {
		return nil
	}
	if len(id) != 36 {
		return Invalidf("Bad node ID: %.64q is no UUID: it has not 36 characters", id)
	}
	for i, c := range []byte(id) {
		dash := i == 8 || i == 13 || i == 18 || i == 23
		hex := c >= '0' && c <= '9' || c >= 'a' && c <= 'f' || c >= 'A' && c <= 'F'
		if dash != (c == '-') || !dash && !hex {
			return Invalidf("Bad node ID: %q is no UUID such as 40e4a748-2192-161a-0510-9bf59fe950b5", id)
		}
	}
	return nil
}

// Well-known names that Consul's clients look for.
const (
	// NodeCheckID is the check that tells whether the agent of a node is alive.
	NodeCheckID     = "serfHealth"
	NodeCheckName   = "Serf Health Status"
	NodeCheckAlive  = "Agent alive and reachable"
	NodeCheckFailed = "Agent not live or unreachable"
	// ServerService is the service under which servers stand in the catalog.
	ServerService = "consul"
	// NodeMaintenanceCheckID and ServiceMaintenancePrefix are the checks of maintenance mode.
	NodeMaintenanceCheckID   = "_node_maintenance"
	ServiceMaintenancePrefix = "_service_maintenance:"
)

// Member is a participant in gossip.
type Member struct {
	Name   string
	ID     string // node UUID
	Addr   string
	Port   uint16
	Tags   map[string]string
	Status MemberStatus
}

// MemberStatus is what gossip believes of a member. The numbers are Serf's, as
// /v1/agent/members shows them.
type MemberStatus int

// Member states.
const (
	MemberNone MemberStatus = iota
	MemberAlive
	MemberLeaving
	MemberLeft
	MemberFailed
)

func (s MemberStatus) String() string {
	switch s {
	case MemberAlive:
		return "alive"
	case MemberLeaving:
		return "leaving"
	case MemberLeft:
		return "left"
	case MemberFailed:
		return "failed"
	default:
		return "none"
	}
}
