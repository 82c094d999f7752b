package catalog

import "time"

// Root is a certificate authority that the mesh trusts.
type Root struct {
	ID                  string // fingerprint: lower-case hex with colons
	Name                string
	SerialNumber        uint64
	SigningKeyID        string // hex with colons; of the key that signs leaves under this root
	ExternalTrustDomain string // UUID
	NotBefore           time.Time
	NotAfter            time.Time
	RootCert            string   // PEM
	IntermediateCerts   []string // PEM, to be sent after a leaf
	Active              bool     // signs new leaves; exactly one root is active
	PrivateKeyType      string   // "ec" or "rsa"
	PrivateKeyBits      int
	// SealedKey is the signing key, encrypted under the cluster's seal. It is
	// stored, and never leaves the servers: views and answers carry it empty.
	SealedKey    []byte
	RotatedOutAt time.Time
	// LeafTTL is the longest life that a leaf under this root was given: how long
	// the root has to be trusted after it was rotated out hangs on it.
	LeafTTL time.Duration
	RaftIndex
}

// TrustDomain is the SPIFFE trust domain of a cluster: "<uuid>.consul".
func TrustDomain(clusterID string) string { return clusterID + ".consul" }

// CAConfig configures the certificate authority.
type CAConfig struct {
	ClusterID                string // UUID of the trust domain; made once, never changed
	Provider                 string // "consul": the built-in one
	Config                   map[string]any
	ForceWithoutCrossSigning bool
	RaftIndex
}

// Leaf is an issued certificate as the API shows it.
type Leaf struct {
	SerialNumber string // hex with colons
	CertPEM      string // leaf, then intermediates
	Service      Name   // of a service's certificate
	ServiceURI   string
	Agent        string // node, of an agent's certificate
	AgentURI     string
	ValidAfter   time.Time
	ValidBefore  time.Time
	CreateIndex  uint64
	ModifyIndex  uint64
}
