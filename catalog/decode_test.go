package catalog

import (
	"encoding/json"
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/hcl"
)

func decodeJSON[T any](t *testing.T, doc string) (T, error) {
	t.Helper()
	var out T
	err := DecodeJSON([]byte(doc), &out)
	return out, err
}

func TestDecodeKeyStyles(t *testing.T) {
	want := ServiceRegistration{
		Name: "web", ID: "web-1", Port: 8080, EnableTagOverride: true, Tags: []string{"a"},
		Meta:            map[string]string{"some_key": "v", "OtherKey": "w"},
		TaggedAddresses: map[string]ServiceAddress{"lan_ipv4": {Address: "10.0.0.1", Port: 1}},
		Weights:         &Weights{Passing: 2, Warning: 1},
		Check:           &CheckDefinition{TTL: 10 * time.Second, DeregisterCriticalServiceAfter: 90 * time.Minute},
		Connect: &ServiceConnect{SidecarService: &ServiceRegistration{Proxy: &ConnectProxy{
			Upstreams: []Upstream{{DestinationName: "db", LocalBindPort: 1234, Config: map[string]any{"connect_timeout_ms": 5.0}}},
			Config:    map[string]any{"Nested_Key": map[string]any{"deep": []any{1.0, "x"}}},
		}}},
	}
	for name, doc := range map[string]string{
		"CamelCase": `{"Name":"web","ID":"web-1","Port":8080,"EnableTagOverride":true,"Tags":["a"],"Meta":{"some_key":"v","OtherKey":"w"},
			"TaggedAddresses":{"lan_ipv4":{"Address":"10.0.0.1","Port":1}},"Weights":{"Passing":2,"Warning":1},
			"Check":{"TTL":"10s","DeregisterCriticalServiceAfter":"90m"},
			"Connect":{"SidecarService":{"Proxy":{"Upstreams":[{"DestinationName":"db","LocalBindPort":1234,"Config":{"connect_timeout_ms":5}}],"Config":{"Nested_Key":{"deep":[1,"x"]}}}}}}`,
		"snake_case": `{"name":"web","id":"web-1","port":8080,"enable_tag_override":true,"tags":["a"],"meta":{"some_key":"v","OtherKey":"w"},
			"tagged_addresses":{"lan_ipv4":{"address":"10.0.0.1","port":1}},"weights":{"passing":2,"warning":1},
			"check":{"ttl":"10s","deregister_critical_service_after":5400000000000},
			"connect":{"sidecar_service":{"proxy":{"upstreams":[{"destination_name":"db","local_bind_port":1234,"config":{"connect_timeout_ms":5}}],"config":{"Nested_Key":{"deep":[1,"x"]}}}}}}`,
	} {
		got, err := decodeJSON[ServiceRegistration](t, doc)
		if err != nil {
			t.Errorf("%s: %v", name, err)
		} else if !reflect.DeepEqual(got, want) {
			t.Errorf("%s:\n got %+v\nwant %+v", name, got, want)
		}
	}
	var raw map[string]any
	if err := hcl.Decode(&raw, `
		name = "web"
		id = "web-1"
		port = 8080
		enable_tag_override = true
		tags = ["a"]
		meta { some_key = "v" OtherKey = "w" }
		tagged_addresses { lan_ipv4 { address = "10.0.0.1" port = 1 } }
		weights { passing = 2 warning = 1 }
		check { ttl = "10s" deregister_critical_service_after = "90m" }
		connect { sidecar_service { proxy {
			upstreams { destination_name = "db" local_bind_port = 1234 config { connect_timeout_ms = 5 } }
			config { Nested_Key { deep = [1, "x"] } }
		} } }`); err != nil {
		t.Fatal(err)
	}
	var got ServiceRegistration
	if err := Decode(raw, &got); err != nil {
		t.Fatalf("HCL: %v", err)
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("HCL:\n got %+v\nwant %+v", got, want)
	}
}

func TestDecodeHCLBlocks(t *testing.T) {
	parse := func(doc string) (ServiceRegistration, error) {
		var raw map[string]any
		if err := hcl.Decode(&raw, doc); err != nil {
			t.Fatal(err)
		}
		var out ServiceRegistration
		return out, Decode(raw, &out)
	}
	got, err := parse(`name = "w" checks = [{ ttl = "1s" }, { tcp = "x:1" interval = "2s" }] connect { sidecar_service {} }`)
	if err != nil || len(got.Checks) != 2 || got.Checks[1].Interval != 2*time.Second {
		t.Errorf("list of objects: %+v %v", got.Checks, err)
	}
	if got.Connect == nil || got.Connect.SidecarService == nil {
		t.Errorf("an empty sidecar_service block is lost: %+v", got.Connect)
	}
	got, err = parse(`name = "w" checks { ttl = "1s" } checks { ttl = "2s" }`)
	if err != nil || len(got.Checks) != 2 {
		t.Errorf("repeated block: %+v %v", got.Checks, err)
	}
	if _, err = parse(`check { ttl = "1s" } check { ttl = "2s" }`); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), "given 2 times") {
		t.Errorf("one check given twice: %v", err)
	}
}

// TestDecodeH2PingUsesTLS: as Consul documents it, unless the definition says otherwise.
func TestDecodeH2PingUsesTLS(t *testing.T) {
	for js, want := range map[string]bool{
		`{"H2PING":"a:1"}`: true, `{"h2ping":"a:1"}`: true, `{"H2PING":"a:1","Interval":"10s","args":["x"]}`: true,
		`{"H2PING":"a:1","H2PingUseTLS":false}`: false, `{"h2ping":"a:1","h2ping_use_tls":false}`: false, `{"H2PING":"a:1","H2PingUseTLS":true}`: true,
		`{"HTTP":"http://a"}`: false, `{"H2PING":"","TTL":"10s"}`: false, `{"H2PING":null,"TTL":"10s"}`: false,
	} {
		var alone CheckDefinition
		if err := DecodeJSON([]byte(js), &alone); err != nil || alone.H2PingUseTLS != want {
			t.Errorf("%s: %v, %v", js, alone.H2PingUseTLS, err)
		}
		var reg ServiceRegistration
		if err := DecodeJSON([]byte(`{"Name":"a","Check":`+js+`,"Checks":[`+js+`]}`), &reg); err != nil || reg.Check.H2PingUseTLS != want || reg.Checks[0].H2PingUseTLS != want {
			t.Errorf("%s of a service: %+v, %v", js, reg, err)
		}
	}
	var block ServiceRegistration
	raw := map[string]any{"name": "a", "check": []map[string]any{{"h2ping": "a:1"}}}
	if err := Decode(raw, &block); err != nil || !block.Check.H2PingUseTLS || len(raw["check"].([]map[string]any)[0]) != 1 {
		t.Errorf("HCL: %+v, %v", block.Check, err)
	}
}

func TestDecodeRefuses(t *testing.T) {
	for doc, words := range map[string]string{
		`{"Name":"a","Bogus":1}`:                           `json: unknown field "Bogus"`,
		`{"Name":"a","Check":{"Nope":"1"}}`:                `json: unknown field "Nope"`,
		`{"Checks":[{"TTL":"1s"},{"Deep":{}}]}`:            `json: unknown field "Deep"`,
		`{"Connect":{"SidecarService":{"Proxy":{"X":1}}}}`: `json: unknown field "X"`,
		`{"Proxy":{"Upstreams":[{"LocalBindPorts":1}]}}`:   `json: unknown field "LocalBindPorts"`,
		`{"Port":"80"}`:                        "Port",
		`{"Port":8.5}`:                         "not a whole number",
		`{"Port":99999999999999999999}`:        "not a whole number",
		`{"Port":true}`:                        "Port",
		`{"Name":5}`:                           "Name",
		`{"Name":true}`:                        "Name",
		`{"Tags":"x"}`:                         "Tags",
		`{"Tags":[1]}`:                         "Tags",
		`{"Tags":{}}`:                          "Tags",
		`{"Meta":[]}`:                          "Meta",
		`{"Meta":{"a":1}}`:                     "Meta",
		`{"Meta":"x"}`:                         "Meta",
		`{"Check":[]}`:                         "Check",
		`{"Check":"x"}`:                        "Check",
		`{"Check":{"TTL":"abc"}}`:              `time: invalid duration "abc"`,
		`{"Check":{"TTL":1.5}}`:                "TTL",
		`{"Check":{"TTL":true}}`:               "TTL",
		`{"Check":{"DisableRedirects":"yes"}}`: "DisableRedirects",
		`{"Check":{"DisableRedirects":1}}`:     "DisableRedirects",
		`{"Weights":7}`:                        "Weights",
		`{"TaggedAddresses":{"lan":"x"}}`:      "TaggedAddresses",
		`{} {}`:                                "data after the JSON object",
		`{}x`:                                  "data after the JSON object",
		strings.Repeat(`{"a":`, 65) + "1" + strings.Repeat("}", 65):                                "nested deeper than 64 levels",
		`{"Proxy":{"Config":{"a":` + strings.Repeat("[", 5000) + strings.Repeat("]", 5000) + `}}}`: "nested deeper than 64 levels",
	} {
		got, err := decodeJSON[ServiceRegistration](t, doc)
		if !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), words) {
			t.Errorf("%.80s: got %+v, error %v, want one with %q", doc, got, err, words)
		}
	}
	var unknown *UnknownKeyError
	_, err := decodeJSON[ServiceRegistration](t, `{"Connect":{"SidecarService":{"Proxy":{"X":1}}}}`)
	if !errors.As(err, &unknown) || unknown.Path != "Connect.SidecarService.Proxy.X" {
		t.Errorf("the path of the unknown key is %+v", unknown)
	}
}

func TestDecodeSyntaxErrorsAreJSONs(t *testing.T) {
	for _, doc := range []string{"", "{", "x", "[]", `{"a":}`, `"s"`, "{\"a\":\"\xff"} {
		var v map[string]any
		want := json.NewDecoder(strings.NewReader(doc)).Decode(&v)
		_, err := ParseJSON([]byte(doc))
		if err == nil || want == nil || err.Error() != want.Error() {
			t.Errorf("%q: %v, encoding/json says %v", doc, err, want)
		}
	}
}

func TestDecodeNullsAndEmpties(t *testing.T) {
	got, err := decodeJSON[ServiceRegistration](t, `{"Name":"a","Tags":null,"Meta":null,"Check":null,"Port":null,"Weights":null,"Check":{"TTL":""}}`)
	if err != nil || got.Tags != nil || got.Check == nil || got.Check.TTL != 0 {
		t.Errorf("%+v %v", got, err)
	}
	if v, err := ParseJSON([]byte("null")); err != nil || v != nil {
		t.Errorf("null: %v %v", v, err)
	}
}

// Numbers in opaque maps are what encoding/json alone would make of them.
func TestDecodeOpaqueNumbers(t *testing.T) {
	doc := `{"Config":{"i":5,"f":1.5,"big":12345678901234567890,"l":[1,{"x":2}],"s":"1"}}`
	got, err := decodeJSON[ConnectProxy](t, doc)
	if err != nil {
		t.Fatal(err)
	}
	var want ConnectProxy
	if err := json.Unmarshal([]byte(doc), &want); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got.Config, want.Config) {
		t.Errorf("got %#v\nwant %#v", got.Config, want.Config)
	}
}

func TestDecodeTime(t *testing.T) {
	got, err := decodeJSON[SourceIntention](t, `{"Name":"a","LegacyCreateTime":"2020-01-02T03:04:05.6Z","LegacyUpdateTime":null}`)
	if err != nil || got.LegacyCreateTime == nil || got.LegacyCreateTime.Nanosecond() != 6e8 || got.LegacyUpdateTime != nil {
		t.Errorf("%+v %v", got, err)
	}
	if _, err := decodeJSON[SourceIntention](t, `{"LegacyCreateTime":"yesterday"}`); !errors.Is(err, ErrInvalid) {
		t.Error(err)
	}
}

func FuzzDecodeJSON(f *testing.F) {
	for _, s := range []string{`{}`, `{"Name":"a","Check":{"TTL":"1s"}}`, `{"name":null}`, `{"Kind":"service-intentions","Sources":[{"Name":"x"}]}`, `[`, `{"Meta":{"a":{}}}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		raw, err := ParseJSON(b)
		if err != nil {
			return
		}
		var reg ServiceRegistration
		if err := Decode(raw, &reg); err != nil && !errors.Is(err, ErrInvalid) {
			t.Errorf("not an ErrInvalid: %v", err)
		}
		e, err := DecodeConfigEntry(raw)
		if err == nil {
			e.Normalize()
			_ = e.Validate()
			e.Normalize()
		} else if !errors.Is(err, ErrInvalid) {
			t.Errorf("not an ErrInvalid: %v", err)
		}
	})
}
