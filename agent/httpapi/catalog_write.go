package httpapi

import (
	"errors"
	"net/http"
	"time"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/catalog/acl"
)

// catalogWriteAPI writes rows of the catalog that no agent speaks for.
type catalogWriteAPI struct{ cfg Config }

func (a catalogWriteAPI) routes() []Route {
	return []Route{
		{
			Method: http.MethodPut, Path: "/v1/catalog/register",
			Summary: "register a node that runs no agent, with at most one service and any checks",
			Body:    "JSON: Node, Address, ID, NodeMeta, TaggedAddresses, Service, Check, Checks, SkipNodeUpdate", MaxBody: bodyNoun,
			Permission: Permission{acl.Write, acl.Node, "Node"}, params: paramsWrite, invalid: http.StatusInternalServerError, handle: a.register,
		},
		{
			Method: http.MethodPut, Path: "/v1/catalog/deregister",
			Summary: "remove a check, a service with its checks, or a node with all that is on it",
			Body:    "JSON: Node, and ServiceID or CheckID or neither", MaxBody: bodySmall,
			Permission: Permission{acl.Write, acl.Node, "Node"}, params: paramsWrite, invalid: http.StatusInternalServerError, handle: a.deregister,
		},
	}
}

// tenancy are keys that clients send and that may hold nothing but the default.
type tenancy struct {
	Namespace string
	Partition string
	PeerName  string
}

func (t tenancy) check() error {
	for name, v := range map[string]string{"Namespace": t.Namespace, "Partition": t.Partition} {
		if v != "" && v != "default" {
			return badRequest("Invalid " + name + " " + v + ": " + name + "s are a Consul Enterprise feature")
		}
	}
	if t.PeerName != "" {
		return badRequest("Invalid PeerName " + t.PeerName + ": rows of a peer cannot be written")
	}
	return nil
}

type registerBody struct {
	Datacenter      string
	ID              string
	Node            string
	Address         string
	TaggedAddresses map[string]string
	NodeMeta        map[string]string
	Locality        *catalog.Locality
	Service         *registerService
	Check           *registerCheck
	Checks          []*registerCheck
	SkipNodeUpdate  bool
	tenancy         `mapstructure:",squash"`
}

// registerService is a service with the keys that answers have, so that what was
// read can be written back.
type registerService struct {
	catalog.Service `mapstructure:",squash"`
	tenancy         `mapstructure:",squash"`
	ContentHash     string
	Datacenter      string
}

type registerCheck struct {
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
	Definition  registerDefinition
	CreateIndex uint64
	ModifyIndex uint64
	tenancy     `mapstructure:",squash"`
}

type registerDefinition struct {
	catalog.CheckDefinition `mapstructure:",squash"`
	IntervalDuration        time.Duration
	TimeoutDuration         time.Duration

	DeregisterCriticalServiceAfterDuration time.Duration
}

func (a catalogWriteAPI) register(c *call) (any, error) {
	var body registerBody
	if err := c.decode(&body); err != nil {
		return nil, err
	}
	if err := refuseForeign(body.Datacenter, a.cfg.Self.Datacenter); err != nil {
		return nil, err
	}
	switch {
	case body.Node == "":
		return nil, &httpError{http.StatusInternalServerError, "Must provide node"}
	case catalog.ValidNodeID(body.ID) != nil:
		return nil, catalog.ValidNodeID(body.ID)
	case body.Address == "" && !body.SkipNodeUpdate:
		return nil, &httpError{http.StatusInternalServerError, "Must provide address if SkipNodeUpdate is not set"}
	}
	cmd := &catalog.Register{SkipNodeUpdate: body.SkipNodeUpdate, Node: &catalog.Node{
		ID: body.ID, Node: body.Node, Address: body.Address, Datacenter: a.cfg.Self.Datacenter,
		TaggedAddresses: body.TaggedAddresses, Meta: body.NodeMeta, Locality: body.Locality,
	}}
	if err := body.addService(cmd); err != nil {
		return nil, err
	}
	if err := body.addChecks(cmd); err != nil {
		return nil, err
	}
	_, err := c.apply(a.cfg.Servers, cmd)
	if errors.Is(err, catalog.ErrNotFound) { // the service of a check
		return nil, &httpError{http.StatusInternalServerError, "Missing service registration: " + err.Error()}
	}
	if err != nil {
		return nil, err
	}
	return true, nil
}

func (b *registerBody) addService(cmd *catalog.Register) error {
	if err := b.tenancy.check(); err != nil || b.Service == nil {
		return err
	}
	if err := b.Service.tenancy.check(); err != nil {
		return err
	}
	s := b.Service.Service
	if s.Service == "" {
		return &httpError{http.StatusInternalServerError, "Must provide service name (Service.Service)"}
	}
	s.RaftIndex = catalog.RaftIndex{}
	s.ID = orString(s.ID, s.Service)
	if s.Weights == nil {
		s.Weights = &catalog.Weights{Passing: 1, Warning: 1}
	}
	cmd.Service = &s
	return nil
}

func (b *registerBody) addChecks(cmd *catalog.Register) error {
	checks := b.Checks
	if b.Check != nil {
		checks = append(checks, b.Check)
	}
	for _, in := range checks {
		if in == nil {
			continue
		}
		if err := in.tenancy.check(); err != nil {
			return err
		}
		if in.Node != "" && in.Node != b.Node {
			return &httpError{http.StatusInternalServerError, "Check " + orString(in.CheckID, in.Name) + " is of node " + in.Node + ", not of " + b.Node}
		}
		cmd.Checks = append(cmd.Checks, in.check(b.Node))
	}
	return nil
}

func (in *registerCheck) check(node string) *catalog.Check {
	d := in.Definition.CheckDefinition
	if d.Interval == 0 {
		d.Interval = in.Definition.IntervalDuration
	}
	if d.Timeout == 0 {
		d.Timeout = in.Definition.TimeoutDuration
	}
	if d.DeregisterCriticalServiceAfter == 0 {
		d.DeregisterCriticalServiceAfter = in.Definition.DeregisterCriticalServiceAfterDuration
	}
	out := &catalog.Check{
		Node: node, CheckID: orString(in.CheckID, in.Name), Name: in.Name,
		Status: orString(in.Status, catalog.StatusCritical), Notes: in.Notes, Output: in.Output,
		ServiceID: in.ServiceID, ServiceName: in.ServiceName, Type: orString(in.Type, kindOfCheck(&d)),
		Interval: in.Interval, Timeout: in.Timeout, ExposedPort: in.ExposedPort,
	}
	if !d.IsZero() {
		out.Definition = &d
	}
	return out
}

// kindOfCheck names the kind of check that a definition describes.
func kindOfCheck(d *catalog.CheckDefinition) string {
	for _, k := range []struct {
		name string
		set  bool
	}{
		{"http", d.HTTP != ""},
		{"tcp", d.TCP != ""},
		{"udp", d.UDP != ""},
		{"grpc", d.GRPC != ""},
		{"h2ping", d.H2PING != ""},
		{"os_service", d.OSService != ""},
		{"docker", d.DockerContainerID != ""},
		{"script", len(d.ScriptArgs) > 0},
		{"alias", d.AliasNode != "" || d.AliasService != ""},
		{"ttl", d.TTL > 0},
	} {
		if k.set {
			return k.name
		}
	}
	return ""
}

type deregisterBody struct {
	Datacenter string
	Node       string
	Address    string // of old clients; has no meaning
	ServiceID  string
	CheckID    string
	tenancy    `mapstructure:",squash"`
}

func (a catalogWriteAPI) deregister(c *call) (any, error) {
	var body deregisterBody
	if err := c.decode(&body); err != nil {
		return nil, err
	}
	if err := refuseForeign(body.Datacenter, a.cfg.Self.Datacenter); err != nil {
		return nil, err
	}
	if err := body.tenancy.check(); err != nil {
		return nil, err
	}
	if body.Node == "" {
		return nil, &httpError{http.StatusInternalServerError, "Must provide node"}
	}
	cmd := &catalog.Deregister{Node: body.Node, ServiceID: body.ServiceID, CheckID: body.CheckID}
	if cmd.ServiceID != "" {
		cmd.CheckID = "" // the service goes, with its checks, as in Consul
	}
	if _, err := c.apply(a.cfg.Servers, cmd); err != nil {
		return nil, err
	}
	return true, nil
}

// refuseForeign refuses a datacenter in a body as one in the query is refused.
func refuseForeign(dc, own string) error {
	if dc != "" && dc != own {
		return &httpError{http.StatusInternalServerError, "No path to datacenter"}
	}
	return nil
}
