package checks

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"
	"path/filepath"
)

// TLSFiles is what checks over TLS show of this host, and whom they trust.
type TLSFiles struct {
	// CertFile and KeyFile are read anew for each check; empty: nothing is shown.
	CertFile, KeyFile string
	// CAFile and CAPath name authorities, a file and a folder of them, that are read once.
	// Both empty: those of the system.
	CAFile, CAPath string
	// ServerName is what services must show where a check does not say; empty: the host of
	// the check.
	ServerName string
}

// Config is that of checks. It is refused when a file cannot be used.
func (f TLSFiles) Config() (*tls.Config, error) {
	c := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: f.ServerName}
	if f.CertFile != "" || f.KeyFile != "" {
		load := func() (*tls.Certificate, error) {
			cert, err := tls.LoadX509KeyPair(f.CertFile, f.KeyFile)
			if err != nil {
				return nil, fmt.Errorf("the certificate %s with the key %s cannot be used: %w", f.CertFile, f.KeyFile, err)
			}
			return &cert, nil
		}
		if _, err := load(); err != nil {
			return nil, err
		}
		c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return load() }
	}
	names, err := f.authorities()
	if err != nil || len(names) == 0 {
		return c, err
	}
	c.RootCAs = x509.NewCertPool()
	for _, name := range names {
		pem, err := os.ReadFile(name)
		if err != nil {
			return nil, err
		}
		if !c.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("there is no certificate of an authority in %s", name)
		}
	}
	return c, nil
}

func (f TLSFiles) authorities() ([]string, error) {
	var out []string
	if f.CAFile != "" {
		out = append(out, f.CAFile)
	}
	if f.CAPath == "" {
		return out, nil
	}
	entries, err := os.ReadDir(f.CAPath)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		if !e.IsDir() {
			out = append(out, filepath.Join(f.CAPath, e.Name()))
		}
	}
	return out, nil
}
