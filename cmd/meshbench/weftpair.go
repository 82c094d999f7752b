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
	"strings"
	"time"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/connect"
)

// weftPair is a pair of weft's proxies in processes of their own, as on two hosts, with
// one log line for each connection.
type weftPair struct {
	binary   string // "" is this program, which runs proxies as an agent does
	label    string
	peers    int // instances of the destination, with a certificate and a tunnel each
	oneToOne bool
	short    bool // only its requests are of interest
}

func (w *weftPair) name() string { return w.label }

const trustDomain = "6d657368-6265-4e63-a800-000000000000.consul"

func (w *weftPair) start(ctx context.Context, backend string) (*instance, error) {
	dir, err := os.MkdirTemp("", "meshbench-weft-")
	if err != nil {
		return nil, err
	}
	in := &instance{front: front{addr: freeAddr()}, far: freeAddr(), pem: filepath.Join(dir, "web.pem"), short: w.short}
	var procs []*exec.Cmd
	in.stop = func() {
		for _, c := range procs {
			_ = c.Process.Signal(os.Interrupt)
			_ = c.Wait()
		}
		_ = os.RemoveAll(dir)
	}
	services := []string{"web"}
	for range w.peers {
		services = append(services, "db")
	}
	root, err := writeLeaves(dir, services...)
	if err != nil {
		in.stop()
		return nil, err
	}
	base := connect.Snapshot{Index: 1, Datacenter: "dc1", TrustDomain: trustDomain, Roots: []string{root}, Default: catalog.ActionDeny}
	web := base
	web.Service = "web"
	up := connect.Upstream{Name: "db", Listen: in.addr}
	var files []string
	for i := range w.peers {
		db := base
		db.Service, db.Inbound, db.Local = "db", in.far, backend
		if i > 0 {
			db.Inbound = freeAddr()
		}
		db.Intentions = catalog.Intentions{{SourceName: "web", DestinationName: "db", Action: catalog.ActionAllow}}
		up.Instances = append(up.Instances, connect.Endpoint{ID: fmt.Sprintf("db-%d", i), Addr: db.Inbound})
		file, err := writeSnapshot(dir, fmt.Sprintf("db-%d", i), db)
		if err != nil {
			in.stop()
			return nil, err
		}
		files = append(files, file)
	}
	web.Upstreams = []connect.Upstream{up}
	file, err := writeSnapshot(dir, "web", web)
	if err != nil {
		in.stop()
		return nil, err
	}
	for _, c := range []*exec.Cmd{w.command(ctx, files), w.command(ctx, []string{file})} {
		c.Stderr = os.Stderr
		if w.binary == "" {
			r, err := newResting(c)
			if err != nil {
				in.stop()
				return nil, err
			}
			in.resting = append(in.resting, r)
		}
		if err := c.Start(); err != nil {
			in.stop()
			return nil, err
		}
		procs = append(procs, c)
		in.pids = append(in.pids, c.Process.Pid)
	}
	if err := waitFor(ctx, in.front); err != nil {
		in.stop()
		return nil, err
	}
	return in, nil
}

// command runs the proxies of one side.
func (w *weftPair) command(ctx context.Context, snapshots []string) *exec.Cmd {
	if w.binary != "" {
		return exec.CommandContext(ctx, w.binary, "connect", "proxy", "-snapshot", snapshots[0], "-key-file", keyOf(snapshots[0])) //nolint:gosec // the binary under test
	}
	how := "tunnels"
	if w.oneToOne {
		how = "one-to-one"
	}
	return exec.CommandContext(ctx, "/proc/self/exe", append([]string{"proxies", how}, snapshots...)...) //nolint:gosec // ourselves
}

// keyOf is the key file beside a snapshot.
func keyOf(snapshot string) string { return strings.TrimSuffix(snapshot, ".json") + ".pem" }

func writeSnapshot(dir, name string, s connect.Snapshot) (string, error) {
	b, err := json.Marshal(s)
	if err != nil {
		return "", err
	}
	file := filepath.Join(dir, name+".json")
	return file, os.WriteFile(file, b, 0o600)
}

// weftHost is two services of one agent.
type weftHost struct{ binary string }

func (*weftHost) name() string { return "weft-one-host" }

func (w *weftHost) start(ctx context.Context, backend string) (*instance, error) {
	a, err := startMesh(ctx, w.binary)
	if err != nil {
		return nil, err
	}
	in := &instance{pids: []int{a.cmd.Process.Pid}, stop: a.stop, oneHost: true}
	if in.addr, err = a.pair(ctx, backend); err == nil {
		err = a.put(ctx, "/v1/connect/intentions/exact?source=web&destination=db", map[string]any{"Action": "allow"})
	}
	if err == nil {
		err = waitFor(ctx, in.front)
	}
	if err != nil {
		a.stop()
		return nil, err
	}
	return in, nil
}

// writeLeaves makes an authority, which it returns, and a key file for each service:
// web.pem, and db-0.pem, db-1.pem … for those of which there are many.
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
		file := s
		if i > 0 {
			file = fmt.Sprintf("%s-%d", s, i-1)
		}
		if err := os.WriteFile(filepath.Join(dir, file+".pem"), b.Bytes(), 0o600); err != nil {
			return "", fmt.Errorf("key of %s: %w", s, err)
		}
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})), nil
}
