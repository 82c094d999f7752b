package httpapi

import (
	"encoding/json"
	"fmt"
	"net/http"
	"reflect"
	"strings"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/catalog/acl"
)

// configAPI reads and writes config entries.
type configAPI struct {
	cfg Config
	q   *queries
}

func (a configAPI) routes() []Route {
	const one, failed = "/v1/config/:kind/:name", http.StatusInternalServerError
	write := Permission{acl.Write, acl.Mesh, ""}
	return []Route{
		{
			Method: http.MethodPut, Path: "/v1/config", Summary: "create or replace a config entry",
			Params: []Param{paramCAS}, Body: "JSON: Kind, Name and the fields of the kind", MaxBody: bodyLarge,
			Permission: write, params: paramsWrite, invalid: failed, handle: a.put,
		},
		{
			Method: http.MethodGet, Path: one, Summary: "the config entries of a kind, or, with a name, one of them",
			Params: []Param{paramFilter}, MaxBody: bodyNone,
			Permission: Permission{acl.Read, acl.Mesh, ""}, params: paramsRead, invalid: failed, handle: a.get,
		},
		{
			Method: http.MethodDelete, Path: one, Summary: "delete a config entry; none is no error",
			Params: []Param{paramCAS}, MaxBody: bodyNone,
			Permission: write, params: paramsWrite, invalid: failed, handle: a.remove,
		},
	}
}

func (a configAPI) put(c *call) (any, error) {
	index, cas, err := c.cas()
	if err != nil {
		return nil, err
	}
	entry, err := decodeEntry(c)
	if err != nil {
		return nil, err
	}
	entry.Normalize()
	rep, err := c.apply(a.cfg.Servers, &catalog.SetConfigEntry{Entry: catalog.Entry{ConfigEntry: entry}, CAS: cas, Index: index})
	if err != nil {
		return nil, err
	}
	c.warn(catalog.EntryWarnings(entry))
	return rep.OK, nil
}

func decodeEntry(c *call) (catalog.ConfigEntry, error) {
	raw, err := c.object()
	if err != nil {
		return nil, configWords(err)
	}
	entry, err := catalog.DecodeConfigEntry(raw)
	if catalog.IsRefusedKind(err) {
		return nil, internal(err.Error())
	}
	if err != nil {
		return nil, badRequest("Request decoding failed: " + err.Error())
	}
	*entry.Raft() = catalog.RaftIndex{}
	return entry, nil
}

// configWords gives an error the words that this endpoint has for it.
func configWords(err error) error {
	if text, ok := strings.CutPrefix(err.Error(), "Request decode failed: "); ok {
		return badRequest("Request decoding failed: " + text)
	}
	return err
}

func (a configAPI) get(c *call) (any, error) {
	kind, name, one := strings.Cut(c.tail, "/")
	if kind == "" {
		// No kind is asked for, so nothing is shown, at the index of some kind.
		if _, err := a.q.read(c, catalog.Query{Kind: catalog.QueryConfigEntries, Name: catalog.KindServiceIntentions}); err != nil {
			return nil, err
		}
		return []any{}, nil
	}
	proto, err := catalog.NewConfigEntry(kind)
	if err != nil {
		return nil, internal("invalid config entry kind: " + kind)
	}
	if !one || name == "" {
		return a.list(c, kind, proto)
	}
	v, err := a.q.read(c, catalog.Query{Kind: catalog.QueryConfigEntry, Name: kind, Sub: name})
	if err != nil {
		return nil, err
	}
	if len(v.Entries) == 0 {
		return nil, notFound(fmt.Sprintf("Config entry not found for %q / %q", kind, name))
	}
	return viewEntry(v.Entries[0].ConfigEntry)
}

func (a configAPI) list(c *call, kind string, proto catalog.ConfigEntry) (any, error) {
	f, err := compileTyped[catalog.ConfigEntry](c.opts.filter, reflect.TypeOf(proto))
	if err != nil {
		return nil, err
	}
	v, err := a.q.read(c, catalog.Query{Kind: catalog.QueryConfigEntries, Name: kind})
	if err != nil {
		return nil, err
	}
	out := make([]json.RawMessage, 0, len(v.Entries))
	for _, e := range v.Entries {
		ok, err := f.match(e.ConfigEntry)
		if err != nil {
			return nil, err
		}
		if !ok {
			continue
		}
		shown, err := viewEntry(e.ConfigEntry)
		if err != nil {
			return nil, err
		}
		out = append(out, shown)
	}
	return out, nil
}

func (a configAPI) remove(c *call) (any, error) {
	kind, name, _ := strings.Cut(c.tail, "/")
	if kind == "" || name == "" {
		return nil, notFound("Must provide both a kind and name to delete")
	}
	if _, err := catalog.NewConfigEntry(kind); err != nil {
		return nil, badRequest("invalid config entry kind: " + kind)
	}
	index, cas, err := c.cas()
	if err != nil {
		return nil, err
	}
	rep, err := c.apply(a.cfg.Servers, &catalog.DeleteConfigEntry{Kind: kind, Name: name, CAS: cas, Index: index})
	if err != nil {
		return nil, err
	}
	if cas {
		return rep.OK, nil
	}
	return struct{}{}, nil
}
