package httpapi

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// writeCert writes a certificate, valid for both ends on loopback, that signs itself,
// and its key. It is its own authority.
func writeCert(t *testing.T, dir, name string) (certFile, keyFile string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		DNSNames:    []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	certFile, keyFile = filepath.Join(dir, name+".pem"), filepath.Join(dir, name+"-key.pem")
	for file, block := range map[string]*pem.Block{certFile: {Type: "CERTIFICATE", Bytes: der}, keyFile: {Type: "EC PRIVATE KEY", Bytes: keyDER}} {
		if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return certFile, keyFile
}

// tlsClient trusts the certificates of caFiles, and shows a certificate if given one.
func tlsClient(t *testing.T, caFiles []string, show ...string) *http.Client {
	t.Helper()
	cfg := &tls.Config{RootCAs: x509.NewCertPool(), MinVersion: tls.VersionTLS12}
	for _, f := range caFiles {
		text, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		cfg.RootCAs.AppendCertsFromPEM(text)
	}
	if len(show) == 2 {
		cert, err := tls.LoadX509KeyPair(show[0], show[1])
		if err != nil {
			t.Fatal(err)
		}
		cfg.Certificates = []tls.Certificate{cert}
	}
	tr := &http.Transport{TLSClientConfig: cfg, ForceAttemptHTTP2: true, DisableKeepAlives: true}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: 30 * time.Second}
}

func TestHTTPS(t *testing.T) {
	dir := t.TempDir()
	cert, key := writeCert(t, dir, "server")
	clientCert, clientKey := writeCert(t, dir, "client")
	r := newRig(t, func(c *Config) {
		c.TLSAddrs = []string{"127.0.0.1:0", "127.0.0.1:0"}
		c.TLS = TLSFiles{CertFile: cert, KeyFile: key, CAFile: clientCert, VerifyIncoming: true}
	})
	r.run()
	url := "https://" + r.api.TLSAddrs()[1].String() + "/v1/catalog/datacenters"
	resp, err := tlsClient(t, []string{cert}, clientCert, clientKey).Get(url)
	if err != nil {
		t.Fatal(err)
	}
	body := readAll(t, resp.Body)
	_ = resp.Body.Close()
	if body != `["dc1"]` || resp.ProtoMajor != 2 {
		t.Errorf("HTTP/%d: %s", resp.ProtoMajor, body)
	}
	for what, c := range map[string]*http.Client{
		"no certificate": tlsClient(t, []string{cert}), "one of nobody's": tlsClient(t, []string{cert}, cert, key),
	} {
		if resp, err := c.Get(url); err == nil {
			_ = resp.Body.Close()
			t.Errorf("a client with %s was served", what)
		}
	}

	// A renewed certificate is taken; a broken one is not.
	renewed, renewedKey := writeCert(t, t.TempDir(), "server")
	copyFile(t, renewed, cert)
	copyFile(t, renewedKey, key)
	c := tlsClient(t, []string{renewed}, clientCert, clientKey)
	deadline := time.Now().Add(30 * time.Second)
	for {
		resp, err := c.Get(url)
		if err == nil {
			_ = resp.Body.Close()
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the new certificate is not shown: ", err)
		}
		time.Sleep(20 * time.Millisecond) // files are looked at once a second
	}
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	text, err := os.ReadFile(from)
	if err == nil {
		err = os.WriteFile(to, text, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func TestTLSRefusals(t *testing.T) {
	dir := t.TempDir()
	cert, key := writeCert(t, dir, "server")
	_, other := writeCert(t, dir, "other")
	good := TLSFiles{CertFile: cert, KeyFile: key}
	for words, edit := range map[string]func(*TLSFiles){
		"no such file":                   func(f *TLSFiles) { f.CertFile = filepath.Join(dir, "none") },
		"private key does not match":     func(f *TLSFiles) { f.KeyFile = other },
		"tls_min_version":                func(f *TLSFiles) { f.MinVersion = "TLSv1_0" },
		"no secure cipher suite":         func(f *TLSFiles) { f.CipherSuites = "TLS_RSA_WITH_RC4_128_SHA" },
		"no authority is named":          func(f *TLSFiles) { f.VerifyIncoming = true },
		"no certificate of an authority": func(f *TLSFiles) { f.VerifyIncoming, f.CAFile = true, key },
		"none2: no such file":            func(f *TLSFiles) { f.VerifyIncoming, f.CAPath = true, filepath.Join(dir, "none2") },
	} {
		f := good
		edit(&f)
		if _, err := newTLS(f, nil); err == nil || !strings.Contains(err.Error(), words) {
			t.Errorf("%v, want %q", err, words)
		}
	}
	f := good
	f.MinVersion, f.CipherSuites = "TLSv1_3", "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256"
	if c, err := newTLS(f, nil); err != nil || c.MinVersion != tls.VersionTLS13 || len(c.CipherSuites) != 2 {
		t.Error(c, err)
	}
}

// Whoever sends slowly is cut off: in a handshake, a header, or a body.
func TestSlowSendersAreCutOff(t *testing.T) {
	dir := t.TempDir()
	cert, key := writeCert(t, dir, "server")
	r := newRig(t, func(c *Config) {
		c.Addrs, c.TLSAddrs = []string{"127.0.0.1:0"}, []string{"127.0.0.1:0"}
		c.TLS = TLSFiles{CertFile: cert, KeyFile: key}
		c.HandshakeTimeout, c.HeaderTimeout, c.BodyTimeout = 100*time.Millisecond, 100*time.Millisecond, 100*time.Millisecond
	})
	r.run()
	plain, secure := r.api.Addrs()[0].String(), r.api.TLSAddrs()[0].String()
	for what, c := range map[string]struct{ addr, sends, answer string }{
		"handshake": {secure, "\x16\x03\x01", ""},
		"header":    {plain, "GET /v1/agent/self HTTP/1.1\r\nHost: a\r\nX-Slow: ", ""},
		"body":      {plain, "PUT /v1/kv/a HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\nabc", "HTTP/1.1 4"},
	} {
		conn, err := net.Dial("tcp", c.addr)
		if err != nil {
			t.Fatal(err)
		}
		_ = conn.SetDeadline(time.Now().Add(30 * time.Second))
		if _, err := conn.Write([]byte(c.sends)); err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(bufio.NewReader(conn))
		if ne, ok := err.(net.Error); ok && ne.Timeout() { //nolint:errorlint // as net returns it
			t.Errorf("%s: the connection stays open", what)
		}
		if !strings.HasPrefix(string(got), c.answer) {
			t.Errorf("%s: %.60q", what, got)
		}
		_ = conn.Close()
	}
}

func TestHeadersAreBounded(t *testing.T) {
	r := newRig(t, func(c *Config) { c.Addrs, c.MaxHeaderBytes = []string{"127.0.0.1:0"}, 8<<10 })
	r.run()
	req, err := http.NewRequest(http.MethodGet, "http://"+r.api.Addrs()[0].String()+"/v1/agent/self", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-Large", strings.Repeat("x", 32<<10))
	c := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 30 * time.Second}
	resp, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusRequestHeaderFieldsTooLarge {
		t.Error(resp.Status)
	}
}

func TestProfiles(t *testing.T) {
	for _, on := range []bool{false, true} {
		r := newRig(t, func(c *Config) { c.Addrs, c.EnableDebug = []string{"127.0.0.1:0"}, on })
		r.run()
		c := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 30 * time.Second}
		for path, want := range map[string]int{"": 200, "cmdline": 200, "heap?debug=1": 200, "profile?seconds=1": 200, "none": 404} {
			if !on {
				want = http.StatusUnauthorized
			}
			resp, err := c.Get("http://" + r.api.Addrs()[0].String() + "/debug/pprof/" + path)
			if err != nil {
				t.Fatal(err)
			}
			text := readAll(t, resp.Body)
			_ = resp.Body.Close()
			if resp.StatusCode != want || text == "" {
				t.Errorf("enable_debug %v: %q: %s, %d bytes", on, path, resp.Status, len(text))
			}
		}
	}
}
