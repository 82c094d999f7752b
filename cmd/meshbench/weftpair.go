package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/connect"
)

// weftPair is a pair of weft's proxies in processes of their own, as on two hosts, with
// one log line for each connection.
type weftPair struct{ binary string }

func (*weftPair) name() string { return "weft" }

const trustDomain = "6d657368-6265-4e63-a800-000000000000.consul"

func (w *weftPair) start(ctx context.Context, backend string) (*instance, error) {
	dir, err := os.MkdirTemp("", "meshbench-weft-")
	if err != nil {
		return nil, err
	}
	in := &instance{addr: freeAddr(), far: freeAddr(), pem: filepath.Join(dir, "web.pem")}
	var procs []*exec.Cmd
	in.stop = func() {
		for _, c := range procs {
			_ = c.Process.Signal(os.Interrupt)
			_ = c.Wait()
		}
		_ = os.RemoveAll(dir)
	}
	root, err := writeLeaves(dir, "web", "db")
	if err != nil {
		in.stop()
		return nil, err
	}
	base := connect.Snapshot{Index: 1, Datacenter: "dc1", TrustDomain: trustDomain, Roots: []string{root}, Default: catalog.ActionDeny}
	db, web := base, base
	db.Service, db.Inbound, db.Local = "db", in.far, backend
	db.Intentions = catalog.Intentions{{SourceName: "web", DestinationName: "db", Action: catalog.ActionAllow}}
	web.Service = "web"
	web.Upstreams = []connect.Upstream{{Name: "db", Listen: in.addr, Instances: []connect.Endpoint{{ID: "db", Addr: in.far}}}}
	for _, s := range []connect.Snapshot{db, web} {
		b, err := json.Marshal(s)
		file := filepath.Join(dir, s.Service+".json")
		if err == nil {
			err = os.WriteFile(file, b, 0o600)
		}
		c := exec.CommandContext(ctx, w.binary, "connect", "proxy", "-snapshot", file, "-key-file", filepath.Join(dir, s.Service+".pem")) //nolint:gosec // the binary under test
		c.Stderr = os.Stderr
		if err == nil {
			err = c.Start()
		}
		if err != nil {
			in.stop()
			return nil, err
		}
		procs = append(procs, c)
		in.pids = append(in.pids, c.Process.Pid)
	}
	if err := waitFor(ctx, in.addr); err != nil {
		in.stop()
		return nil, err
	}
	return in, nil
}

// writeLeaves makes an authority, which it returns, and a key file for each service.
func writeLeaves(dir string, services ...string) (root string, err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return "", err
	}
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "meshbench"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
		URIs: []*url.URL{{Scheme: "spiffe", Host: trustDomain}},
	}
	der, err := x509.CreateCertificate(rand.Reader, ca, ca, key.Public(), key)
	if err != nil {
		return "", err
	}
	for i, s := range services {
		mine, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return "", err
		}
		leaf, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
			SerialNumber: big.NewInt(int64(i) + 2), NotBefore: ca.NotBefore, NotAfter: ca.NotAfter,
			URIs:     []*url.URL{{Scheme: "spiffe", Host: trustDomain, Path: "/ns/default/dc/dc1/svc/" + s}},
			KeyUsage: x509.KeyUsageDigitalSignature, BasicConstraintsValid: true,
			ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
		}, ca, mine.Public(), key)
		if err != nil {
			return "", err
		}
		pk, err := x509.MarshalPKCS8PrivateKey(mine)
		if err != nil {
			return "", err
		}
		var b bytes.Buffer
		for _, block := range []*pem.Block{{Type: "PRIVATE KEY", Bytes: pk}, {Type: "CERTIFICATE", Bytes: leaf}} {
			if err := pem.Encode(&b, block); err != nil {
				return "", err
			}
		}
		if err := os.WriteFile(filepath.Join(dir, s+".pem"), b.Bytes(), 0o600); err != nil {
			return "", fmt.Errorf("key of %s: %w", s, err)
		}
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})), nil
}
