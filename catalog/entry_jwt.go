package catalog

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"
)

// JWTProvider says how tokens of end users are verified that one issuer signs.
type JWTProvider struct {
	EntryHead
	JSONWebKeySet *JSONWebKeySet `json:",omitempty"`
	Issuer        string         `json:",omitempty"`
	Audiences     []string       `json:",omitempty"`
	// Locations are where requests carry the token; without any, where is usual.
	Locations        []*JWTLocation  `json:",omitempty"`
	Forwarding       *JWTForwarding  `json:",omitempty"`
	ClockSkewSeconds int             `json:",omitempty"` // 30
	CacheConfig      *JWTCacheConfig `json:",omitempty"`
}

// JSONWebKeySet is where the keys of the issuer are; one of the two.
type JSONWebKeySet struct {
	Local  *LocalJWKS  `json:",omitempty"`
	Remote *RemoteJWKS `json:",omitempty"`
}

// LocalJWKS holds the keys, in base64, or names a file that does.
type LocalJWKS struct {
	JWKS     string `json:",omitempty"`
	Filename string `json:",omitempty"`
}

// RemoteJWKS is a server that has the keys.
type RemoteJWKS struct {
	URI                 string           `json:",omitempty"`
	RequestTimeoutMs    int              `json:",omitempty"`
	CacheDuration       time.Duration    `json:",omitempty"`
	FetchAsynchronously bool             `json:",omitempty"`
	UseSNI              bool             `json:",omitempty"`
	RetryPolicy         *JWKSRetryPolicy `json:",omitempty"`
	JWKSCluster         *JWKSCluster     `json:",omitempty"`
}

// JWKSCluster says how the server with the keys is reached.
type JWKSCluster struct {
	DiscoveryType   string              `json:",omitempty"`
	TLSCertificates *JWKSTLSCertificate `json:",omitempty"`
	ConnectTimeout  time.Duration       `json:",omitempty"`
}

// JWKSTLSCertificate is whom to trust as that server; one of the two.
type JWKSTLSCertificate struct {
	CaCertificateProviderInstance *JWKSTLSCertProviderInstance `json:",omitempty"`
	TrustedCA                     *JWKSTLSCertTrustedCA        `json:",omitempty"`
}

// JWKSTLSCertProviderInstance is carried for compatibility.
type JWKSTLSCertProviderInstance struct {
	InstanceName    string `json:",omitempty"`
	CertificateName string `json:",omitempty"`
}

// JWKSTLSCertTrustedCA is a certificate, in one of four ways.
type JWKSTLSCertTrustedCA struct {
	Filename            string `json:",omitempty"`
	EnvironmentVariable string `json:",omitempty"`
	InlineString        string `json:",omitempty"`
	InlineBytes         string `json:",omitempty"` // base64
}

// JWKSRetryPolicy is for fetching keys.
type JWKSRetryPolicy struct {
	NumRetries         int                 `json:",omitempty"`
	RetryPolicyBackOff *RetryPolicyBackOff `json:",omitempty"`
}

// RetryPolicyBackOff is the pause between attempts.
type RetryPolicyBackOff struct {
	BaseInterval time.Duration `json:",omitempty"`
	MaxInterval  time.Duration `json:",omitempty"`
}

// JWTLocation is one place of a token; one of the three.
type JWTLocation struct {
	Header     *JWTLocationHeader     `json:",omitempty"`
	QueryParam *JWTLocationQueryParam `json:",omitempty"`
	Cookie     *JWTLocationCookie     `json:",omitempty"`
}

// JWTLocationHeader is a token in a header, after ValuePrefix.
type JWTLocationHeader struct {
	Name        string `json:",omitempty"`
	ValuePrefix string `json:",omitempty"`
	Forward     bool   `json:",omitempty"`
}

// JWTLocationQueryParam is a token in a query parameter.
type JWTLocationQueryParam struct {
	Name string `json:",omitempty"`
}

// JWTLocationCookie is a token in a cookie.
type JWTLocationCookie struct {
	Name string `json:",omitempty"`
}

// JWTForwarding hands what was verified on to the service.
type JWTForwarding struct {
	HeaderName              string `json:",omitempty"`
	PadForwardPayloadHeader bool   `json:",omitempty"`
}

// JWTCacheConfig bounds how many verdicts are kept.
type JWTCacheConfig struct {
	Size int `json:",omitempty"`
}

// EntryKind implements ConfigEntry.
func (*JWTProvider) EntryKind() string { return KindJWTProvider }

// Normalize implements ConfigEntry.
func (e *JWTProvider) Normalize() {
	if e.ClockSkewSeconds == 0 {
		e.ClockSkewSeconds = 30
	}
}

// Validate implements ConfigEntry.
func (e *JWTProvider) Validate() error {
	if err := validEntryName(e.Name); err != nil {
		return err
	}
	if err := e.JSONWebKeySet.validate(); err != nil {
		return err
	}
	for i, l := range e.Locations {
		at := fmt.Sprintf("Locations[%d]", i)
		if l == nil || countSet(l.Header != nil, l.QueryParam != nil, l.Cookie != nil) != 1 {
			return Invalidf("%s: must set exactly one of: JWT location header, query param or cookie", at)
		}
		if (l.Header != nil && l.Header.Name == "") || (l.QueryParam != nil && l.QueryParam.Name == "") || (l.Cookie != nil && l.Cookie.Name == "") {
			return Invalidf("%s: Name is required", at)
		}
	}
	if e.Forwarding != nil && e.Forwarding.HeaderName == "" {
		return Invalidf("Header name required for forwarding config")
	}
	if e.ClockSkewSeconds < 0 {
		return Invalidf("ClockSkewSeconds must not be negative, it is %d", e.ClockSkewSeconds)
	}
	if e.CacheConfig != nil && e.CacheConfig.Size < 0 {
		return Invalidf("CacheConfig.Size must not be negative, it is %d", e.CacheConfig.Size)
	}
	return nil
}

func (k *JSONWebKeySet) validate() error {
	switch {
	case k == nil:
		return Invalidf("JSONWebKeySet is required")
	case (k.Local == nil) == (k.Remote == nil):
		return Invalidf("must specify exactly one of Local or Remote JSON Web key set")
	case k.Remote != nil:
		return k.Remote.validate()
	}
	if (k.Local.JWKS == "") == (k.Local.Filename == "") {
		return Invalidf("must specify exactly one of String or filename for local keyset")
	}
	if k.Local.JWKS == "" {
		return nil
	}
	b, err := base64.StdEncoding.DecodeString(k.Local.JWKS)
	if err != nil {
		return Invalidf("JWKS must be valid base64 encoded string")
	}
	if !json.Valid(b) {
		return Invalidf("JWKS is not JSON under its base64")
	}
	return nil
}

func (r *RemoteJWKS) validate() error {
	if r.URI == "" {
		return Invalidf("Remote JWKS URI is required")
	}
	u, err := url.Parse(r.URI)
	if err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") {
		return Invalidf("Remote JWKS URI is invalid: %q is no http or https URL", r.URI)
	}
	if r.RequestTimeoutMs < 0 || r.CacheDuration < 0 {
		return Invalidf("Remote JWKS: RequestTimeoutMs and CacheDuration must not be negative")
	}
	if p := r.RetryPolicy; p != nil {
		if p.NumRetries < 0 {
			return Invalidf("Remote JWKS: RetryPolicy.NumRetries must not be negative")
		}
		if b := p.RetryPolicyBackOff; b != nil && (b.BaseInterval < 0 || (b.MaxInterval != 0 && b.MaxInterval < b.BaseInterval)) {
			return Invalidf("Remote JWKS: retry policy backoff's MaxInterval should be greater or equal to BaseInterval")
		}
	}
	return r.JWKSCluster.validate()
}

var jwksDiscoveryTypes = []string{"", "STRICT_DNS", "STATIC", "LOGICAL_DNS", "EDS", "ORIGINAL_DST"}

func (c *JWKSCluster) validate() error {
	if c == nil {
		return nil
	}
	if !slices.Contains(jwksDiscoveryTypes, c.DiscoveryType) {
		return Invalidf("unsupported jwks cluster discovery type: %q, want one of %s", c.DiscoveryType, strings.Join(jwksDiscoveryTypes[1:], ", "))
	}
	if c.ConnectTimeout < 0 {
		return Invalidf("JWKSCluster.ConnectTimeout must not be negative")
	}
	t := c.TLSCertificates
	if t == nil {
		return nil
	}
	if (t.CaCertificateProviderInstance == nil) == (t.TrustedCA == nil) {
		return Invalidf("must specify exactly one of: CaCertificateProviderInstance or TrustedCA for JKWS' TLSCertificates")
	}
	if ca := t.TrustedCA; ca != nil && countSet(ca.Filename != "", ca.EnvironmentVariable != "", ca.InlineString != "", ca.InlineBytes != "") != 1 {
		return Invalidf("must specify exactly one of: Filename, EnvironmentVariable, InlineString or InlineBytes for JWKS' TrustedCA")
	}
	return nil
}
