package enroll

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"strings"

	"github.com/weftmesh/weft/connect/identity"
)

// Role is what a node is in the cluster.
type Role string

// Roles.
const (
	RoleServer Role = "server"
	RoleAgent  Role = "agent"
)

// Peer is a node as its certificate names it.
type Peer struct {
	Role       Role
	Node       string // its name when the certificate was made
	NodeID     string
	Datacenter string
	ClusterID  string
}

// String is for logs.
func (p Peer) String() string {
	return fmt.Sprintf("%s %s (%s, datacenter %s)", p.Role, p.Node, p.NodeID, p.Datacenter)
}

// ErrNoPeer means that a connection carries no certificate of a node, as is right
// for a newcomer.
var ErrNoPeer = errors.New("the peer has shown no certificate")

// PeerOf is the node at the other end of a connection whose handshake is done, under
// a config of Credentials, which has verified it.
func PeerOf(cs tls.ConnectionState) (Peer, error) {
	if !cs.HandshakeComplete || len(cs.PeerCertificates) == 0 {
		return Peer{}, ErrNoPeer
	}
	return peerIn(cs.PeerCertificates[0])
}

func peerIn(cert *x509.Certificate) (Peer, error) {
	id, err := identity.IDOf(cert)
	if err != nil {
		return Peer{}, fmt.Errorf("certificate of a node: %w", err)
	}
	p := Peer{Node: cert.Subject.CommonName}
	var ok bool
	if p.ClusterID, ok = strings.CutSuffix(id.Domain(), ".consul"); !ok {
		return Peer{}, fmt.Errorf("certificate of a node: %s is of no cluster", id)
	}
	switch id := id.(type) {
	case identity.AgentID:
		p.Role, p.Datacenter, p.NodeID = RoleAgent, id.Datacenter, id.Node
	case identity.ServerNodeID:
		p.Role, p.Datacenter, p.NodeID = RoleServer, id.Datacenter, id.Node
	default:
		return Peer{}, fmt.Errorf("certificate of a node: %s names no node", id)
	}
	return p, nil
}

// id is the name that a certificate of the peer carries.
func (p Peer) id() (identity.ID, error) {
	if p.Node == "" || len(p.Node) > 128 || !printable(p.Node) {
		return nil, fmt.Errorf("node name %q: 1 to 128 printable characters are allowed", clip(p.Node))
	}
	if len(p.NodeID) > 128 || len(p.Datacenter) > 128 {
		return nil, errors.New("node ID and datacenter have at most 128 bytes")
	}
	var id identity.ID
	switch p.Role {
	case RoleServer:
		id = identity.ServerNodeID{TrustDomain: trustDomain(p.ClusterID), Datacenter: p.Datacenter, Node: p.NodeID}
	case RoleAgent:
		id = identity.AgentID{TrustDomain: trustDomain(p.ClusterID), Datacenter: p.Datacenter, Node: p.NodeID}
	default:
		return nil, fmt.Errorf("role %q is unknown", p.Role)
	}
	return id, id.Validate()
}

func printable(s string) bool {
	for _, r := range s {
		if r < ' ' || r == 0x7f || r == '\uFFFD' {
			return false
		}
	}
	return true
}

// matches tells whether the peer is the one that is wanted, where fields that are
// empty in want do not matter.
func (p Peer) matches(want Peer) error {
	for _, f := range []struct{ noun, is, want string }{
		{"role", string(p.Role), string(want.Role)},
		{"cluster", p.ClusterID, want.ClusterID},
		{"datacenter", p.Datacenter, want.Datacenter},
		{"node ID", p.NodeID, want.NodeID},
		{"node", p.Node, want.Node},
	} {
		if f.want != "" && f.is != f.want {
			return fmt.Errorf("%s: its %s is %q, %q was expected", p, f.noun, f.is, f.want)
		}
	}
	return nil
}
