package catalog

import (
	"errors"
	"strings"
	"testing"
)

func TestCommandsValidate(t *testing.T) {
	node := &Node{Node: "n"}
	svc := func(change func(*Service)) *Service {
		s := &Service{ID: "s", Service: "web"}
		change(s)
		return s
	}
	ok := func(*Service) {}
	check := func(id, service string, status Status) *Check {
		return &Check{CheckID: id, ServiceID: service, Status: status}
	}
	sync := func(s []*Service, c ...*Check) Command {
		return &SyncNode{State: NodeState{Node: node, Services: s, Checks: c}}
	}
	for _, c := range []struct {
		cmd  Command
		want string // "" = accepted
	}{
		{sync([]*Service{svc(ok)}, check("c", "s", "passing")), ""},
		{&SyncNode{}, "node: empty"},
		{&Register{}, "node: empty"},
		{&Register{Node: &Node{}}, "node: the name is empty"},
		{&Register{Node: &Node{Node: strings.Repeat("x", 513)}}, "node: the name has 513 bytes, at most 512 are allowed"},
		{&Register{Node: &Node{Node: "a\x00b"}}, `node: the name "a\x00b" has control characters or is not UTF-8`},
		{&Register{Node: &Node{Node: "a\xff"}}, `node: the name "a\xff" has control characters or is not UTF-8`},
		{&Register{Node: &Node{Node: "straße.example 1"}}, ""},
		{&Register{Node: node, Service: svc(func(s *Service) { s.Service = "*" })}, `service: the name "*" stands for any service in intentions and cannot be one`},
		{&Register{Node: node, Service: svc(func(s *Service) { s.Kind = "x" })}, `service s: unknown kind "x"`},
		{&Register{Node: node, Service: svc(func(s *Service) { s.Kind = KindConnectProxy })}, "service s: Proxy.DestinationServiceName must name one service"},
		{&Register{Node: node, Service: svc(func(s *Service) {
			s.Kind, s.Connect.Native, s.Proxy.DestinationServiceName = KindConnectProxy, true, "db"
		})}, "service s: a proxy cannot be Connect.Native as well"},
		{sync([]*Service{nil}), "service: empty"},
		{sync([]*Service{svc(ok), svc(ok)}), `node n: service ID "s" is stated twice`},
		{sync(nil, check("c", "", "passing"), check("c", "", "passing")), `node n: check ID "c" is stated twice`},
		{sync(nil, nil), "check: empty"},
		{sync(nil, check("c", "", "fine")), `check c: invalid status "fine", want passing, warning or critical`},
		{sync(nil, check("", "", "passing")), "check ID: the name is empty"},
		{&Deregister{Node: "n", ServiceID: "s", CheckID: "c"}, "deregister: name a service or a check, not both"},
		{&Deregister{Node: "n", ServiceID: "a\x00"}, `service ID: the name "a\x00" has control characters or is not UTF-8`},
		{&SetConfigEntry{}, "config entry: empty"},
		{&DeleteConfigEntry{Kind: "x", Name: "y"}, `invalid config entry kind: x; the kinds are ` + strings.Join(ConfigKinds(), ", ")},
		{&SetIntention{Destination: "db", Source: SourceIntention{Name: "web"}}, "Sources[0].Action must be set to 'allow' or 'deny'"},
		{&DeleteIntention{ID: "x", Source: "a"}, "delete intention: name a source and a destination, or an ID"},
		{&DeleteIntention{Source: "a"}, "delete intention: source and destination are both needed"},
		{&SetCAConfig{}, "CA configuration: no provider"},
		{&SetRoots{Roots: []*Root{{ID: "a"}}}, "roots: 0 are active, exactly one must be"},
		{&SetRoots{Roots: []*Root{nil}}, "roots: a root is empty"},
		{&SetRoots{Roots: []*Root{{ID: "a", Active: true}, {ID: "a"}}}, "roots: ID a is given twice"},
	} {
		err := c.cmd.Validate()
		if c.want == "" && err == nil {
			continue
		}
		if !errors.Is(err, ErrInvalid) || err.Error() != c.want {
			t.Errorf("%T: %v, want %q", c.cmd, err, c.want)
		}
	}
}

func TestEveryCommandHasItsNumber(t *testing.T) {
	for n := CmdSyncNode; n <= CmdSetRoots; n++ {
		c, err := NewCommand(n)
		if err != nil || c.CommandType() != n {
			t.Errorf("command %d: %T, %v", n, c, err)
		}
		if err := c.Validate(); !errors.Is(err, ErrInvalid) {
			t.Errorf("an empty %T: %v", c, err)
		}
	}
	if _, err := NewCommand(0); !errors.Is(err, ErrInvalid) {
		t.Error(err)
	}
}

func TestQueryValidate(t *testing.T) {
	for q, valid := range map[Query]bool{
		{Kind: QueryNodes}:                            true,
		{Kind: QueryService, Name: "web"}:             true,
		{Kind: QueryService}:                          false,
		{Kind: QueryService, Name: "a\x00b"}:          false,
		{Kind: QueryConfigEntry, Name: "k"}:           false,
		{Kind: QueryConfigEntry, Name: "k", Sub: "n"}: true,
		{Kind: "x"}:                          false,
		{}:                                   false,
		{Kind: QueryChecks, Name: StatusAny}: true,
		{Kind: QueryNode, Name: strings.Repeat("n", 513)}: false,
	} {
		if err := q.Validate(); (err == nil) != valid || (err != nil && !errors.Is(err, ErrInvalid)) {
			t.Errorf("%s: %v", q, err)
		}
	}
}
