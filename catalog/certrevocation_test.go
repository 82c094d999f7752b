package catalog

import (
	"strings"
	"testing"
)

func TestParseCertRevocation(t *testing.T) {
	for in, want := range map[string]string{
		"0A:1b:2c":         "0a:1b:2c",
		"0a1B2C":           "0a:1b:2c",
		"a1b":              "0a:1b",
		"00:8f:01":         "8f:01",
		"0":                "00",
		"spiffe://d.x/ns/": "spiffe://d.x/ns/",
	} {
		r, err := ParseCertRevocation(in)
		if err != nil || r.Key() != want {
			t.Errorf("%q: %q %v, want %q", in, r.Key(), err, want)
		}
	}
	for _, in := range []string{
		"", "web", "0x12", "::", "-1", "spiffe://", "https://example.com/", "spiffe://a/\x00", strings.Repeat("ab", 200),
		"spiffe://" + strings.Repeat("a", 3000),
	} {
		if r, err := ParseCertRevocation(in); err == nil {
			t.Errorf("%q was taken as %+v", in, r)
		}
	}
	if (&CertRevocation{Serial: "01", URI: "spiffe://a/b"}).Validate() == nil || (&CertRevocation{}).Validate() == nil {
		t.Error("both or none were taken")
	}
}
