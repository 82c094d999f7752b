package store

import (
	"maps"
	"slices"

	"github.com/weftmesh/weft/catalog"
)

// Rows come out of the log, or a backup, each with its own copy of every text. What
// many rows say alike is kept once: the names of a node and of a service, and what the
// instances of one service mostly have in common. No reader can tell: an empty list is
// not shared, so that it stays empty and does not become none.

func share(text *string, with string) {
	if *text == with {
		*text = with
	}
}

// shareService makes a row that is about to be written share with those that are there.
func (r reader) shareService(row *serviceRow) {
	if n, ok := r.node(row.Node); ok {
		row.Node = n.Node
	}
	s := row.Service
	switch s.Kind {
	case catalog.KindTypical:
		s.Kind = catalog.KindTypical
	case catalog.KindConnectProxy:
		s.Kind = catalog.KindConnectProxy
	}
	if like, ok := first[*serviceRow](r, tableServices, byName, s.Service); ok {
		s.Service = like.Service.Service
		share(&s.ID, like.Service.ID)
		share(&s.Proxy.DestinationServiceName, like.Service.Proxy.DestinationServiceName)
		if len(s.Tags) > 0 && slices.Equal(s.Tags, like.Service.Tags) {
			s.Tags = like.Service.Tags
		}
		if len(s.Meta) > 0 && maps.Equal(s.Meta, like.Service.Meta) {
			s.Meta = like.Service.Meta
		}
	}
	share(&s.ID, s.Service)
}

var knownStatuses = []catalog.Status{catalog.StatusPassing, catalog.StatusWarning, catalog.StatusCritical}

// shareCheck does so for a check, whose service's name and tags are those of its row.
func (r reader) shareCheck(c *catalog.Check) {
	if n, ok := r.node(c.Node); ok {
		c.Node = n.Node
	}
	for _, s := range knownStatuses {
		share(&c.Status, s)
	}
	if c.ServiceID == "" {
		return
	}
	if of, ok := r.service(c.Node, c.ServiceID); ok {
		c.ServiceID = of.Service.ID
		share(&c.ServiceName, of.Service.Service)
		if len(c.ServiceTags) > 0 && slices.Equal(c.ServiceTags, of.Service.Tags) {
			c.ServiceTags = of.Service.Tags
		}
	}
	like, ok := first[*catalog.Check](r, tableChecks, byName, c.ServiceName)
	if !ok || c.ServiceName == "" {
		return
	}
	for _, text := range [][2]*string{
		{&c.CheckID, &like.CheckID},
		{&c.Name, &like.Name},
		{&c.Notes, &like.Notes},
		{&c.Output, &like.Output},
		{&c.Type, &like.Type},
		{&c.Interval, &like.Interval},
		{&c.Timeout, &like.Timeout},
	} {
		share(text[0], *text[1])
	}
}
