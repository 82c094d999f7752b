package identity

import (
	"crypto/x509"
	"errors"
	"math/big"
	"testing"
)

func TestRevoking(t *testing.T) {
	root := newAuthority(t, td)
	bundle := must(NewBundle(td, []string{root.pem()}))
	one, two := root.leaf(t, web()), root.leaf(t, db(), func(c *x509.Certificate) { c.SerialNumber = big.NewInt(77) })
	serial := Serial(one.Leaf.SerialNumber)
	for name, tc := range map[string]struct {
		b    *Bundle
		one  bool
		two  bool
		says string
	}{
		"nothing":  {b: bundle.Revoking(nil, nil), one: true, two: true},
		"serial":   {b: bundle.Revoking([]string{serial}, nil), two: true, says: "serial " + serial},
		"identity": {b: bundle.Revoking(nil, []string{web().String()}), two: true, says: web().String()},
		"other":    {b: bundle.Revoking([]string{"ff"}, []string{ServiceID{td, "dc2", "web"}.String()}), one: true, two: true},
	} {
		_, err1 := tc.b.VerifyPeer([]*x509.Certificate{one.Leaf}, now)
		_, err2 := tc.b.VerifyPeer([]*x509.Certificate{two.Leaf}, now)
		if (err1 == nil) != tc.one || (err2 == nil) != tc.two {
			t.Errorf("%s: %v, %v", name, err1, err2)
		}
		var v *VerifyError
		if !tc.one && (!errors.As(err1, &v) || v.Reason != ReasonRevoked) {
			t.Errorf("%s: %v", name, err1)
		}
		if got := tc.b.Revoked(one.Leaf, web()); got != tc.says {
			t.Errorf("%s: %q, want %q", name, got, tc.says)
		}
	}
	a, b := bundle.Revoking([]string{"01", "02"}, nil), bundle.Revoking([]string{"02", "01"}, nil)
	if a.Fingerprint() != b.Fingerprint() || a.Fingerprint() == bundle.Fingerprint() || bundle.RevokedID(web()) {
		t.Error("fingerprints")
	}
}
