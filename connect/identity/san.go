package identity

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
)

var oidSubjectAltName = asn1.ObjectIdentifier{2, 5, 29, 17}

// ErrNoURI means that a certificate or request holds no URI, ErrManyURIs that it
// holds more than one.
var (
	ErrNoURI    = errors.New("there is no URI in it")
	ErrManyURIs = errors.New("there is more than one URI in it")
)

// IDOf is the SPIFFE ID of a certificate that holds exactly one URI. It proves
// nothing: see Bundle.
func IDOf(cert *x509.Certificate) (ID, error) { return idIn(cert.Extensions) }

// IDOfCSR is the SPIFFE ID that a request asks for, of exactly one URI.
func IDOfCSR(req *x509.CertificateRequest) (ID, error) { return idIn(req.Extensions) }

func idIn(exts []pkix.Extension) (ID, error) {
	uris, err := rawURIs(exts)
	switch {
	case err != nil:
		return nil, err
	case len(uris) == 0:
		return nil, ErrNoURI
	case len(uris) > 1:
		return nil, ErrManyURIs
	}
	return Parse(uris[0])
}

// rawURIs reads the URIs of the subject alternative names byte for byte. The
// parsed ones of crypto/x509 have been through net/url, which folds spellings
// together (upper-case schemes, empty fragments) that we must tell apart.
func rawURIs(exts []pkix.Extension) ([]string, error) {
	const tagURI = 6 // GeneralName uniformResourceIdentifier
	var uris []string
	for _, e := range exts {
		if !e.Id.Equal(oidSubjectAltName) {
			continue
		}
		var seq asn1.RawValue
		rest, err := asn1.Unmarshal(e.Value, &seq)
		if err != nil || len(rest) > 0 || !seq.IsCompound || seq.Tag != asn1.TagSequence || seq.Class != asn1.ClassUniversal {
			return nil, errors.New("its alternative names cannot be parsed")
		}
		for rest = seq.Bytes; len(rest) > 0; {
			var name asn1.RawValue
			if rest, err = asn1.Unmarshal(rest, &name); err != nil {
				return nil, fmt.Errorf("its alternative names cannot be parsed: %w", err)
			}
			if name.Class == asn1.ClassContextSpecific && name.Tag == tagURI {
				uris = append(uris, string(name.Bytes))
			}
		}
	}
	return uris, nil
}
