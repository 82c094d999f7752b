package catalog

import (
	"reflect"
	"time"
)

// Status is the state of a check.
type Status = string

// Check states, best first.
const (
	StatusPassing  Status = "passing"
	StatusWarning  Status = "warning"
	StatusCritical Status = "critical"
	// StatusMaintenance is shown by aggregated health only; no check has it.
	StatusMaintenance Status = "maintenance"
	// StatusAny matches every state in a query.
	StatusAny = "any"
)

// ValidStatus tells whether s may be the state of a check.
func ValidStatus(s Status) bool {
	return s == StatusPassing || s == StatusWarning || s == StatusCritical
}

// Worse returns the worse of two states; an unknown one counts as critical.
func Worse(a, b Status) Status {
	rank := func(s Status) int {
		switch s {
		case StatusPassing:
			return 0
		case StatusWarning:
			return 1
		default:
			return 2
		}
	}
	if rank(b) > rank(a) {
		return b
	}
	return a
}

// Check is the result of a check as the catalog knows it. ServiceID is empty for
// checks of the node itself.
type Check struct {
	Node        string `weft:",omitempty"`
	CheckID     string `weft:",omitempty"`
	Name        string `weft:",omitempty"`
	Status      Status `weft:",omitempty"`
	Notes       string `weft:",omitempty"`
	Output      string `weft:",omitempty"`
	ServiceID   string `weft:",omitempty"`
	ServiceName Name   `weft:",omitempty"`
	ServiceTags []string
	Type        string           `weft:",omitempty"` // http, tcp, ttl, alias …
	Interval    string           `weft:",omitempty"`
	Timeout     string           `weft:",omitempty"`
	ExposedPort int              `weft:",omitempty"`
	Definition  *CheckDefinition `weft:",omitempty"` // nil where nobody said
	// Since is, of the node check of a host that is missed, since when, in milliseconds of
	// the leader that missed it. It is not shown.
	Since int64 `weft:",omitempty"`
	RaftIndex
}

// CheckDefinition says how a check is made. Exactly one kind of check is set.
type CheckDefinition struct {
	ID        string `weft:",omitempty"`
	CheckID   string `weft:",omitempty"`
	Name      string `weft:",omitempty"`
	Notes     string `weft:",omitempty"`
	ServiceID string `weft:",omitempty"`
	Status    Status `weft:",omitempty"` // first state; critical when empty
	Token     string `weft:",omitempty"`

	Interval time.Duration `weft:",omitempty"`
	Timeout  time.Duration `weft:",omitempty"`
	TTL      time.Duration `weft:",omitempty"`

	HTTP              string `weft:",omitempty"`
	Method            string `weft:",omitempty"`
	Header            map[string][]string
	Body              string `weft:",omitempty"`
	DisableRedirects  bool   `weft:",omitempty"`
	TCP               string `weft:",omitempty"`
	TCPUseTLS         bool   `weft:",omitempty"`
	UDP               string `weft:",omitempty"`
	GRPC              string `weft:",omitempty"`
	GRPCUseTLS        bool   `weft:",omitempty"`
	H2PING            string `weft:",omitempty"`
	H2PingUseTLS      bool   `weft:",omitempty"`
	TLSServerName     string `weft:",omitempty"`
	TLSSkipVerify     bool   `weft:",omitempty"`
	ScriptArgs        []string
	DockerContainerID string `weft:",omitempty"`
	Shell             string `weft:",omitempty"`
	OSService         string `weft:",omitempty"`
	AliasNode         string `weft:",omitempty"`
	AliasService      string `weft:",omitempty"`

	SuccessBeforePassing           int           `weft:",omitempty"`
	FailuresBeforeWarning          int           `weft:",omitempty"`
	FailuresBeforeCritical         int           `weft:",omitempty"`
	DeregisterCriticalServiceAfter time.Duration `weft:",omitempty"`
	OutputMaxSize                  int           `weft:",omitempty"`

	// ExposedPort is set by the agent when the check goes through an exposed path.
	ExposedPort int `weft:",omitempty"`
	// Proxied HTTP and gRPC targets while an exposed path is in use.
	ProxyHTTP string `weft:",omitempty"`
	ProxyGRPC string `weft:",omitempty"`

	Namespace string `weft:",omitempty"` // refused unless empty or "default"
	Partition string `weft:",omitempty"` // refused unless empty or "default"
}

// IsZero tells whether nothing is defined.
func (d *CheckDefinition) IsZero() bool { return d == nil || reflect.ValueOf(d).Elem().IsZero() }
