package httpapi

import (
	"time"

	"github.com/weftmesh/weft/catalog"
)

// checkView is a check in every answer but those of local aggregated health.
type checkView struct {
	Node        string
	CheckID     string
	Name        string
	Status      string
	Notes       string
	Output      string
	ServiceID   string
	ServiceName string
	ServiceTags []string
	Type        string
	Interval    string
	Timeout     string
	ExposedPort int
	Definition  checkDefinitionView `bexpr:"-"`
	CreateIndex uint64              `bexpr:"-"`
	ModifyIndex uint64              `bexpr:"-"`
}

// checkDefinitionView is the definition of a check that the catalog was told.
type checkDefinitionView struct {
	HTTP                           string              `json:",omitempty"`
	TLSServerName                  string              `json:",omitempty"`
	TLSSkipVerify                  bool                `json:",omitempty"`
	Header                         map[string][]string `json:",omitempty"`
	Method                         string              `json:",omitempty"`
	Body                           string              `json:",omitempty"`
	DisableRedirects               bool                `json:",omitempty"`
	TCP                            string              `json:",omitempty"`
	TCPUseTLS                      bool                `json:",omitempty"`
	UDP                            string              `json:",omitempty"`
	H2PING                         string              `json:",omitempty"`
	H2PingUseTLS                   bool                `json:",omitempty"`
	OSService                      string              `json:",omitempty"`
	GRPC                           string              `json:",omitempty"`
	GRPCUseTLS                     bool                `json:",omitempty"`
	ScriptArgs                     []string            `json:",omitempty"`
	DockerContainerID              string              `json:",omitempty"`
	Shell                          string              `json:",omitempty"`
	AliasNode                      string              `json:",omitempty"`
	AliasService                   string              `json:",omitempty"`
	Interval                       string              `json:",omitempty"`
	Timeout                        string              `json:",omitempty"`
	OutputMaxSize                  int                 `json:",omitempty"`
	TTL                            string              `json:",omitempty"`
	DeregisterCriticalServiceAfter string              `json:",omitempty"`
}

var noDefinition catalog.CheckDefinition

func viewCheck(c *catalog.Check) checkView {
	d := c.Definition
	if d == nil {
		d = &noDefinition
	}
	return checkView{
		Node: c.Node, CheckID: c.CheckID, Name: c.Name, Status: c.Status, Notes: c.Notes, Output: c.Output,
		ServiceID: c.ServiceID, ServiceName: c.ServiceName, ServiceTags: notNil(c.ServiceTags),
		Type: c.Type, Interval: c.Interval, Timeout: c.Timeout, ExposedPort: c.ExposedPort,
		Definition: checkDefinitionView{
			HTTP: d.HTTP, TLSServerName: d.TLSServerName, TLSSkipVerify: d.TLSSkipVerify, Header: d.Header,
			Method: d.Method, Body: d.Body, DisableRedirects: d.DisableRedirects, TCP: d.TCP, TCPUseTLS: d.TCPUseTLS,
			UDP: d.UDP, H2PING: d.H2PING, H2PingUseTLS: d.H2PingUseTLS, OSService: d.OSService, GRPC: d.GRPC,
			GRPCUseTLS: d.GRPCUseTLS, ScriptArgs: d.ScriptArgs, DockerContainerID: d.DockerContainerID, Shell: d.Shell,
			AliasNode: d.AliasNode, AliasService: d.AliasService, Interval: durationText(d.Interval),
			Timeout: durationText(d.Timeout), OutputMaxSize: d.OutputMaxSize, TTL: durationText(d.TTL),
			DeregisterCriticalServiceAfter: durationText(d.DeregisterCriticalServiceAfter),
		},
		CreateIndex: c.CreateIndex, ModifyIndex: c.ModifyIndex,
	}
}

func durationText(d time.Duration) string {
	if d == 0 {
		return ""
	}
	return d.String()
}

func viewChecks(in []*catalog.Check) []checkView {
	out := make([]checkView, 0, len(in))
	for _, c := range in {
		out = append(out, viewCheck(c))
	}
	return out
}

// viewLocalChecks shows the checks of this host. How they are made is the host's
// own affair: definitions may carry secrets in headers.
func viewLocalChecks(in map[string]*catalog.Check) map[string]checkView {
	out := make(map[string]checkView, len(in))
	for id, c := range in {
		v := viewCheck(c)
		v.Definition = checkDefinitionView{}
		v.CreateIndex, v.ModifyIndex = 0, 0
		out[id] = v
	}
	return out
}

// healthCheckView is a check in local aggregated health.
type healthCheckView struct {
	Node        string
	CheckID     string
	Name        string
	Status      string
	Notes       string
	Output      string
	ServiceID   string
	ServiceName string
	ServiceTags []string
	Type        string
	ExposedPort int
	Definition  healthDefinitionView
	CreateIndex uint64
	ModifyIndex uint64
}

// healthDefinitionView is there for clients that expect it, and always empty.
type healthDefinitionView struct {
	HTTP                           string
	Header                         map[string][]string
	Method                         string
	Body                           string
	TLSServerName                  string
	TLSSkipVerify                  bool
	TCP                            string
	TCPUseTLS                      bool
	UDP                            string
	GRPC                           string
	OSService                      string
	GRPCUseTLS                     bool
	Interval                       string
	Timeout                        string
	DeregisterCriticalServiceAfter string
}

func viewHealthCheck(c *catalog.Check) healthCheckView {
	return healthCheckView{
		Node: c.Node, CheckID: c.CheckID, Name: c.Name, Status: c.Status, Notes: c.Notes, Output: c.Output,
		ServiceID: c.ServiceID, ServiceName: c.ServiceName,
		Definition: healthDefinitionView{Interval: "0s", Timeout: "0s", DeregisterCriticalServiceAfter: "0s"},
	}
}
