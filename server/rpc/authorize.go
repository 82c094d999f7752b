package rpc

import (
	"fmt"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/catalog/acl"
)

// need is something that the caller must be allowed to do.
type need struct {
	verb acl.Verb
	res  acl.Resource
	name string
}

// authorize refuses when the bearer of token may not do one of needs.
func (h *Handler) authorize(token string, needs ...need) error {
	may, err := h.cfg.Authorizer(token)
	if err != nil {
		return err
	}
	for _, n := range needs {
		if !may.Allowed(n.verb, n.res, n.name) {
			what := string(n.res) + ":" + string(n.verb)
			if n.name != "" {
				what += fmt.Sprintf(" on %q", n.name)
			}
			return fmt.Errorf("%w: the token lacks %s", catalog.ErrDenied, what)
		}
	}
	return nil
}

func needsOfHost(node string, services []*catalog.Service, checks []*catalog.Check) []need {
	out := []need{{acl.Write, acl.Node, node}}
	for _, s := range services {
		if s != nil {
			out = append(out, need{acl.Write, acl.Service, s.Service})
		}
	}
	for _, c := range checks {
		if c != nil && c.ServiceName != "" {
			out = append(out, need{acl.Write, acl.Service, c.ServiceName})
		}
	}
	return out
}

// needsOf says what a command takes, and refuses those that only the leader itself
// puts into the log.
func (h *Handler) needsOf(cmd catalog.Command) ([]need, error) {
	switch c := cmd.(type) {
	case *catalog.SyncNode:
		return needsOfHost(c.State.Node.Node, c.State.Services, c.State.Checks), nil
	case *catalog.Register:
		var services []*catalog.Service
		if c.Service != nil {
			services = []*catalog.Service{c.Service}
		}
		return needsOfHost(c.Node.Node, services, c.Checks), nil
	case *catalog.Deregister:
		return h.needsOfDeregister(c), nil
	case *catalog.SetConfigEntry:
		return []need{entryNeed(acl.Write, c.Entry.EntryKind(), c.Entry.EntryName())}, nil
	case *catalog.DeleteConfigEntry:
		return []need{entryNeed(acl.Write, c.Kind, c.Name)}, nil
	case *catalog.SetIntention:
		return []need{{acl.Write, acl.Intention, c.Destination}}, nil
	case *catalog.DeleteIntention:
		return []need{{acl.Write, acl.Intention, h.destinationOf(c)}}, nil
	case *catalog.SetPreparedQuery:
		return []need{{acl.Write, acl.Query, c.Query.Name}}, nil
	case *catalog.DeletePreparedQuery:
		return []need{{acl.Write, acl.Query, h.queryNamed(c.ID)}}, nil
	case *catalog.SetCoordinates:
		out := make([]need, 0, len(c.Updates))
		for _, u := range c.Updates {
			out = append(out, need{acl.Write, acl.Node, u.Node})
		}
		return out, nil
	case *catalog.SetVirtualIPs:
		return []need{{acl.Write, acl.Mesh, ""}}, nil
	case *catalog.SetAutopilot, *catalog.Revoke, *catalog.Allow, *catalog.SetCertRevocation, *catalog.DeleteCertRevocation:
		return []need{{acl.Write, acl.Operator, ""}}, nil
	case *catalog.SetCAConfig, *catalog.SetRoots, *catalog.SetEntryStatus, *catalog.EndKeyDelays, *catalog.PruneCertRevocations:
		return nil, fmt.Errorf("%w: command %T is for the leader alone", catalog.ErrDenied, cmd)
	default:
		if needs, ok := h.needsOfKV(cmd); ok {
			return needs, nil
		}
		return nil, fmt.Errorf("%w: no rule says who may use command %T", catalog.ErrDenied, cmd)
	}
}

// needsOfDeregister: who may write a service may remove it, and its checks.
func (h *Handler) needsOfDeregister(c *catalog.Deregister) []need {
	node := []need{{acl.Write, acl.Node, c.Node}}
	if c.ServiceID == "" && c.CheckID == "" {
		return node
	}
	v, err := h.cfg.Store.Read(catalog.Query{Kind: catalog.QueryNode, Name: c.Node})
	if err != nil {
		return node
	}
	for _, i := range v.Instances {
		if i.Service == nil {
			continue
		}
		if c.ServiceID != "" && i.Service.ID == c.ServiceID {
			return []need{{acl.Write, acl.Service, i.Service.Service}}
		}
		for _, ch := range i.Checks {
			if c.CheckID != "" && ch.CheckID == c.CheckID && ch.ServiceID == i.Service.ID {
				return []need{{acl.Write, acl.Service, i.Service.Service}}
			}
		}
	}
	return node
}

// destinationOf finds the destination of an intention that is named by its ID; one
// that there is not takes leave to write all.
func (h *Handler) destinationOf(c *catalog.DeleteIntention) catalog.Name {
	if c.ID == "" {
		return c.Destination
	}
	if v, err := h.cfg.Store.Read(catalog.Query{Kind: catalog.QueryIntentions}); err == nil {
		for _, i := range v.Intentions {
			if i.ID == c.ID {
				return i.DestinationName
			}
		}
	}
	return ""
}

// queryNamed finds the name of a prepared query by its ID; one that there is not
// takes leave to write all.
func (h *Handler) queryNamed(id string) string {
	if v, err := h.cfg.Store.Read(catalog.Query{Kind: catalog.QueryPreparedQuery, Name: id}); err == nil {
		for _, q := range v.Queries {
			if q.ID == id {
				return q.Name
			}
		}
	}
	return ""
}

func entryNeed(verb acl.Verb, kind, name string) need {
	switch kind {
	case catalog.KindServiceIntentions:
		return need{verb, acl.Intention, name}
	case catalog.KindServiceDefaults, catalog.KindServiceRouter, catalog.KindServiceSplitter, catalog.KindServiceResolver:
		return need{verb, acl.Service, name}
	case catalog.KindProxyDefaults, catalog.KindMesh, catalog.KindExportedServices, catalog.KindJWTProvider,
		catalog.KindTerminatingGatewayEntry, catalog.KindIngressGatewayEntry, catalog.KindAPIGatewayEntry,
		catalog.KindHTTPRoute, catalog.KindTCPRoute, catalog.KindInlineCertificate, catalog.KindFileSystemCertificate:
		return need{verb, acl.Mesh, ""}
	default:
		return need{verb, acl.Operator, ""}
	}
}

// needsOfQuery says what reading an answer takes. The roots are public: who could
// not read them could not verify anybody.
func needsOfQuery(q catalog.Query) []need {
	switch q.Kind {
	case catalog.QueryRoots:
		return nil
	case catalog.QueryDump:
		return []need{{acl.Read, acl.Node, ""}, {acl.Read, acl.Service, ""}}
	case catalog.QueryPreparedQueries:
		return []need{{acl.Read, acl.Query, ""}}
	case catalog.QueryPreparedQuery:
		return []need{{acl.Read, acl.Query, q.Name}}
	case catalog.QueryCoordinates:
		return []need{{acl.Read, acl.Node, ""}}
	case catalog.QueryCoordinate:
		return []need{{acl.Read, acl.Node, q.Name}}
	case catalog.QueryNodes, catalog.QueryChecks:
		return []need{{acl.Read, acl.Node, ""}}
	case catalog.QueryNode, catalog.QueryNodeChecks:
		return []need{{acl.Read, acl.Node, q.Name}}
	case catalog.QueryServices, catalog.QueryInstances, catalog.QueryVirtualIPs:
		return []need{{acl.Read, acl.Service, ""}}
	case catalog.QueryService, catalog.QueryConnect, catalog.QueryServiceChecks, catalog.QueryChain,
		catalog.QueryGateway, catalog.QueryIngress:
		return []need{{acl.Read, acl.Service, q.Name}}
	case catalog.QueryIntentions:
		return []need{{acl.Read, acl.Intention, ""}}
	case catalog.QueryIntentionsDest, catalog.QueryIntentionsSrc:
		return []need{{acl.Read, acl.Intention, q.Name}}
	case catalog.QueryConfigEntries:
		return []need{entryNeed(acl.Read, q.Name, "")}
	case catalog.QueryConfigEntry:
		return []need{entryNeed(acl.Read, q.Name, q.Sub)}
	case catalog.QueryKey, catalog.QueryKeyTree, catalog.QueryKeyNames:
		return []need{{acl.Read, acl.Key, q.Name}}
	case catalog.QueryNodeSessions:
		return []need{{acl.Read, acl.Session, q.Name}}
	case catalog.QuerySession, catalog.QuerySessions:
		return []need{{acl.Read, acl.Session, ""}}
	default: // the configuration of the CA, and whatever no rule speaks of
		return []need{{acl.Read, acl.Operator, ""}}
	}
}
