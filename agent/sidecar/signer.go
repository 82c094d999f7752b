package sidecar

import (
	"context"
	"fmt"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/catalog/wire"
	"github.com/weftmesh/weft/connect"
	"github.com/weftmesh/weft/connect/identity"
)

// Authority issues certificates: agent/remote does, by asking a server.
type Authority interface {
	Sign(ctx context.Context, req *wire.SignRequest) (*wire.SignReply, error)
}

// NewSigner gives what Config.Signer asks for: signers that all ask ca. A signer
// refuses a certificate for anybody but its service.
func NewSigner(ca Authority) func(service catalog.Name) connect.Signer {
	return func(service catalog.Name) connect.Signer { return &signer{ca: ca, service: service} }
}

type signer struct {
	ca      Authority
	service catalog.Name
}

// Sign implements connect.Signer.
func (s *signer) Sign(ctx context.Context, csr []byte) (identity.Chain, error) {
	rep, err := s.ca.Sign(ctx, &wire.SignRequest{CSR: csr})
	if err != nil {
		return identity.Chain{}, fmt.Errorf("certificate of %s: %w", s.service, err)
	}
	if rep.Leaf.Service != s.service {
		return identity.Chain{}, fmt.Errorf("certificate of %s: the servers issued one for %q: %w", s.service, rep.Leaf.Service, catalog.ErrInvalid)
	}
	chain, err := identity.ParseChain([]byte(rep.Leaf.CertPEM))
	if err != nil {
		return identity.Chain{}, fmt.Errorf("certificate of %s: %w", s.service, err)
	}
	return chain, nil
}
