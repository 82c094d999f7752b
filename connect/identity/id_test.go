package identity

import (
	"errors"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

const td = "11111111-2222-3333-4444-555555555555.consul"

func TestParse(t *testing.T) {
	for in, want := range map[string]ID{
		"spiffe://" + td: SigningID{td},
		"spiffe://" + td + "/ns/default/dc/dc1/svc/web":            ServiceID{td, "dc1", "web"},
		"spiffe://" + td + "/ap/default/ns/default/dc/dc1/svc/web": ServiceID{td, "dc1", "web"},
		"spiffe://" + td + "/ns/default/dc/dc1/svc/a%20b":          ServiceID{td, "dc1", "a b"},
		"spiffe://" + td + "/ns/default/dc/dc1/svc/a%252fb":        ServiceID{td, "dc1", "a%2fb"},
		"spiffe://" + td + "/ns/default/dc/dc1/svc/Web_1.x":        ServiceID{td, "dc1", "Web_1.x"},
		"spiffe://" + td + "/agent/client/dc/dc1/id/node-1":        AgentID{td, "dc1", "node-1"},
		"spiffe://" + td + "/ap/default/agent/client/dc/dc1/id/n":  AgentID{td, "dc1", "n"},
		"spiffe://" + td + "/agent/server/dc/dc1":                  ServerID{td, "dc1"},
		"spiffe://" + td + "/agent/server/dc/dc1/id/n":             ServerNodeID{td, "dc1", "n"},
		"spiffe://" + td + "/gateway/mesh/dc/dc1":                  GatewayID{td, "dc1"},
	} {
		got, err := Parse(in)
		if err != nil || got != want {
			t.Errorf("Parse(%q) = %v, %v, want %#v", in, got, err, want)
			continue
		}
		if s := got.String(); s != strings.Replace(in, partition, "", 1) {
			t.Errorf("String of %q = %q", in, s)
		}
		if err := got.Validate(); err != nil {
			t.Errorf("Validate of %q: %v", in, err)
		}
	}
}

func TestP27LookAlikes(t *testing.T) {
	good := "spiffe://" + td + "/ns/default/dc/dc1/svc/web"
	for _, in := range []string{
		"", "spiffe:", "spiffe://", "spiffe:///ns/default/dc/dc1/svc/web",
		strings.Replace(good, "spiffe", "SPIFFE", 1),
		strings.Replace(good, "spiffe", "https", 1),
		strings.Replace(good, "spiffe://", "spiffe:/", 1),
		strings.Replace(good, "//", "//user@", 1),
		strings.Replace(good, "//", "//user:pw@", 1),
		strings.Replace(good, ".consul", ".consul:8300", 1),
		strings.Replace(good, ".consul", ".CONSUL", 1),
		strings.Replace(good, ".consul", ".consul.", 1),
		strings.Replace(good, ".consul", "..consul", 1),
		strings.Replace(good, ".consul", "%2econsul", 1),
		strings.Replace(good, ".consul", "[::1]", 1),
		good + "?", good + "?x=1", good + "#", good + "#x", good + "/", good + "/x", good + " ", " " + good,
		strings.Replace(good, "/svc/", "//svc/", 1),
		strings.Replace(good, "/svc/web", "/svc/", 1),
		strings.Replace(good, "/svc/web", "/svc", 1),
		strings.Replace(good, "/svc/web", "/svc/.", 1),
		strings.Replace(good, "/svc/web", "/svc/..", 1),
		strings.Replace(good, "/svc/web", "/svc/%2e%2e", 1),
		strings.Replace(good, "/svc/web", "/svc/db/../web", 1),
		strings.Replace(good, "/svc/web", "/svc/a/b", 1),
		strings.Replace(good, "/svc/web", "/svc/a%2fb", 1),
		strings.Replace(good, "/svc/web", "/svc/a%2Fb", 1),
		strings.Replace(good, "/svc/web", "/svc/a%5cb", 1),
		strings.Replace(good, "/svc/web", "/svc/a%5Cb", 1),
		strings.Replace(good, "/svc/web", "/svc/%77eb", 1),
		strings.Replace(good, "/svc/web", "/svc/web%00", 1),
		strings.Replace(good, "/svc/web", "/svc/web%0a", 1),
		strings.Replace(good, "/svc/web", "/svc/we\nb", 1),
		strings.Replace(good, "/svc/web", "/svc/a b", 1),
		strings.Replace(good, "/svc/web", "/svc/é", 1),
		strings.Replace(good, "/svc/web", "/svc/%c3%a9", 1),
		strings.Replace(good, "/svc/web", "/svc/%ff", 1),
		strings.Replace(good, "/svc/web", "/svc/%", 1),
		strings.Replace(good, "/svc/web", "/svc/%zz", 1),
		strings.Replace(good, "/ns/", "/NS/", 1),
		strings.Replace(good, "/ns/", "/%6es/", 1),
		strings.Replace(good, "/ns/default/", "/ns/other/", 1),
		strings.Replace(good, "/ns/default/", "/ns/Default/", 1),
		strings.Replace(good, "/ns/", "/ap/other/ns/", 1),
		strings.Replace(good, "/ns/", "/ap/default/ap/default/ns/", 1),
		strings.Replace(good, "/ns/", "/ap/defaults/ns/", 1),
		strings.Replace(good, "/ns/", "/x/ns/", 1),
		"spiffe://" + td + "/", "spiffe://" + td + "/ap/default", "spiffe://" + td + "/ap/default/",
		"spiffe://" + td + "/agent/client/dc/dc1", "spiffe://" + td + "/agent/other/dc/dc1",
		"spiffe://" + td + "/gateway/mesh/dc/", "spiffe://" + td + "/gateway/terminating/dc/dc1",
		good + strings.Repeat("x", maxURI),
	} {
		if id, err := Parse(in); err == nil {
			t.Errorf("Parse(%q) = %#v, want an error", in, id)
		} else if !errors.Is(err, ErrInvalidID) {
			t.Errorf("Parse(%q): %v is no ErrInvalidID", in, err)
		}
	}
	for _, in := range []string{"spiffe://" + td, "spiffe://" + td + "/agent/server/dc/dc1", "x"} {
		if _, err := ParseServiceID(in); !errors.Is(err, ErrInvalidID) {
			t.Errorf("ParseServiceID(%q): %v", in, err)
		}
	}
}

func TestValidate(t *testing.T) {
	for _, id := range []ID{
		ServiceID{"", "dc1", "web"},
		ServiceID{td, "", "web"},
		ServiceID{td, "dc1", ""},
		ServiceID{td, "dc1", "a/b"},
		ServiceID{td, "dc1", `a\b`},
		ServiceID{td, "dc1", ".."},
		ServiceID{td, "dc1", "a\x00"},
		ServiceID{td, "dc1", "\xff"},
		ServiceID{td, "dc1", "a\u0085b"},
		ServiceID{"Foo.consul", "dc1", "web"},
		ServiceID{"a b", "dc1", "web"},
		ServiceID{td, "dc1", strings.Repeat("é", 512)},
		AgentID{td, "dc1", "a/b"},
		ServerID{td, "a/b"},
		GatewayID{td, ".."},
		SigningID{strings.Repeat("a", 256)},
	} {
		if err := id.Validate(); !errors.Is(err, ErrInvalidID) {
			t.Errorf("%#v: %v", id, err)
		}
	}
}

func TestSNI(t *testing.T) {
	for in, want := range map[ServiceID]string{
		{td, "dc1", "web"}:                    "web.default.dc1.internal." + td,
		{td, "dc1", "Web_1"}:                  "web_1.default.dc1.internal." + td,
		{td, "dc1", "a b"}:                    "",
		{td, "dc1", strings.Repeat("a", 64)}:  "",
		{td, "dc1", "a..b"}:                   "",
		{td, strings.Repeat("a.", 120), "ab"}: "",
	} {
		if got := in.SNI(); got != want {
			t.Errorf("SNI of %+v = %q, want %q", in, got, want)
		}
	}
}

// Every name that validates comes back the same from its one spelling.
func TestIDRoundTrip(t *testing.T) {
	name := rapid.OneOf(rapid.String(), rapid.StringMatching(`[a-zA-Z0-9 %&;,:=@$+*~!'()._/\\?#-]{0,20}`))
	rapid.Check(t, func(t *rapid.T) {
		for _, id := range []ID{
			ServiceID{td, "dc1", name.Draw(t, "service")},
			AgentID{td, name.Draw(t, "dc"), name.Draw(t, "node")},
		} {
			if id.Validate() != nil {
				continue
			}
			if got, err := Parse(id.String()); err != nil || got != id {
				t.Fatalf("%#v → %q → %#v, %v", id, id.String(), got, err)
			}
		}
	})
}

func FuzzParse(f *testing.F) {
	f.Add("spiffe://" + td)
	f.Add("spiffe://" + td + "/ns/default/dc/dc1/svc/web")
	f.Add("spiffe://" + td + "/ap/default/ns/default/dc/dc1/svc/a%20b")
	f.Add("spiffe://" + td + "/agent/client/dc/dc1/id/n%C3%A9")
	f.Add("spiffe://" + td + "/gateway/mesh/dc/dc1")
	f.Add("spiffe://u@" + td + ":1/%2e?#")
	f.Fuzz(func(t *testing.T, s string) {
		id, err := Parse(s)
		if err != nil {
			if !errors.Is(err, ErrInvalidID) {
				t.Fatalf("%q: %v is no ErrInvalidID", s, err)
			}
			return
		}
		if err := id.Validate(); err != nil {
			t.Fatalf("%q parses and does not validate: %v", s, err)
		}
		if again, err := Parse(id.String()); err != nil || again != id {
			t.Fatalf("%q: %#v, again %#v, %v", s, id, again, err)
		}
		if id.String() != s && id.String() != strings.Replace(s, partition, "", 1) {
			t.Fatalf("%q is a second spelling of %q", s, id)
		}
	})
}
