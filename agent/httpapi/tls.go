package httpapi

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
)

// TLSFiles names what the API needs to speak TLS. The files are read again when they
// change, so that a renewed certificate needs no restart.
type TLSFiles struct {
	CertFile string
	KeyFile  string
	// CAFile and CAPath hold the authorities of clients; CAPath is a folder.
	CAFile string
	CAPath string
	// VerifyIncoming demands a certificate of clients.
	VerifyIncoming bool
	MinVersion     string // "TLSv1_2" (default) or "TLSv1_3"
	CipherSuites   string // of TLS 1.2, by name, separated by commas; empty: Go's
}

// tlsSource keeps the configuration that the files make, and follows them.
type tlsSource struct {
	files  TLSFiles
	log    *slog.Logger
	base   *tls.Config
	mu     sync.Mutex
	held   *tls.Config
	stamp  string    // what the files looked like
	looked time.Time // when they were last looked at
}

// lookAgain is how often the files are looked at, at most.
const lookAgain = time.Second

// newTLS reads the files. A configuration that no client could use is refused.
func newTLS(files TLSFiles, log *slog.Logger) (*tls.Config, error) {
	base := &tls.Config{MinVersion: tls.VersionTLS12, NextProtos: []string{"h2", "http/1.1"}}
	switch files.MinVersion {
	case "", "TLSv1_2", "tls12":
	case "TLSv1_3", "tls13":
		base.MinVersion = tls.VersionTLS13
	default:
		return nil, fmt.Errorf("tls_min_version %q is neither TLSv1_2 nor TLSv1_3", files.MinVersion)
	}
	for _, name := range strings.FieldsFunc(files.CipherSuites, func(r rune) bool { return r == ',' || r == ' ' }) {
		at := slices.IndexFunc(tls.CipherSuites(), func(c *tls.CipherSuite) bool { return c.Name == name })
		if at < 0 {
			return nil, fmt.Errorf("tls_cipher_suites: %q is no secure cipher suite", name)
		}
		base.CipherSuites = append(base.CipherSuites, tls.CipherSuites()[at].ID)
	}
	s := &tlsSource{files: files, log: log, base: base}
	s.stamp = s.look()
	var err error
	if s.held, err = s.read(); err != nil {
		return nil, err
	}
	base.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) { return s.current(), nil }
	return base, nil
}

// CheckTLS refuses files from which no listener could be made.
func CheckTLS(files TLSFiles) error {
	_, err := newTLS(files, nil)
	return err
}

func (s *tlsSource) read() (*tls.Config, error) {
	cert, err := tls.LoadX509KeyPair(s.files.CertFile, s.files.KeyFile)
	if err != nil {
		return nil, fmt.Errorf("the certificate %s with the key %s cannot be used: %w", s.files.CertFile, s.files.KeyFile, err)
	}
	c := s.base.Clone()
	c.GetConfigForClient, c.Certificates = nil, []tls.Certificate{cert}
	if !s.files.VerifyIncoming {
		return c, nil
	}
	c.ClientAuth = tls.RequireAndVerifyClientCert
	c.ClientCAs, err = s.authorities()
	return c, err
}

func (s *tlsSource) authorities() (*x509.CertPool, error) {
	files, err := s.authorityFiles()
	if err != nil {
		return nil, err
	}
	pool, found := x509.NewCertPool(), false
	for _, name := range files {
		pem, err := os.ReadFile(name)
		if err != nil {
			return nil, err
		}
		found = pool.AppendCertsFromPEM(pem) || found
	}
	if !found {
		return nil, fmt.Errorf("there is no certificate of an authority in %s", strings.Join(files, " "))
	}
	return pool, nil
}

func (s *tlsSource) authorityFiles() ([]string, error) {
	var out []string
	if s.files.CAFile != "" {
		out = append(out, s.files.CAFile)
	}
	if s.files.CAPath != "" {
		entries, err := os.ReadDir(s.files.CAPath)
		if err != nil {
			return nil, err
		}
		for _, e := range entries {
			if !e.IsDir() {
				out = append(out, filepath.Join(s.files.CAPath, e.Name()))
			}
		}
	}
	if len(out) == 0 {
		return nil, errors.New("clients shall be verified, and no authority is named (ca_file, ca_path)")
	}
	return out, nil
}

// look tells the files apart from what they were.
func (s *tlsSource) look() string {
	names := []string{s.files.CertFile, s.files.KeyFile}
	if s.files.VerifyIncoming {
		cas, _ := s.authorityFiles() // what is wrong shows when they are read
		names = append(names, cas...)
	}
	var b strings.Builder
	for _, n := range names {
		if info, err := os.Stat(n); err == nil {
			fmt.Fprintf(&b, "%s %d %d\n", n, info.Size(), info.ModTime().UnixNano())
		}
	}
	return b.String()
}

// current is the configuration that the files make now. When they make none, because
// somebody is in the middle of replacing them, the last one stays.
func (s *tlsSource) current() *tls.Config {
	s.mu.Lock()
	defer s.mu.Unlock()
	if time.Since(s.looked) < lookAgain {
		return s.held
	}
	s.looked = time.Now()
	stamp := s.look()
	if stamp == s.stamp {
		return s.held
	}
	s.stamp = stamp
	c, err := s.read()
	if err != nil {
		s.log.Error("the new certificate of the HTTP API cannot be used; the old one stays", "err", err)
		return s.held
	}
	s.log.Info("the HTTP API has a new certificate", "file", s.files.CertFile)
	s.held = c
	return c
}
