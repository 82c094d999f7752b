package catalog

import (
	"encoding/json"
	"errors"
	"reflect"
	"strings"
	"testing"
)

func decodeEntry(t *testing.T, doc string) (ConfigEntry, error) {
	t.Helper()
	raw, err := ParseJSON([]byte(doc))
	if err != nil {
		t.Fatalf("%s: %v", doc, err)
	}
	return DecodeConfigEntry(raw)
}

func TestServiceIntentionsNormalize(t *testing.T) {
	e, err := decodeEntry(t, `{"Kind":"service-intentions","Name":"db","Sources":[
		{"Name":"web","Action":"allow","Description":"d"},{"Name":"*","Action":"deny"},{"Name":"api","Action":"deny"}],"Meta":{"m":"x"}}`)
	if err != nil {
		t.Fatal(err)
	}
	e.Normalize()
	if err := e.Validate(); err != nil {
		t.Fatal(err)
	}
	got, err := json.Marshal(e)
	if err != nil {
		t.Fatal(err)
	}
	want := `{"Name":"db","Sources":[` +
		`{"Name":"web","Action":"allow","Precedence":9,"Type":"consul","Description":"d"},` +
		`{"Name":"api","Action":"deny","Precedence":9,"Type":"consul"},` +
		`{"Name":"*","Action":"deny","Precedence":8,"Type":"consul"}],"Meta":{"m":"x"},"CreateIndex":0,"ModifyIndex":0}`
	if string(got) != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	once := e.(*ServiceIntentions).Clone()
	e.Normalize()
	if !reflect.DeepEqual(once, e) {
		t.Error("Normalize is not idempotent")
	}
}

// Another destination, another precedence: what the caller claims is not believed.
func TestServiceIntentionsOwnPrecedence(t *testing.T) {
	e := &ServiceIntentions{Name: "*", Sources: []*SourceIntention{{Name: "*", Precedence: 99}, {Name: "web", Precedence: 1}}}
	e.Normalize()
	if e.Sources[0].Name != "web" || e.Sources[0].Precedence != 6 || e.Sources[1].Precedence != 5 {
		t.Errorf("%+v %+v", e.Sources[0], e.Sources[1])
	}
}

func TestServiceIntentionsValidate(t *testing.T) {
	long := strings.Repeat("n", 513)
	http := func(body string) string {
		return `{"Name":"db","Sources":[{"Name":"a","Permissions":[{"Action":"allow","HTTP":` + body + `}]}]}`
	}
	for doc, want := range map[string]string{
		`{"Name":"db","Sources":[]}`:                               "At least one source is required",
		`{"Name":"db"}`:                                            "At least one source is required",
		`{"Sources":[{"Name":"a","Action":"allow"}]}`:              "service-intentions: Name is required",
		`{"Name":"d*b","Sources":[{"Name":"a","Action":"allow"}]}`: `Name: wildcard character '*' cannot be used with partial values but at the end: "d*b" could be "d*"`,
		`{"Name":"d**","Sources":[{"Name":"a","Action":"allow"}]}`: `Name: wildcard character '*' cannot be used with partial values but at the end: "d**" could be "d*"`,
		`{"Name":"d*","Sources":[{"Name":"a","Permissions":[{"Action":"allow","HTTP":{"PathPrefix":"/"}}]}]}`:                "Sources[0].Permissions cannot be specified on intentions with wildcarded destinations",
		`{"Name":"db","Sources":[{"Name":"","Action":"allow"}]}`:                                                             "Sources[0].Name is required",
		`{"Name":"db","Sources":[null]}`:                                                                                     "Sources[0].Name is required",
		`{"Name":"db","Sources":[{"Name":"*we","Action":"allow"}]}`:                                                          `Sources[0].Name: wildcard character '*' cannot be used with partial values but at the end: "*we" could be "*"`,
		`{"Name":"db","Sources":[{"Name":"` + long + `","Action":"allow"}]}`:                                                 "Sources[0].Name: the name has 513 bytes, at most 512 are allowed",
		`{"Name":"db","Sources":[{"Name":"a"}]}`:                                                                             "Sources[0].Action must be set to 'allow' or 'deny'",
		`{"Name":"db","Sources":[{"Name":"a","Action":"zz"}]}`:                                                               "Sources[0].Action must be set to 'allow' or 'deny'",
		`{"Name":"db","Sources":[{"Name":"a","Action":"allow","Type":"spiffe"}]}`:                                            "Sources[0].Type must be set to 'consul'",
		`{"Name":"db","Sources":[{"Name":"a","Action":"allow"},{"Name":"a","Action":"deny"}]}`:                               `Sources[1] defines "a" more than once`,
		`{"Name":"db","Sources":[{"Name":"a","Action":"allow","Permissions":[{"Action":"deny","HTTP":{"PathExact":"/"}}]}]}`: "Sources[0].Action must be omitted if Permissions are specified",
		`{"Name":"*","Sources":[{"Name":"a","Permissions":[{"Action":"deny","HTTP":{"PathExact":"/"}}]}]}`:                   "Sources[0].Permissions cannot be specified on intentions with wildcarded destinations",
		`{"Name":"db","Sources":[{"Name":"a","Permissions":[{"HTTP":{"PathExact":"/"}}]}]}`:                                  "Sources[0].Permissions[0].Action must be set to 'allow' or 'deny'",
		`{"Name":"db","Sources":[{"Name":"a","Permissions":[{"Action":"allow"}]}]}`:                                          "Sources[0].Permissions[0].HTTP or JWT is required",
		`{"Name":"db","Sources":[{"Name":"a","Permissions":[null]}]}`:                                                        "Sources[0].Permissions[0].Action must be set to 'allow' or 'deny'",
		http(`{"PathExact":"x"}`):                                  `Sources[0].Permissions[0].HTTP: path "x" must begin with '/'`,
		http(`{"PathExact":"/x","PathRegex":"y"}`):                 "Sources[0].Permissions[0].HTTP should only contain at most one of PathExact, PathPrefix, or PathRegex",
		http(`{"PathRegex":"("}`):                                  "Sources[0].Permissions[0].HTTP.PathRegex: error parsing regexp: missing closing ): `(`",
		http(`{"Header":[{"Present":true}]}`):                      "Sources[0].Permissions[0].HTTP.Header[0] missing required Name field",
		http(`{"Header":[{"Name":"x"}]}`):                          "Sources[0].Permissions[0].HTTP.Header[0] should contain one of Present, Exact, Prefix, Suffix, Contains, or Regex",
		http(`{"Header":[{"Name":"x","Exact":"a","Prefix":"b"}]}`): "Sources[0].Permissions[0].HTTP.Header[0] should contain one of Present, Exact, Prefix, Suffix, Contains, or Regex",
		http(`{"Methods":["GET","get"]}`):                          `Sources[0].Permissions[0].HTTP.Methods contains "GET" more than once`,
		http(`{"Methods":["G T"]}`):                                `Sources[0].Permissions[0].HTTP.Methods contains an invalid method "G T"`,
	} {
		e, err := decodeEntry(t, `{"Kind":"service-intentions",`+strings.TrimPrefix(doc, "{"))
		if err != nil {
			t.Errorf("%s: %v", doc, err)
			continue
		}
		e.Normalize()
		if err := e.Validate(); !errors.Is(err, ErrInvalid) || err.Error() != want {
			t.Errorf("%s:\n got %v\nwant %s", doc, err, want)
		}
		_ = e.(*ServiceIntentions).Clone()
		_ = e.(*ServiceIntentions).Intentions()
	}
}

func TestCloneSharesNothingThatNormalizeWrites(t *testing.T) {
	e := &ServiceIntentions{Name: "db", Sources: []*SourceIntention{{
		Name: "a", Permissions: []*IntentionPermission{{Action: ActionAllow, HTTP: &IntentionHTTP{Methods: []string{"get"}}}},
	}}}
	c := e.Clone()
	c.Normalize()
	if got := e.Sources[0]; got.Precedence != 0 || got.Type != "" || got.Permissions[0].HTTP.Methods[0] != "get" {
		t.Errorf("normalizing the clone changed the original: %+v", got)
	}
	if c.Sources[0].Permissions[0].HTTP.Methods[0] != "GET" {
		t.Error("methods are not in upper case")
	}
}

func TestEntryCodec(t *testing.T) {
	e := &ServiceIntentions{
		Name: "db", Meta: map[string]string{"a": "b"}, RaftIndex: RaftIndex{CreateIndex: 3, ModifyIndex: 1 << 60},
		Sources: []*SourceIntention{{Name: "a", Action: ActionAllow, LegacyID: "x"}},
	}
	b, err := Entry{e}.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	var back Entry
	if err := back.UnmarshalBinary(b); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(back.ConfigEntry, ConfigEntry(e)) {
		t.Errorf("got %+v", back.ConfigEntry)
	}
	b, err = Entry{}.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	if err := back.UnmarshalBinary(b); err != nil || back.ConfigEntry != nil {
		t.Errorf("an empty entry became %+v, %v", back.ConfigEntry, err)
	}
	for _, bad := range []string{"", "{", "[]", `{"Kind":"nope"}`, `{"Kind":"service-intentions","Entry":[]}`} {
		if err := back.UnmarshalBinary([]byte(bad)); err == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
}

func TestDecodeConfigEntryRefuses(t *testing.T) {
	for doc, want := range map[string]string{
		`{}`:                         "Payload does not contain a kind/Kind key at the top level",
		`{"Kind":5}`:                 "config entry: Kind must be a text",
		`{"kind":"nope","Name":"a"}`: `invalid config entry kind: nope; the kinds are ` + strings.Join(ConfigKinds(), ", "),
		`{"kind":"service-intentions","name":"a","sources":[{"nam":"x"}]}`: `json: unknown field "nam"`,
	} {
		if _, err := decodeEntry(t, doc); !errors.Is(err, ErrInvalid) || err.Error() != want {
			t.Errorf("%s: %v", doc, err)
		}
	}
}

// TestAuditMode: what an intention in audit mode denies passes, and says so; a source
// may enforce within an entry that audits.
func TestAuditMode(t *testing.T) {
	e := &ServiceIntentions{Name: "db", Mode: ModeAudit, Sources: []*SourceIntention{
		{Name: "web", Action: ActionDeny},
		{Name: "batch", Action: ActionDeny, Mode: ModeEnforce},
		{Name: "api", Action: ActionAllow},
		{Name: "l7", Permissions: []*IntentionPermission{{Action: ActionAllow, HTTP: &IntentionHTTP{PathPrefix: "/"}}}},
	}}
	e.Normalize()
	if err := e.Validate(); err != nil {
		t.Fatal(err)
	}
	for source, want := range map[string]Action{
		"web": ActionAudit, "batch": ActionDeny, "api": ActionAllow, "l7": ActionAudit, "other": ActionDeny,
	} {
		if d := e.Intentions().Decide(Request{Source: source, Destination: "db"}, ActionDeny); d.Action != want {
			t.Errorf("%s: %s, want %s (%s)", source, d.Action, want, d.Reason())
		}
	}
	for _, bad := range []*ServiceIntentions{
		{Name: "db", Mode: "dry", Sources: []*SourceIntention{{Name: "web", Action: ActionDeny}}},
		{Name: "db", Sources: []*SourceIntention{{Name: "web", Action: ActionDeny, Mode: "dry"}}},
	} {
		if err := bad.Validate(); err == nil {
			t.Errorf("%+v is taken", bad)
		}
	}
}
