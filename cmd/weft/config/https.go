package config

import (
	"cmp"
	"time"
)

// HTTPS configures the HTTP API over TLS. What it leaves out tls.defaults says, or
// the former names at the top.
type HTTPS struct {
	Port             int           `key:"ports.https"`
	Addresses        string        `key:"addresses.https"`
	HandshakeTimeout time.Duration `key:"limits.https_handshake_timeout"`

	CAFile         string `key:"tls.https.ca_file"`
	CAPath         string `key:"tls.https.ca_path"`
	CertFile       string `key:"tls.https.cert_file"`
	KeyFile        string `key:"tls.https.key_file"`
	MinVersion     string `key:"tls.https.tls_min_version"`
	CipherSuites   string `key:"tls.https.tls_cipher_suites"`
	VerifyIncoming *bool  `key:"tls.https.verify_incoming"`

	Defaults TLSDefaults
	Former   FormerTLS
}

// TLSDefaults is what holds for every listener that does not say.
type TLSDefaults struct {
	CAFile         string `key:"tls.defaults.ca_file"`
	CAPath         string `key:"tls.defaults.ca_path"`
	CertFile       string `key:"tls.defaults.cert_file"`
	KeyFile        string `key:"tls.defaults.key_file"`
	MinVersion     string `key:"tls.defaults.tls_min_version"`
	CipherSuites   string `key:"tls.defaults.tls_cipher_suites"`
	VerifyIncoming *bool  `key:"tls.defaults.verify_incoming"`
}

// FormerTLS is the same in the words of old configurations.
type FormerTLS struct {
	CAFile              string `key:"ca_file"`
	CAPath              string `key:"ca_path"`
	CertFile            string `key:"cert_file"`
	KeyFile             string `key:"key_file"`
	MinVersion          string `key:"tls_min_version"`
	CipherSuites        string `key:"tls_cipher_suites"`
	VerifyIncoming      *bool  `key:"verify_incoming"`
	VerifyIncomingHTTPS *bool  `key:"verify_incoming_https"`
}

func httpsKeys() []Key {
	keys := []Key{
		{Name: "ports.https", Type: Int, Default: "-1", Flag: "https-port", Doc: "The port of the HTTP API over TLS; 8501 by custom. -1 switches it off. Needs a certificate."},
		{Name: "addresses.https", Type: String, Doc: "The addresses of the HTTP API over TLS, instead of client_addr."},
		{Name: "limits.https_handshake_timeout", Type: Duration, Default: "5s", Doc: "How long a TLS handshake of the HTTP API may take."},
	}
	for _, g := range []struct{ prefix, of, former string }{
		{"tls.defaults.", "of listeners that do not say", ""}, {"tls.https.", "of the HTTP API over TLS", ""}, {"", "", "Former name of tls.defaults."},
	} {
		for _, k := range []Key{
			{Name: "ca_file", Type: String, Doc: "A file of authorities whose certificates are trusted, PEM, "},
			{Name: "ca_path", Type: String, Doc: "A folder of such files, "},
			{Name: "cert_file", Type: String, Doc: "The certificate, with its intermediates, PEM, "},
			{Name: "key_file", Type: String, Doc: "The key of the certificate, PEM, "},
			{Name: "tls_min_version", Type: String, Doc: "The oldest version of TLS, TLSv1_2 or TLSv1_3, TLSv1_2 when it is not set, "},
			{Name: "tls_cipher_suites", Type: String, Doc: "The cipher suites of TLS 1.2 by name, separated by commas, Go's secure ones when it is not set, "},
			{Name: "verify_incoming", Type: Bool, Doc: "Whether clients must show a certificate of the authorities, "},
		} {
			k.Doc += g.of + "."
			if g.former != "" {
				k.Doc = g.former + k.Name + "."
			}
			k.Name = g.prefix + k.Name
			keys = append(keys, k)
		}
	}
	keys = append(keys, Key{Name: "verify_incoming_https", Type: Bool, Doc: "Former name of tls.https.verify_incoming."})
	return with(Effective, "", keys...)
}

// TLSFiles is what a listener needs to speak TLS.
type TLSFiles struct {
	CertFile       string
	KeyFile        string
	CAFile         string
	CAPath         string
	VerifyIncoming bool
	MinVersion     string
	CipherSuites   string
}

// HTTPSFiles is what the HTTP API over TLS uses.
func (c *Config) HTTPSFiles() TLSFiles {
	h := c.HTTPS
	d, f := h.Defaults, h.Former
	out := TLSFiles{
		CAFile: cmp.Or(h.CAFile, d.CAFile, f.CAFile), CAPath: cmp.Or(h.CAPath, d.CAPath, f.CAPath),
		CertFile: cmp.Or(h.CertFile, d.CertFile, f.CertFile), KeyFile: cmp.Or(h.KeyFile, d.KeyFile, f.KeyFile),
		MinVersion:   cmp.Or(h.MinVersion, d.MinVersion, f.MinVersion),
		CipherSuites: cmp.Or(h.CipherSuites, d.CipherSuites, f.CipherSuites),
	}
	if v := cmp.Or(h.VerifyIncoming, f.VerifyIncomingHTTPS, d.VerifyIncoming, f.VerifyIncoming); v != nil {
		out.VerifyIncoming = *v
	}
	return out
}

// HTTPSAddrs is where the HTTP API listens with TLS; none when its port is off.
func (c *Config) HTTPSAddrs() []Listener {
	if c.HTTPS.Port < 0 {
		return nil
	}
	out, err := c.httpsListeners()
	if err != nil {
		return nil // Load has refused it
	}
	return out
}

func (c *Config) httpsListeners() ([]Listener, error) {
	key, list := "client_addr", c.ClientAddr
	if c.HTTPS.Addresses != "" {
		key, list = "addresses.https", c.HTTPS.Addresses
	}
	all, err := c.listeners(key, list, c.HTTPS.Port)
	if err != nil {
		return nil, err
	}
	var out []Listener
	for _, l := range all {
		if l.Network == "tcp" { // a Unix socket in client_addr is for plain HTTP
			out = append(out, l)
		} else if key == "addresses.https" {
			return nil, c.problem(key, "%q: TLS is not spoken on Unix sockets, name an IP address", l)
		}
	}
	return out, nil
}

func (c *Config) validateHTTPS() error {
	if c.HTTPS.Port > 65535 {
		return c.problem("ports.https", "%d is not a port", c.HTTPS.Port)
	}
	if c.HTTPS.Port < 0 {
		return nil
	}
	if c.HTTPS.Port > 0 && c.HTTPS.Port == c.Ports.HTTP {
		return c.problem("ports.https", "%d is also the port of ports.http", c.HTTPS.Port)
	}
	if _, err := c.httpsListeners(); err != nil {
		return err
	}
	f := c.HTTPSFiles()
	switch {
	case f.CertFile == "" || f.KeyFile == "":
		return c.problem("ports.https", "needs tls.https.cert_file and tls.https.key_file (weft tls cert create makes them)")
	case f.VerifyIncoming && f.CAFile == "" && f.CAPath == "":
		return c.problem(cmp.Or(c.setOf("tls.https.verify_incoming", "verify_incoming_https", "tls.defaults.verify_incoming"), "verify_incoming"),
			"needs tls.https.ca_file or tls.https.ca_path: without authorities no client could be verified")
	case c.HTTPS.HandshakeTimeout <= 0:
		return c.problem("limits.https_handshake_timeout", "must be above zero")
	}
	return nil
}
