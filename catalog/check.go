package catalog

import "time"

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
	Node        string
	CheckID     string
	Name        string
	Status      Status
	Notes       string
	Output      string
	ServiceID   string
	ServiceName Name
	ServiceTags []string
	Type        string // http, tcp, ttl, alias …
	Interval    string
	Timeout     string
	ExposedPort int
	Definition  CheckDefinition
	RaftIndex
}

// CheckDefinition says how a check is made. Exactly one kind of check is set.
type CheckDefinition struct {
	ID        string
	CheckID   string
	Name      string
	Notes     string
	ServiceID string
	Status    Status // first state; critical when empty
	Token     string

	Interval time.Duration
	Timeout  time.Duration
	TTL      time.Duration

	HTTP              string
	Method            string
	Header            map[string][]string
	Body              string
	DisableRedirects  bool
	TCP               string
	TCPUseTLS         bool
	UDP               string
	GRPC              string
	GRPCUseTLS        bool
	H2PING            string
	H2PingUseTLS      bool
	TLSServerName     string
	TLSSkipVerify     bool
	ScriptArgs        []string
	DockerContainerID string
	Shell             string
	OSService         string
	AliasNode         string
	AliasService      string

	SuccessBeforePassing           int
	FailuresBeforeWarning          int
	FailuresBeforeCritical         int
	DeregisterCriticalServiceAfter time.Duration
	OutputMaxSize                  int

	// ExposedPort is set by the agent when the check goes through an exposed path.
	ExposedPort int
	// Proxied HTTP and gRPC targets while an exposed path is in use.
	ProxyHTTP string
	ProxyGRPC string

	Namespace string // refused unless empty or "default"
	Partition string // refused unless empty or "default"
}
