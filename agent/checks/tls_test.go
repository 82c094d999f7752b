package checks

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/weftmesh/weft/catalog"
)

// selfSigned writes a certificate that is its own authority.
func selfSigned(t *testing.T, dir, name string) (certFile, keyFile string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	certFile, keyFile = filepath.Join(dir, name+".pem"), filepath.Join(dir, name+"-key.pem")
	for file, block := range map[string]*pem.Block{certFile: {Type: "CERTIFICATE", Bytes: der}, keyFile: {Type: "PRIVATE KEY", Bytes: keyDER}} {
		if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return certFile, keyFile
}

// TestChecksShowACertificate: with files, checks over TLS show this host's certificate and
// trust its authorities; without, a service that demands one refuses them.
func TestChecksShowACertificate(t *testing.T) {
	dir := t.TempDir()
	serverCert, serverKey := selfSigned(t, dir, "app.example")
	cert, key := selfSigned(t, dir, "agent.example")
	pair, err := tls.LoadX509KeyPair(serverCert, serverKey)
	if err != nil {
		t.Fatal(err)
	}
	clients := x509.NewCertPool()
	text, err := os.ReadFile(cert)
	if err != nil {
		t.Fatal(err)
	}
	clients.AppendCertsFromPEM(text)
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	srv.TLS = &tls.Config{Certificates: []tls.Certificate{pair}, ClientCAs: clients, ClientAuth: tls.RequireAndVerifyClientCert}
	srv.StartTLS()
	defer srv.Close()
	addr := srv.Listener.Addr().String()
	files := TLSFiles{CertFile: cert, KeyFile: key, CAFile: serverCert}
	for _, c := range []struct {
		name  string
		files TLSFiles
		skip  bool
		want  catalog.Status
	}{
		{"with all", files, false, catalog.StatusPassing},
		{"a folder of authorities", TLSFiles{CertFile: cert, KeyFile: key, CAPath: folderWith(t, serverCert)}, false, catalog.StatusPassing},
		{"the name of the service", TLSFiles{CertFile: cert, KeyFile: key, CAFile: serverCert, ServerName: "app.example"}, false, catalog.StatusPassing},
		{"another name", TLSFiles{CertFile: cert, KeyFile: key, CAFile: serverCert, ServerName: "other.example"}, false, catalog.StatusCritical},
		{"no certificate", TLSFiles{CAFile: serverCert}, false, catalog.StatusCritical},
		{"no authority", TLSFiles{CertFile: cert, KeyFile: key}, false, catalog.StatusCritical},
		{"no authority, not verified", TLSFiles{CertFile: cert, KeyFile: key}, true, catalog.StatusPassing},
	} {
		cfg, err := c.files.Config()
		if err != nil {
			t.Fatal(c.name, err)
		}
		for _, def := range []*catalog.CheckDefinition{{HTTP: "https://" + addr}, {H2PING: addr, H2PingUseTLS: true}} {
			if def.H2PING != "" && c.want == catalog.StatusPassing {
				continue // this server speaks HTTP/1.1 alone
			}
			def.Interval, def.TLSSkipVerify = time.Hour, c.skip
			var rec recorder
			r, err := New(def, Options{Report: rec.report, TLS: cfg})
			if err != nil {
				t.Fatal(err)
			}
			r.(*periodic).once(t.Context())
			if status, output := rec.take(); status != c.want {
				t.Errorf("%s: %s, %s", c.name, status, output)
			}
		}
	}
}

func folderWith(t *testing.T, file string) string {
	t.Helper()
	dir := t.TempDir()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "ca.pem"), text, 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

// TestTLSFilesAreRead: files that cannot be used are refused by name.
func TestTLSFilesAreRead(t *testing.T) {
	dir := t.TempDir()
	cert, key := selfSigned(t, dir, "agent.example")
	for _, f := range []TLSFiles{
		{CertFile: cert}, {CertFile: cert, KeyFile: cert}, {CAFile: key}, {CAFile: filepath.Join(dir, "none")}, {CAPath: filepath.Join(dir, "none")}, {CAPath: dir},
	} {
		if _, err := f.Config(); err == nil || !strings.Contains(err.Error(), dir) {
			t.Errorf("%+v: %v", f, err)
		}
	}
}
