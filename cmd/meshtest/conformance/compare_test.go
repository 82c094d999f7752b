package conformance

import (
	"encoding/json"
	"testing"
)

func parse(t *testing.T, s string) any {
	t.Helper()
	v, err := parseJSON([]byte(s))
	if err != nil {
		t.Fatalf("%s: %v", s, err)
	}
	return v
}

// TestWhatCountsAsDifferent holds the rules of the recorder.
func TestWhatCountsAsDifferent(t *testing.T) {
	env := vars{"i": json.Number("7"), "name": "web", "http_port": json.Number("10000")}
	for _, c := range []struct {
		want, got  string
		hard, soft int
	}{
		{`{"a":1}`, `{"a":1}`, 0, 0},
		{`{"a":1}`, `{"a":1,"b":2}`, 0, 1},
		{`{"a":1,"b":2}`, `{"a":1}`, 1, 0},
		{`{"a":1}`, `{"a":"1"}`, 1, 0},
		{`{"a":1}`, `{"a":1.0}`, 0, 0},
		{`null`, `[]`, 1, 0},
		{`[]`, `{}`, 1, 0},
		{`[1,2]`, `[1]`, 1, 0},
		{`[1,2]`, `[2,1]`, 2, 0},
		{`{"<unordered>":[1,2]}`, `[2,1]`, 0, 0},
		{`{"<unordered>":[1,2]}`, `[3,1]`, 1, 0},
		{`{"<unordered>":[1,2]}`, `[2,1,3]`, 1, 0},
		{`{"<unordered>":[{"a":1},{"a":2}]}`, `[{"a":2,"b":1},{"a":1}]`, 0, 1},
		{`{"<each>":"<int>","<min>":2}`, `[1,2,3]`, 0, 0},
		{`{"<each>":"<int>","<min>":2}`, `[1]`, 1, 0},
		{`{"<each>":null}`, `[null,1]`, 1, 0},
		{`{"<map>":"<str>"}`, `{"a":"x","b":""}`, 1, 0},
		{`"<index>"`, `3`, 0, 0},
		{`"<index>"`, `0`, 1, 0},
		{`"<int>"`, `18446744073709551615`, 0, 0},
		{`"<int>"`, `1.5`, 1, 0},
		{`"<int>"`, `"1"`, 1, 0},
		{`"<num>"`, `1.5`, 0, 0},
		{`"<bool>"`, `false`, 0, 0},
		{`"<bool>"`, `"false"`, 1, 0},
		{`"<str>"`, `""`, 1, 0},
		{`"<any>"`, `{"whatever":[1]}`, 0, 0},
		{`"<list>"`, `[]`, 0, 0},
		{`"<object>"`, `[]`, 1, 0},
		{`"<uuid>"`, `"11111111-2222-3333-4444-555555555555"`, 0, 0},
		{`"spiffe://<uuid>.consul/ns/${name}"`, `"spiffe://11111111-2222-3333-4444-555555555555.consul/ns/web"`, 0, 0},
		{`"${i}"`, `7`, 0, 0},
		{`"${i}"`, `8`, 1, 0},
		{`"${http_port}"`, `10000`, 0, 0},
		{`"${unknown}"`, `"${unknown}"`, 0, 0},
		{`"<vip>"`, `"240.0.0.1"`, 0, 0},
		{`"<vip>"`, `"10.0.0.1"`, 1, 0},
		{`{"CreateIndex":"<index>","ModifyIndex":"<index=CreateIndex>"}`, `{"CreateIndex":5,"ModifyIndex":5}`, 0, 0},
		{`{"CreateIndex":"<index>","ModifyIndex":"<index=CreateIndex>"}`, `{"CreateIndex":5,"ModifyIndex":6}`, 1, 0},
		{`{"CreateIndex":"<index>","ModifyIndex":"<index>CreateIndex>"}`, `{"CreateIndex":5,"ModifyIndex":6}`, 0, 0},
		{`{"${name}":1}`, `{"web":1}`, 0, 0},
		{`{"<uuid>":1}`, `{"11111111-2222-3333-4444-555555555555":1}`, 0, 0},
		{`{"<uuid>":1}`, `{"x":1}`, 1, 1},
		{`{"Port":21000}`, `{"Port":10008}`, 0, 0},
		{`{"Port":21000}`, `{"Port":21000}`, 1, 0},
	} {
		cmp := &comparison{env: env, sidecarShift: 10008 - sidecarMin}
		cmp.value(parse(t, c.want), parse(t, c.got), "", nil)
		hard, soft := 0, 0
		for _, d := range cmp.diffs {
			if d.Soft {
				soft++
			} else {
				hard++
			}
		}
		if hard != c.hard || soft != c.soft {
			t.Errorf("%s against %s: %d hard and %d soft differences, want %d and %d: %v", c.got, c.want, hard, soft, c.hard, c.soft, cmp.diffs)
		}
	}
}

func TestErrorTexts(t *testing.T) {
	for _, c := range []struct {
		want, got string
		hard      bool
	}{
		{"Bad check status", "bad", false},
		{"Bad check status", " ", true},
		{"No path to datacenter", "no path to datacenter x", false},
		{"rpc error making call: Permission denied", "Permission denied: lacks key:read", true},
	} {
		cmp := &comparison{env: vars{}}
		cmp.errorText(c.want, c.got)
		if cmp.failed() != c.hard {
			t.Errorf("%q for %q: %v", c.got, c.want, cmp.diffs)
		}
	}
}

func TestPickAndSubstitute(t *testing.T) {
	doc := parse(t, `{"a/b":[{"x":1},{"x":2}],"c":{"d":null}}`)
	for pointer, want := range map[string]string{
		"": "1", "/a~1b/*/x": "2", "/a~1b/-1/x": "1", "/c/d": "1", "/c/e": "0", "/a~1b/2": "0",
	} {
		if got := json.Number(short(len(pick(doc, pointer)))); got.String() != want {
			t.Errorf("%s finds %s, want %s", pointer, got, want)
		}
	}
	env := vars{"n": json.Number("7"), "s": `a"b`}
	got := string(env.substJSON([]byte(`{"i":"${n}","t":"x${n}","q":"${s}","${n}":1,"u":"${other}"}`)))
	if want := `{"i":7,"t":"x7","q":"a\"b","7":1,"u":"${other}"}`; got != want {
		t.Errorf("substituted %s, want %s", got, want)
	}
}
