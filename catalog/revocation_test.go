package catalog

import (
	"errors"
	"testing"
	"time"
)

func TestRevocations(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	token := Revocation{Kind: RevokedToken, ID: "00ff", At: now, Expires: now.Add(time.Hour)}
	node := Revocation{Kind: RevokedNode, ID: "b1", Node: "web1", At: now}
	change := func(r Revocation, f func(*Revocation)) Revocation { f(&r); return r }
	for name, tc := range map[string]struct {
		r  Revocation
		ok bool
	}{
		"token":              {token, true},
		"node":               {node, true},
		"no kind":            {change(node, func(r *Revocation) { r.Kind = "" }), false},
		"no ID":              {change(node, func(r *Revocation) { r.ID = "" }), false},
		"upper case":         {change(node, func(r *Revocation) { r.ID = "B1" }), false},
		"no time":            {change(node, func(r *Revocation) { r.At = time.Time{} }), false},
		"a node that ends":   {change(node, func(r *Revocation) { r.Expires = now }), false},
		"an endless token":   {change(token, func(r *Revocation) { r.Expires = time.Time{} }), false},
		"a name with escape": {change(node, func(r *Revocation) { r.Node = "a\x1b" }), false},
	} {
		err := (&Revoke{Revocation: tc.r}).Validate()
		if tc.ok != (err == nil) || err != nil && !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := (&Allow{Kind: RevokedNode, ID: "b1"}).Validate(); err != nil {
		t.Error(err)
	}
	if err := (&Allow{Kind: "x", ID: "b1"}).Validate(); !errors.Is(err, ErrInvalid) {
		t.Error(err)
	}
	v := &View{Revocations: []*Revocation{{Kind: RevokedNode, ID: "a"}, &node, &token}}
	for _, tc := range []struct {
		kind, id string
		want     bool
	}{
		{RevokedNode, "b1", true},
		{RevokedNode, "B1", true},
		{RevokedNode, "00ff", false},
		{RevokedToken, "00ff", true},
		{RevokedToken, "", false},
		{RevokedNode, "zz", false},
	} {
		if v.Revoked(tc.kind, tc.id) != tc.want {
			t.Errorf("%s %s: want %v", tc.kind, tc.id, tc.want)
		}
	}
	if (*View)(nil).Revoked(RevokedNode, "b1") {
		t.Error("no view bars nobody")
	}
}
