package httpapi

import (
	"context"
	"hash/fnv"
	"net/http"
	"strconv"
	"strings"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/catalog/acl"
)

// eventsAPI fires and lists user events.
type eventsAPI struct{ cfg Config }

func (a eventsAPI) routes() []Route {
	return []Route{
		{
			Method: http.MethodPut, Path: "/v1/event/fire/:name", Summary: "send an event to every agent, or to those that the filters match",
			Params: []Param{
				{"node", "a regular expression that names of nodes must match"},
				{"service", "one that the name of a service on the host must match"},
				{"tag", "with service: one that a tag of that service must match"},
			},
			Body: "what the event carries, any bytes", MaxBody: catalog.MaxEvent, Permission: Permission{acl.Write, acl.Event, "name"},
			local: true, params: paramsWrite, invalid: http.StatusInternalServerError, handle: a.fire,
		},
		{
			Method: http.MethodGet, Path: "/v1/event/list", Summary: "the last events that this agent was meant to hear, at most 256; " +
				"the index is a hash of the last one's ID, not a number that grows",
			Params:  []Param{{"name", "only events of this name"}},
			MaxBody: bodyNone, Permission: Permission{acl.Read, acl.Event, ""}, params: paramsBlockLocal, handle: a.list,
		},
	}
}

// eventView is an event as it is read.
type eventView struct {
	ID            string
	Name          string
	Payload       []byte
	NodeFilter    string
	ServiceFilter string
	TagFilter     string
	Version       int
	LTime         uint64
}

func (a eventsAPI) fire(c *call) (any, error) {
	name, err := c.need("name")
	if err != nil {
		return nil, err
	}
	payload, err := c.body()
	if err != nil {
		return nil, err
	}
	if a.cfg.Events == nil {
		return nil, errNotOffered("user events")
	}
	e := &catalog.UserEvent{
		Name: name, NodeFilter: c.query.Get("node"), ServiceFilter: c.query.Get("service"), TagFilter: c.query.Get("tag"),
		Version: catalog.EventVersion,
	}
	if len(payload) > 0 {
		e.Payload = payload
	}
	if err := e.Validate(); err != nil {
		return nil, err
	}
	if err := a.cfg.Events.Fire(c.ctx(), e); err != nil {
		return nil, err
	}
	v := eventView(*e)
	v.LTime = 0 // it is given where the event is received
	return v, nil
}

func (a eventsAPI) list(c *call) (any, error) {
	if a.cfg.Events == nil {
		return nil, errNotOffered("user events")
	}
	auth, err := a.cfg.Authorize(c.token)
	if err != nil {
		return nil, err
	}
	name := c.query.Get("name")
	wait, cancel := context.WithTimeout(c.ctx(), c.opts.wait)
	defer cancel()
	watch := a.cfg.Events.Watch()
	out := []eventView{}
	for after := uint64(0); ; {
		all, at, err := watch.Next(wait, after)
		if err != nil {
			if c.ctx().Err() != nil {
				return nil, context.Cause(c.ctx())
			}
			break // the wait is over
		}
		after = at
		out = out[:0]
		for _, e := range all {
			if (name == "" || e.Name == name) && auth.Allowed(acl.Read, acl.Event, e.Name) {
				out = append(out, eventView(*e))
			}
		}
		// The index does not grow, so a waiter waits while it is the very one it has.
		if c.opts.index == 0 || eventIndex(out) != c.opts.index {
			break
		}
	}
	setIndex(c.w.Header(), eventIndex(out))
	return out, nil
}

// eventIndex is the index of a list of events: its last one's ID, folded, as Consul's
// clients fold it too. It is 1 for an empty list.
func eventIndex(events []eventView) uint64 {
	if len(events) == 0 {
		return 1
	}
	id := events[len(events)-1].ID
	if hex := strings.ReplaceAll(id, "-", ""); len(hex) == 32 {
		low, errLow := strconv.ParseUint(hex[:16], 16, 64)
		high, errHigh := strconv.ParseUint(hex[16:], 16, 64)
		if errLow == nil && errHigh == nil {
			return max(low^high, 1)
		}
	}
	h := fnv.New64a()
	_, _ = h.Write([]byte(id))
	return max(h.Sum64(), 1)
}
