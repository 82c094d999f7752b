//go:build faults

package faults_test

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/url"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/consul/api"
	"github.com/hashicorp/go-msgpack/v2/codec"
	"github.com/miekg/dns"

	"github.com/weftmesh/weft/agent/httpapi"
)

// generator makes requests that are nearly right: what is quite wrong is refused by
// the first line that looks at it.
type generator struct{ *rand.Rand }

var (
	names = []string{
		"web", "db", "api", "cache", "a", "*", "", "x/y", "..", "%2e%2e", "web-sidecar-proxy", "default", "global", "dc1", "consul", "_agent",
		"ünï☃", "\x00", "a b", "${name.full}", "'; drop", "<script>", strings.Repeat("n", 300), "-", "web.db", "WEB", "passing", "critical", "any",
	}
	words = []string{
		"", "1", "-1", "0", "true", "10s", "-5m", "1e99", "allow", "deny", "tcp", "http", "http2", "passing", "warning", "critical", "maintenance",
		"connect-proxy", "mesh-gateway", "ingress-gateway", "terminating-gateway", "api-gateway", "release", "delete", "set", "cas", "get", "lock", "unlock", "delete-tree",
		"local", "remote", "none", "transparent", "direct", "exact", "prefix", "distinct", "maglev", "least_request", "ring_hash", "permissive", "strict",
		"service-defaults", "proxy-defaults", "service-resolver", "service-router", "service-splitter", "service-intentions", "mesh", "exported-services",
		"jwt-provider", "tcp-route", "http-route", "inline-certificate", "sameness-group", "Service.Meta.v == 1", "(((", "^[a-z]+$", "(?P<x", "999999999999999999999999",
		"2006-01-02T15:04:05Z", "spiffe://x/ns/default/dc/dc1/svc/web", "00000000-0000-0000-0000-000000000000", "e30=", "/health", "TLSv1_3", "ec", "rsa",
	}
	dialled = []string{"", "127.0.0.1:1", "http://127.0.0.1:1/", "https://127.0.0.1:1", "127.0.0.1", ":::", "http://[::1", "unix:///none", "tcp://127.0.0.1:1", "\x00"}
	addrs   = []string{"127.0.0.1", "::1", "10.0.0.1", "", "host", "999.1.1.1", "unix:///x", "[::1]:80", "0.0.0.0"}
	queries = []string{
		"index", "wait", "stale", "consistent", "cached", "max_stale", "filter", "near", "tag", "node-meta", "passing", "merge-central-config", "dc", "ns", "partition", "token",
		"pretty", "cas", "recurse", "keys", "separator", "raw", "flags", "acquire", "release", "source", "destination", "by", "name", "format", "enable", "reason", "hash", "node",
		"service", "status", "id", "address", "wan", "prune", "limit", "connect", "peer", "sidecar", "replace-existing-checks", "local-only", "relay-factor", "compile-dc", "segment",
	}
	values = []string{
		"", "1", "0", "-1", "10ms", "x", "true", "maybe", "99999999999999999999", "web", "*", "a/b/c", "Name==web", "(", "Checks.Status == critical", "Service.Port != 1e9", "\"v1\" in Tags",
		strings.Repeat("(", 300), "_agent", "k:v", ":", "destination", "source", "\x00", "%", "☃", "dc1", "default",
	}
	bodiesOf = map[string][]reflect.Type{
		"/v1/agent/service/register":     types(api.AgentServiceRegistration{}),
		"/v1/agent/check/register":       types(api.AgentCheckRegistration{}),
		"/v1/agent/connect/authorize":    types(api.AgentAuthorizeParams{}),
		"/v1/catalog/register":           types(api.CatalogRegistration{}),
		"/v1/catalog/deregister":         types(api.CatalogDeregistration{}),
		"/v1/session/create":             types(api.SessionEntry{}),
		"/v1/txn":                        types([]*api.TxnOp{}, api.KVTxnOps{}),
		"/v1/query":                      types(api.PreparedQueryDefinition{}),
		"/v1/connect/intentions":         types(api.Intention{}),
		"/v1/connect/ca/configuration":   types(api.CAConfig{}),
		"/v1/coordinate/update":          types(api.CoordinateEntry{}),
		"/v1/discovery-chain/":           types(api.DiscoveryChainOptions{}),
		"/v1/operator/autopilot/configu": types(api.AutopilotConfiguration{}),
		"/v1/config": types(
			api.ServiceConfigEntry{}, api.ProxyConfigEntry{}, api.ServiceResolverConfigEntry{}, api.ServiceSplitterConfigEntry{}, api.ServiceRouterConfigEntry{},
			api.ServiceIntentionsConfigEntry{}, api.IngressGatewayConfigEntry{}, api.TerminatingGatewayConfigEntry{}, api.MeshConfigEntry{},
			api.ExportedServicesConfigEntry{}, api.JWTProviderConfigEntry{}, api.APIGatewayConfigEntry{}, api.HTTPRouteConfigEntry{}, api.TCPRouteConfigEntry{},
			api.InlineCertificateConfigEntry{}, api.SamenessGroupConfigEntry{}, api.FileSystemCertificateConfigEntry{}),
	}
	kinds = []string{
		"service-defaults", "proxy-defaults", "service-resolver", "service-splitter", "service-router", "service-intentions", "ingress-gateway", "terminating-gateway", "mesh",
		"exported-services", "jwt-provider", "api-gateway", "http-route", "tcp-route", "inline-certificate", "sameness-group", "file-system-certificate",
	}
)

func types(vs ...any) (out []reflect.Type) {
	for _, v := range vs {
		out = append(out, reflect.TypeOf(v))
	}
	return out
}

func pick[T any](g *generator, from []T) T { return from[g.IntN(len(from))] }

func (g *generator) chance(oneIn int) bool { return g.IntN(oneIn) == 0 }

// request makes one for a route.
func (g *generator) request(rt httpapi.Route) (method, target string, body []byte, header map[string]string) {
	method = rt.Method
	if g.chance(20) {
		method = pick(g, []string{"GET", "PUT", "POST", "DELETE", "PATCH", "HEAD", "OPTIONS", "BREW"})
	}
	path, _, tail := strings.Cut(rt.Path, ":")
	target = path
	switch {
	case strings.HasPrefix(path, "/v1/agent/join"):
		target += "127.0.0.1:1"
	case tail:
		target += url.PathEscape(pick(g, names))
		if g.chance(8) {
			target += "/" + url.PathEscape(pick(g, names))
		}
	}
	var params []string
	for range g.IntN(4) {
		p := pick(g, queries)
		switch {
		case p == "wait": // others mean minutes
			p += "=" + pick(g, []string{"10ms", "1ms", "x", "-"})
		case !g.chance(6):
			p += "=" + url.QueryEscape(pick(g, values))
		}
		params = append(params, p)
	}
	if !slices.ContainsFunc(params, func(p string) bool { return strings.HasPrefix(p, "wait=") }) {
		params = append(params, "wait=5ms")
	}
	if g.chance(30) {
		params = append(params, "%zz=%")
	}
	target += "?" + strings.Join(params, "&")
	header = map[string]string{}
	if g.chance(4) {
		name := pick(g, []string{"Cache-Control", "Accept-Encoding", "Authorization", "X-Consul-Token", "Content-Type", "Accept", "If-None-Match", "X-Forwarded-For", "Content-Encoding", "Range"})
		header[name] = pick(g, []string{"", "gzip;q=x,,", "Bearer", "max-age=-1,=,;", "max-age=1", "stale-if-error=9e9", "application/openmetrics-text", "text/html", strings.Repeat("v", 8000), "*/*;q=", "bytes=0-0"})
	}
	return method, target, g.body(path), header
}

func (g *generator) body(path string) []byte {
	if path == "/v1/snapshot" || g.chance(15) {
		return g.noise()
	}
	for prefix, of := range bodiesOf {
		if !strings.HasPrefix(path, prefix) {
			continue
		}
		i := g.IntN(len(of))
		v := reflect.New(of[i])
		g.fill(v.Elem(), "", 0)
		b, err := json.Marshal(v.Interface())
		if err != nil {
			return []byte("{")
		}
		if prefix == "/v1/config" && !g.chance(10) {
			var m map[string]any
			if json.Unmarshal(b, &m) == nil {
				m["Kind"] = kinds[i]
				b, _ = json.Marshal(m)
			}
		}
		return g.damage(b)
	}
	return []byte(pick(g, values))
}

// fill sets some of the fields, mostly to what could be meant.
func (g *generator) fill(v reflect.Value, field string, depth int) {
	if depth > 7 {
		return
	}
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			if v.Type().Field(i).IsExported() && !g.chance(3) && v.Type() != reflect.TypeFor[time.Time]() {
				g.fill(v.Field(i), v.Type().Field(i).Name, depth+1)
			}
		}
	case reflect.Pointer:
		if !g.chance(3) {
			v.Set(reflect.New(v.Type().Elem()))
			g.fill(v.Elem(), field, depth+1)
		}
	case reflect.Slice:
		n := g.IntN(4)
		v.Set(reflect.MakeSlice(v.Type(), n, n))
		for i := range n {
			g.fill(v.Index(i), field, depth+1)
		}
	case reflect.Map:
		v.Set(reflect.MakeMap(v.Type()))
		for range g.IntN(3) {
			k, e := reflect.New(v.Type().Key()).Elem(), reflect.New(v.Type().Elem()).Elem()
			g.fill(k, "", depth+1)
			g.fill(e, field, depth+1)
			v.SetMapIndex(k, e)
		}
	case reflect.Interface:
		if v.NumMethod() == 0 {
			v.Set(reflect.ValueOf(pick(g, []any{"x", 1.5, true, -1, []any{"a"}, map[string]any{"a": map[string]any{"b": nil}}})))
		}
	case reflect.String:
		v.SetString(g.text(field))
	case reflect.Bool:
		v.SetBool(g.chance(2))
	case reflect.Int, reflect.Int32, reflect.Int64:
		n := pick(g, []int64{0, 1, -1, 80, 8080, 65536, 1 << 31, -1 << 31, int64(time.Second), int64(time.Millisecond), 100})
		if !v.OverflowInt(n) {
			v.SetInt(n)
		}
	case reflect.Uint, reflect.Uint32, reflect.Uint64:
		v.SetUint(uint64(g.IntN(200)))
	case reflect.Float32, reflect.Float64:
		v.SetFloat(pick(g, []float64{0, 1, 50, 100, -1, 1e30, 0.001}))
	}
}

func (g *generator) text(field string) string {
	switch {
	case slices.Contains([]string{"HTTP", "TCP", "UDP", "GRPC", "H2PING", "ProxyHTTP", "Socket", "SocketPath", "LocalBindSocketPath", "LocalServiceSocketPath", "URI", "Target"}, field):
		return pick(g, dialled)
	case strings.Contains(field, "Address"):
		return pick(g, addrs)
	case strings.Contains(field, "Name") || strings.HasSuffix(field, "ID") || field == "Node" || field == "Service" || field == "Key":
		return pick(g, names)
	case strings.Contains(field, "Shell") || strings.Contains(field, "Docker"):
		return ""
	}
	return pick(g, words)
}

// damage changes a few bytes, or the type of a value, of one in three.
func (g *generator) damage(b []byte) []byte {
	switch g.IntN(12) {
	case 0:
		for range 1 + g.IntN(4) {
			if len(b) > 0 {
				b[g.IntN(len(b))] = byte(g.IntN(256))
			}
		}
	case 1:
		b = b[:g.IntN(len(b)+1)]
	case 2:
		b = []byte(strings.Replace(string(b), `"`, pick(g, []string{`{`, `[`, `null`, `\u0000`, `""`}), 1))
	case 3:
		b = []byte(strings.Replace(string(b), `:`, ":"+pick(g, []string{"null,\"x\":", "[", "{\"a\":{}},\"y\":", "1e400,\"z\":"}), 1+g.IntN(3)))
	}
	return b
}

// noise is anything: bytes, the beginning of a protocol, msgpack, HCL, DNS.
func (g *generator) noise() []byte {
	raw := make([]byte, g.IntN(1200))
	for i := range raw {
		raw[i] = byte(g.Uint32())
	}
	switch g.IntN(10) {
	case 0:
		return raw
	case 1: // memberlist: a type, then what may be msgpack
		return append([]byte{byte(g.IntN(16))}, g.msgpack()...)
	case 2:
		return g.msgpack()
	case 3:
		return append([]byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00"), raw...)
	case 4:
		return append([]byte("\x16\x03\x01"), raw...)
	case 5:
		return []byte(pick(g, []string{
			"GET / HTTP/1.1\r\n\r\n", "PUT /v1/kv/x HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n", "GET /v1/kv/x HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n",
			"PUT /v1/kv/x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /v1/agent/leave HTTP/1.1\r\n", "GET /" + strings.Repeat("a", 70_000) + " HTTP/1.1\r\nHost: x\r\n\r\n",
			"GET /v1/status/leader HTTP/1.1\r\nHost: localhost\r\n" + strings.Repeat("X-A: b\r\n", 5000) + "\r\n", "GET\x00/ HTTP/9.9\r\n\r\n",
		}))
	case 6:
		return []byte(fmt.Sprintf("%s = {\n %q {\n", pick(g, words), pick(g, names)))
	case 7, 8: // a question, some of its bytes wrong
		m := new(dns.Msg)
		m.SetQuestion(pick(g, []string{"web", "_web._tcp", "x.y.z", "*", "web.service.dc1"})+pick(g, []string{".service", ".node", ".query", ".addr", ".connect", ""})+".consul.", uint16(g.IntN(300)))
		m.SetEdns0(uint16(g.IntN(1<<16)), g.chance(2))
		b, err := m.Pack()
		if err != nil {
			return raw
		}
		for range g.IntN(4) {
			b[g.IntN(len(b))] = byte(g.IntN(256))
		}
		if g.chance(2) { // as over TCP
			b = append(binary.BigEndian.AppendUint16(nil, uint16(g.IntN(1<<16))), b...)
		}
		return b
	default:
		return nil
	}
}

func (g *generator) msgpack() []byte {
	var b []byte
	v := map[string]any{pick(g, names): pick(g, words), "Node": pick(g, names), "SeqNo": g.Uint64(), "Addr": []byte{1, 2}, "Incarnation": -1, "Payload": map[string]any{"a": []any{1, nil, "x"}}}
	_ = codec.NewEncoderBytes(&b, &codec.MsgpackHandle{}).Encode(v)
	for range g.IntN(3) {
		b[g.IntN(len(b))] = byte(g.IntN(256))
	}
	if g.chance(5) { // an array of four billion
		b = append([]byte{0xdd, 0xff, 0xff, 0xff, 0xff}, b...)
	}
	return b
}
