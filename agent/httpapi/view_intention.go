package httpapi

import (
	"crypto/sha256"
	"encoding/json"
	"time"

	"github.com/weftmesh/weft/catalog"
)

// intentionView is an intention in every answer that has one.
type intentionView struct {
	CreatedAt       *time.Time `json:",omitempty" bexpr:"-"`
	UpdatedAt       *time.Time `json:",omitempty" bexpr:"-"`
	ID              string     `json:",omitempty"`
	Description     string     `json:",omitempty"`
	SourceNS        string
	SourceName      string
	SourcePeer      string `json:",omitempty"`
	DestinationNS   string
	DestinationName string
	SourceType      string
	Action          catalog.Action                 `json:",omitempty"`
	Permissions     []*catalog.IntentionPermission `json:",omitempty" bexpr:"-"`
	JWT             *catalog.IntentionJWT          `json:",omitempty" bexpr:"-"`
	Mode            catalog.IntentionMode          `json:",omitempty"`
	Meta            map[string]string              `json:",omitempty"`
	Precedence      int
	Hash            []byte `json:",omitempty" bexpr:"-"`
	CreateIndex     uint64 `bexpr:"-"`
	ModifyIndex     uint64 `bexpr:"-"`
}

func viewIntention(i *catalog.Intention) intentionView {
	v := intentionView{
		ID: i.ID, Description: i.Description,
		SourceNS: "default", SourceName: i.SourceName, SourcePeer: i.SourcePeer,
		DestinationNS: "default", DestinationName: i.DestinationName,
		SourceType: orString(i.SourceType, "consul"), Action: i.Action, Permissions: i.Permissions, JWT: i.JWT, Mode: i.Mode, Meta: i.Meta,
		Precedence:  catalog.Precedence(i.SourceName, i.DestinationName),
		CreateIndex: i.CreateIndex, ModifyIndex: i.ModifyIndex,
	}
	if i.ID != "" {
		v.CreatedAt, v.UpdatedAt = i.CreatedAt, i.UpdatedAt
		v.Hash = hashOf(v)
	}
	return v
}

// hashOf digests what an intention says, so that a reader sees that it changed.
func hashOf(v intentionView) []byte {
	v.CreatedAt, v.UpdatedAt, v.Hash, v.CreateIndex, v.ModifyIndex = nil, nil, nil, 0, 0
	b, err := json.Marshal(v)
	if err != nil {
		return nil // no part of it can fail to encode
	}
	sum := sha256.Sum256(b)
	return sum[:]
}

func viewIntentions(in catalog.Intentions) []intentionView {
	out := make([]intentionView, 0, len(in))
	for _, i := range in {
		out = append(out, viewIntention(i))
	}
	return out
}
