package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"time"
)

// haproxy is a pair of HAProxy processes in TCP mode, as on two hosts: one for
// the client's side, one for the server's; with tls, mutual TLS 1.3 between them.
type haproxy struct{ tls bool }

func (h *haproxy) name() string {
	if h.tls {
		return "haproxy-tls"
	}
	return "haproxy-plain"
}

func (h *haproxy) start(ctx context.Context, backend string) (*instance, error) {
	bin, err := exec.LookPath("haproxy")
	if err != nil {
		return nil, fmt.Errorf("not installed (Debian package haproxy)")
	}
	dir, err := os.MkdirTemp("", "meshbench-haproxy-")
	if err != nil {
		return nil, err
	}
	bind, server := "", ""
	if h.tls {
		pemFile := filepath.Join(dir, "pair.pem")
		if err := writePair(pemFile); err != nil {
			return nil, err
		}
		const v = " ssl ssl-min-ver TLSv1.3 verify required"
		bind = v + " crt " + pemFile + " ca-file " + pemFile
		server = v + " crt " + pemFile + " ca-file " + pemFile + " verifyhost meshbench"
	}
	front, far := freeAddr(), freeAddr()
	var procs []*exec.Cmd
	stop := func() {
		for _, p := range procs {
			_ = p.Process.Kill()
			_ = p.Wait()
		}
		_ = os.RemoveAll(dir)
	}
	for name, side := range map[string][2]string{
		"server": {far + bind, backend},
		"client": {front, far + server},
	} {
		conf := filepath.Join(dir, name+".cfg")
		text := fmt.Sprintf("global\n  maxconn 8000\n  nbthread 2\ndefaults\n  mode tcp\n  timeout connect 5s\n  timeout client 1h\n  timeout server 1h\n"+
			"listen l\n  bind %s\n  server s %s\n", side[0], side[1])
		if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
			stop()
			return nil, err
		}
		p := exec.CommandContext(ctx, bin, "-db", "-q", "-f", conf) //nolint:gosec // found by LookPath
		p.Stderr = os.Stderr
		if err := p.Start(); err != nil {
			stop()
			return nil, err
		}
		procs = append(procs, p)
	}
	if err := waitFor(ctx, front); err != nil {
		stop()
		return nil, err
	}
	return &instance{addr: front, pids: []int{procs[0].Process.Pid, procs[1].Process.Pid}, stop: stop}, nil
}

// writePair writes a self-signed P-256 certificate and its key, good for both ends.
func writePair(path string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "meshbench"}, DNSNames: []string{"meshbench"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, IsCA: true, BasicConstraintsValid: true,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		return err
	}
	pk, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	out := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	out = append(out, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pk})...)
	return os.WriteFile(path, out, 0o600)
}

// freeAddr is a loopback address that nobody listens on now.
func freeAddr() string {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "127.0.0.1:0"
	}
	defer ln.Close()
	return ln.Addr().String()
}

// waitFor waits until an exchange with the backend succeeds through addr.
func waitFor(ctx context.Context, addr string) error {
	deadline := time.Now().Add(20 * time.Second)
	for {
		c, err := dial(ctx, addr)
		if err == nil {
			err = exchange(c, request(1), make([]byte, 1))
			c.Close()
		}
		if err == nil {
			return nil
		}
		if time.Now().After(deadline) || ctx.Err() != nil {
			return fmt.Errorf("%s does not answer: %w", addr, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}
