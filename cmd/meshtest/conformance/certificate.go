package conformance

import (
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"fmt"
	"math"
	"strings"
	"time"
)

// oidNames are the names that the recordings use.
var oidNames = map[string]string{
	"2.5.4.3": "CN", "1.3.6.1.5.5.7.3.1": "serverAuth", "1.3.6.1.5.5.7.3.2": "clientAuth",
}

func oidName(id asn1.ObjectIdentifier) string {
	if n, ok := oidNames[id.String()]; ok {
		return n
	}
	return id.String()
}

var keyUsages = []string{
	"digitalSignature", "contentCommitment", "keyEncipherment", "dataEncipherment",
	"keyAgreement", "keyCertSign", "cRLSign", "encipherOnly", "decipherOnly",
}

// describeCertificates says what can be compared of each certificate in a PEM text.
func describeCertificates(text string) (any, error) {
	out := []any{}
	for rest := []byte(text); ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			return valueOf(out), nil
		}
		if block.Type != "CERTIFICATE" {
			continue
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		info, err := describe(cert)
		if err != nil {
			return nil, err
		}
		out = append(out, info)
	}
}

func describe(cert *x509.Certificate) (map[string]any, error) {
	now := time.Now()
	uris, ips := []string{}, []string{}
	for _, u := range cert.URIs {
		uris = append(uris, u.String())
	}
	for _, ip := range cert.IPAddresses {
		ips = append(ips, ip.String())
	}
	info := map[string]any{
		"version": cert.Version, "issuer": nameText(cert.Issuer), "subject": nameText(cert.Subject),
		"key": keyText(cert), "signature": cert.SignatureAlgorithm.String(),
		"valid_hours": int(math.RoundToEven(cert.NotAfter.Sub(cert.NotBefore).Hours())),
		"valid_now":   !now.Before(cert.NotBefore) && !now.After(cert.NotAfter),
		"is_ca":       cert.IsCA, "san_uri": uris, "san_dns": append([]string{}, cert.DNSNames...), "san_ip": ips,
	}
	for _, e := range cert.Extensions {
		switch e.Id.String() {
		case "2.5.29.19":
			info["basic_critical"] = e.Critical
		case "2.5.29.17":
			info["san_critical"] = e.Critical
		case "2.5.29.14":
			info["has_ski"] = true
		case "2.5.29.35":
			info["has_aki"] = true
		case "2.5.29.15":
			usage := []string{}
			for i, name := range keyUsages {
				if cert.KeyUsage&(1<<i) != 0 {
					usage = append(usage, name)
				}
			}
			info["key_usage"] = usage
		case "2.5.29.37":
			var ids []asn1.ObjectIdentifier
			if _, err := asn1.Unmarshal(e.Value, &ids); err != nil {
				return nil, fmt.Errorf("extended key usage: %w", err)
			}
			names := []string{}
			for _, id := range ids {
				names = append(names, oidName(id))
			}
			info["ext_key_usage"] = names
		}
	}
	return info, nil
}

func nameText(n pkix.Name) string {
	var parts []string
	for _, a := range n.Names {
		parts = append(parts, fmt.Sprintf("%s=%v", oidName(a.Type), a.Value))
	}
	return strings.Join(parts, ",")
}

func keyText(cert *x509.Certificate) string {
	switch k := cert.PublicKey.(type) {
	case *ecdsa.PublicKey:
		return "EC " + k.Curve.Params().Name
	case *rsa.PublicKey:
		return fmt.Sprintf("RSA %d", k.N.BitLen())
	default:
		return cert.PublicKeyAlgorithm.String()
	}
}
