package httpapi

import (
	"fmt"
	"net/http"
	"strconv"
	"strings"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/catalog/acl"
)

// kvAPI is the key/value store.
type kvAPI struct {
	cfg Config
	q   *queries
}

func (a kvAPI) routes() []Route {
	const path = "/v1/kv/:key"
	recurse := Param{"recurse", "all keys that begin with the one in the path"}
	write := Permission{acl.Write, acl.Key, "key"}
	return []Route{
		{
			Method: http.MethodGet, Path: path, Summary: "a key, or those with a prefix; 404 and no body when there is none",
			Params: []Param{
				recurse,
				{"raw", "the value as it is, instead of JSON"},
				{"keys", "the names of the keys that begin with the one in the path"},
				{"separator", "with keys: cut each name after the next separator; also spelled " + oldSeparator},
			},
			MaxBody: bodyNone, Permission: Permission{acl.Read, acl.Key, "key"}, params: paramsRead, handle: a.get,
		},
		{
			Method: http.MethodPut, Path: path, Summary: "write a key, lock or unlock it; the answer tells whether that was done",
			Params: []Param{
				{"flags", "a number that is kept with the value"},
				{"cas", "write only when the key's ModifyIndex is this; 0: when there is none"},
				{"acquire", "a session that becomes the holder of the key"},
				{"release", "the session that holds the key and shall no longer"},
			},
			Body: "the value, any bytes", MaxBody: orLimit(a.cfg.KVMaxValueSize), Permission: write, params: paramsWrite,
			invalid: http.StatusInternalServerError, handle: a.put,
		},
		{
			Method: http.MethodDelete, Path: path, Summary: "delete a key, or those with a prefix; none is no error",
			Params:  []Param{recurse, {"cas", "delete only when the key's ModifyIndex is this"}},
			MaxBody: bodyNone, Permission: write, params: paramsWrite, handle: a.remove,
		},
	}
}

// oldSeparator is how the first version of Consul spelled it, and clients still do.
const oldSeparator = "seperator" //nolint:misspell // see above

func orLimit(n int64) int64 {
	if n == 0 {
		return catalog.MaxValue
	}
	return n
}

// pairView is a key as it is read.
type pairView struct {
	LockIndex   uint64
	Key         string
	Flags       uint64
	Value       []byte
	Session     string `json:",omitempty"`
	CreateIndex uint64
	ModifyIndex uint64
}

func viewPair(p *catalog.KVPair) pairView {
	v := pairView{
		LockIndex: p.LockIndex, Key: p.Key, Flags: p.Flags, Session: p.Session,
		CreateIndex: p.CreateIndex, ModifyIndex: p.ModifyIndex,
	}
	if len(p.Value) > 0 {
		v.Value = p.Value
	}
	return v
}

func viewPairs(in []*catalog.KVPair) []pairView {
	out := make([]pairView, 0, len(in))
	for _, p := range in {
		out = append(out, viewPair(p))
	}
	return out
}

// key gives the key in the path, after a word on what cannot be one.
func (c *call) key(mayBeEmpty bool) (string, error) {
	if c.tail == "" && !mayBeEmpty {
		return "", badRequest("Missing key name")
	}
	if err := (catalog.Query{Kind: catalog.QueryKeyTree, Name: c.tail}).Validate(); err != nil {
		return "", badRequest(err.Error())
	}
	return c.tail, nil
}

// oneOf refuses parameters that exclude each other.
func (c *call) oneOf(names ...string) error {
	found := ""
	for _, n := range names {
		if !c.query.Has(n) {
			continue
		}
		if found != "" {
			return badRequest(fmt.Sprintf("Conflicting flags: %s and %s exclude each other", found, n))
		}
		found = n
	}
	return nil
}

// number reads a parameter that is an unsigned number, 0 when it is not there.
// Clients know the status of one that is none.
func (c *call) number(name string) (n uint64, set bool, err error) {
	if !c.query.Has(name) {
		return 0, false, nil
	}
	n, err = strconv.ParseUint(c.query.Get(name), 10, 64)
	if err != nil {
		return 0, false, internal(fmt.Sprintf("%s is not a number from 0 to 18446744073709551615: %v", name, err))
	}
	return n, true, nil
}

func (a kvAPI) get(c *call) (any, error) {
	keys, recurse := c.query.Has("keys"), c.query.Has("recurse")
	key, err := c.key(keys || recurse)
	if err != nil {
		return nil, err
	}
	switch {
	case keys:
		return a.names(c, key)
	case recurse:
		return a.pairs(c, catalog.Query{Kind: catalog.QueryKeyTree, Name: key})
	case c.query.Has("raw"):
		return a.raw(c, key)
	default:
		return a.pairs(c, catalog.Query{Kind: catalog.QueryKey, Name: key})
	}
}

func (a kvAPI) names(c *call, prefix string) (any, error) {
	separator := c.query.Get("separator")
	if separator == "" {
		separator = c.query.Get(oldSeparator)
	}
	q := catalog.Query{Kind: catalog.QueryKeyNames, Name: prefix, Sub: separator}
	if err := q.Validate(); err != nil {
		return nil, badRequest(err.Error())
	}
	v, err := a.q.read(c, q)
	if err != nil {
		return nil, err
	}
	if len(v.Keys) == 0 && prefix != "" {
		return noBody{http.StatusNotFound}, nil
	}
	return a.q.share(c, v, func() (any, error) { return notNil(v.Keys), nil })
}

func (a kvAPI) pairs(c *call, q catalog.Query) (any, error) {
	v, err := a.q.read(c, q)
	if err != nil {
		return nil, err
	}
	if len(v.Pairs) == 0 {
		return noBody{http.StatusNotFound}, nil
	}
	return a.q.share(c, v, func() (any, error) { return viewPairs(v.Pairs), nil })
}

// raw gives the value alone. Whoever wrote it may have meant it for a browser that
// looks at this address, so nothing in it is to be run or guessed at.
func (a kvAPI) raw(c *call, key string) (any, error) {
	v, err := a.q.read(c, catalog.Query{Kind: catalog.QueryKey, Name: key})
	if err != nil {
		return nil, err
	}
	if len(v.Pairs) == 0 {
		return noBody{http.StatusNotFound}, nil
	}
	h := c.w.Header()
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Content-Security-Policy", "sandbox")
	return raw{"text/plain", v.Pairs[0].Value}, nil
}

func (a kvAPI) put(c *call) (any, error) {
	key, err := c.key(false)
	if err != nil {
		return nil, err
	}
	if err := c.oneOf("cas", "acquire", "release"); err != nil {
		return nil, err
	}
	flags, _, err := c.number("flags")
	if err != nil {
		return nil, err
	}
	index, cas, err := c.number("cas")
	if err != nil {
		return nil, err
	}
	value, err := c.body()
	if err != nil {
		return nil, err
	}
	p := catalog.KVPair{Key: key, Value: value, Flags: flags}
	var cmd catalog.Command
	switch {
	case c.query.Has("acquire"):
		p.Session = c.query.Get("acquire")
		cmd = &catalog.LockKey{Pair: p}
	case c.query.Has("release"):
		p.Session = c.query.Get("release")
		cmd = &catalog.UnlockKey{Pair: p}
	default:
		cmd = &catalog.SetKey{Pair: p, CAS: cas, Index: index}
	}
	rep, err := c.apply(a.cfg.Servers, cmd)
	if err != nil {
		return nil, err
	}
	return rep.OK, nil
}

func (a kvAPI) remove(c *call) (any, error) {
	recurse := c.query.Has("recurse")
	key, err := c.key(recurse)
	if err != nil {
		return nil, err
	}
	if err := c.oneOf("recurse", "cas"); err != nil {
		return nil, err
	}
	index, cas, err := c.number("cas")
	if err != nil {
		return nil, err
	}
	var cmd catalog.Command = &catalog.DeleteKey{Key: key, CAS: cas, Index: index}
	if recurse {
		cmd = &catalog.DeleteKeys{Prefix: key}
	}
	rep, err := c.apply(a.cfg.Servers, cmd)
	if err != nil {
		return nil, err
	}
	return rep.OK, nil
}

// tooLargeValue words the refusal of a value within a transaction.
func tooLargeValue(key string, n int, limit int64) error {
	return &httpError{http.StatusRequestEntityTooLarge, fmt.Sprintf("Value for key %q is too large (%d > %d bytes)", strings.ToValidUTF8(key, "\uFFFD"), n, limit)}
}
