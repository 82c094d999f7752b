package httpapi

import (
	"net/http"
	"slices"
	"strings"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/catalog/acl"
)

// exportsAPI lists the services that other clusters may see.
type exportsAPI struct{ q *queries }

func (a exportsAPI) routes() []Route {
	return []Route{{
		Method: http.MethodGet, Path: "/v1/exported-services", Summary: "the services that other clusters may see, each with those clusters",
		Permission: Permission{acl.Read, acl.Mesh, ""}, MaxBody: bodyNone, params: paramsRead, handle: a.list,
	}}
}

type exportView struct {
	Service   catalog.Name
	Consumers exportConsumers
}

type exportConsumers struct {
	Peers []string `json:",omitempty"`
}

func (a exportsAPI) list(c *call) (any, error) {
	v, err := a.q.read(c, catalog.Query{Kind: catalog.QueryConfigEntry, Name: catalog.KindExportedServices, Sub: catalog.ExportedServicesName})
	if err != nil {
		return nil, err
	}
	out := []exportView{}
	if len(v.Entries) == 0 {
		return out, nil
	}
	e, ok := v.Entries[0].ConfigEntry.(*catalog.ExportedServices)
	if !ok {
		return out, nil
	}
	peers := map[catalog.Name][]string{}
	for _, s := range e.Services {
		names := []catalog.Name{s.Name}
		if s.Name == catalog.Wildcard {
			if names, err = a.exportable(c); err != nil {
				return nil, err
			}
		}
		for _, n := range names {
			for _, consumer := range s.Consumers {
				peers[n] = append(peers[n], consumer.Peer)
			}
		}
	}
	for name, who := range peers {
		slices.Sort(who)
		out = append(out, exportView{name, exportConsumers{slices.Compact(who)}})
	}
	slices.SortFunc(out, func(a, b exportView) int { return strings.Compare(a.Service, b.Service) })
	return out, nil
}

// exportable names what the wildcard stands for: all but the servers.
func (a exportsAPI) exportable(c *call) ([]catalog.Name, error) {
	v, err := a.q.peek(c, catalog.Query{Kind: catalog.QueryServices})
	if err != nil {
		return nil, err
	}
	var out []catalog.Name
	for _, s := range v.Services {
		if s.Name != catalog.ServerService {
			out = append(out, s.Name)
		}
	}
	return out, nil
}
