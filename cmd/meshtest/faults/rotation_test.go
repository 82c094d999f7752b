//go:build faults && linux

package faults_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/weftmesh/weft/cmd/meshtest/proc"
	"github.com/weftmesh/weft/connect/identity"
)

// signer is the key ID of the root that signs now, and the type of its key.
func signer(n *proc.Node) (keyID, typ string, err error) {
	var list struct {
		ActiveRootID string
		Roots        []struct{ ID, SigningKeyID, PrivateKeyType string }
	}
	status, body, err := n.Get("/v1/connect/ca/roots")
	if err == nil && status != http.StatusOK {
		err = fmt.Errorf("%d: %s", status, body)
	}
	if err == nil {
		err = json.Unmarshal([]byte(body), &list)
	}
	for _, r := range list.Roots {
		if r.ID == list.ActiveRootID {
			return r.SigningKeyID, r.PrivateKeyType, err
		}
	}
	return "", "", cmpErr(err)
}

// rotate makes a new root of a type, as an operator who tries again until it is so. A
// leader that is killed meanwhile may have done it, or not.
func rotate(t *testing.T, n *proc.Node, typ string) (keyID string) {
	t.Helper()
	before, _, err := signer(n)
	must(t, err)
	bits := map[string]int{"rsa": 2048, "ec": 256}[typ]
	config := &api.CAConfig{Provider: "consul", Config: map[string]any{"PrivateKeyType": typ, "PrivateKeyBits": bits}}
	proc.Eventually(t, 4*time.Minute, "a root of type "+typ, func() error {
		now, is, err := signer(n)
		if err == nil && now != before && is == typ {
			keyID = now
			return nil
		}
		_, perr := n.Client.Connect().CASetConfig(config, nil)
		return errors.Join(err, perr, fmt.Errorf("the root is %s, of type %s", now, is))
	})
	return keyID
}

// shownBy is the key ID of the root behind the certificate at a proxy's port.
func shownBy(addr string) (string, error) {
	raw, err := net.DialTimeout("tcp", addr, 5*time.Second)
	if err != nil {
		return "", err
	}
	defer raw.Close()
	_ = raw.SetDeadline(time.Now().Add(10 * time.Second))
	var shown string
	c := tls.Client(raw, &tls.Config{
		InsecureSkipVerify: true, //nolint:gosec // it looks at what is shown
		VerifyConnection: func(cs tls.ConnectionState) error {
			shown = identity.HexColon(cs.PeerCertificates[0].AuthorityKeyId)
			return nil
		},
	})
	if err = c.Handshake(); shown != "" {
		err = nil // it may fail after that, as we show no certificate
	}
	return shown, err
}

// requests15 makes connections at a rate and counts those that fail.
type requests15 struct {
	stop         chan struct{}
	wg           sync.WaitGroup
	made, failed atomic.Int64
	mu           sync.Mutex
	errs         []error
}

func startRequests(upstreams []string, perSecond int) *requests15 {
	r := &requests15{stop: make(chan struct{})}
	every := time.Duration(len(upstreams)) * time.Second / time.Duration(perSecond)
	for i, up := range upstreams {
		r.wg.Go(func() {
			tick := time.NewTicker(every)
			defer tick.Stop()
			for n := i; ; n++ {
				select {
				case <-r.stop:
					return
				case <-tick.C:
				}
				if err := request15(up); err != nil {
					r.failed.Add(1)
					r.mu.Lock()
					r.errs = append(r.errs, err)
					r.mu.Unlock()
				}
				r.made.Add(1)
			}
		})
	}
	return r
}

func request15(up string) error {
	c, err := net.DialTimeout("tcp", up, 10*time.Second)
	if err != nil {
		return err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := io.WriteString(c, "ping"); err != nil {
		return err
	}
	b := make([]byte, 4)
	if _, err := io.ReadFull(c, b); err != nil || string(b) != "ping" {
		return fmt.Errorf("answered %q: %w", b, cmpErr(err))
	}
	return nil
}

// TestP15RotationUnderLoad rotates the root from EC to RSA and back while services of
// two hosts talk, and kills the leader in the middle: no request fails, connections that
// are open go on, and every proxy shows a certificate of the new root soon.
func TestP15RotationUnderLoad(t *testing.T) {
	t.Parallel()
	c := proc.StartCluster(t, proc.ClusterOptions{Servers: 3, Agents: 2})
	h := &twoHosts{t, c, c.Agents[0], c.Agents[1]}
	pairs := proc.Count(4, 25) // two services each
	rotations, kills := proc.Count(2, 10), proc.Count(1, 2)
	echo := startEcho(t).port()
	var ups, ports []string
	for i := range pairs {
		name := fmt.Sprintf("db%d", i)
		ups = append(ups, h.join(name, echo, nil))
	}
	var held []net.Conn
	for i, up := range ups {
		held = append(held, through(t, up))
		ports = append(ports, h.inbound(fmt.Sprintf("db%d", i)))
	}
	load := startRequests(ups, proc.Count(50, 500))
	var slowest time.Duration
	for i := range rotations {
		typ := []string{"rsa", "ec"}[i%2]
		operator := c.Followers()[0] // a server's host, as agents may not change the authority
		if i%(rotations/kills) == 0 {
			lead := c.Leader()
			killed := make(chan struct{})
			go func() { // in the middle of the rotation
				defer close(killed)
				pause(30)
				lead.Kill()
			}()
			defer func() { <-killed }()
			rotateAndSee(t, operator, typ, ports, &slowest)
			<-killed
			lead.Launch()
			lead.WaitServing(2 * time.Minute)
			continue
		}
		rotateAndSee(t, operator, typ, ports, &slowest)
	}
	close(load.stop)
	load.wg.Wait()
	for _, err := range load.errs[:min(len(load.errs), 5)] {
		t.Errorf("a request failed: %v", err)
	}
	for i, conn := range held {
		if err := ping(conn); err != nil {
			t.Errorf("the connection held through all rotations to %s: %v", ups[i], err)
		}
	}
	t.Logf("P15: %d services on two hosts, %d rotations, the leader killed in the middle of %d: %d requests, %d failed; every proxy on the new root within %s",
		2*pairs, rotations, kills, load.made.Load(), load.failed.Load(), slowest.Round(time.Millisecond))
}

// rotateAndSee waits until the proxies show certificates of the new root.
func rotateAndSee(t *testing.T, n *proc.Node, typ string, ports []string, slowest *time.Duration) {
	t.Helper()
	rotate(t, n, typ)
	begin := time.Now()
	proc.Eventually(t, 3*time.Minute, "certificates of the new root", func() error {
		now, _, err := signer(n) // that of a second try, perhaps
		if err != nil {
			return err
		}
		for _, addr := range ports {
			if by, err := shownBy(addr); err != nil || by != now {
				return fmt.Errorf("%s shows one of %s, want %s: %w", addr, by, now, cmpErr(err))
			}
		}
		return nil
	})
	*slowest = max(*slowest, time.Since(begin))
}

// TestP15ManyLeaves has applications wait, over several agents, for the next
// certificates of theirs, rotates the root, and times how soon all have one.
func TestP15ManyLeaves(t *testing.T) {
	agents, each := proc.Count(2, 10), proc.Count(50, 500)
	c := proc.StartCluster(t, proc.ClusterOptions{
		Servers: 3, Agents: agents,
		AgentArgs: []string{"-log-level", "warn", "-hcl", "limits { http_max_conns_per_client = 2000 }"},
	})
	var wg sync.WaitGroup
	first := make([]uint64, agents*each)
	begin := time.Now()
	gates := make(chan struct{}, 32)
	for i := range first {
		wg.Go(func() {
			gates <- struct{}{}
			defer func() { <-gates }()
			var err error
			for range 20 { // servers may have no more places in their queue
				if first[i], _, err = leafOf(c.Agents[i%agents], i, 0); err == nil {
					return
				}
				pause(500)
			}
			t.Errorf("certificate %d: %v", i, err)
		})
	}
	wg.Wait()
	t.Logf("%d certificates made in %s", len(first), time.Since(begin).Round(time.Millisecond))
	took := make([]time.Duration, len(first))
	var rotated atomic.Int64
	want := make(chan struct{})
	var root string
	for i := range first {
		wg.Go(func() {
			for index := first[i]; ; {
				next, signedBy, err := leafOf(c.Agents[i%agents], i, index)
				at := time.Now()
				if err != nil {
					t.Errorf("certificate %d: %v", i, err)
					return
				}
				<-want
				if index = next; signedBy == root {
					took[i] = time.Duration(at.UnixNano() - rotated.Load())
					return
				}
			}
		})
	}
	pause(proc.Count[time.Duration](500, 5000)) // until they wait
	rotated.Store(time.Now().UnixNano())
	root = rotate(t, c.Servers[0], "rsa")
	close(want)
	wg.Wait()
	slices.Sort(took)
	last := took[len(took)-1]
	t.Logf("P15: %d certificates of a new root over %d agents: p50 %s, the last after %s", len(took), agents, half(took), last.Round(time.Millisecond))
	if proc.Full() && last > 15*time.Second {
		t.Errorf("the last of %d certificates came after %s, want 15 s", len(took), last)
	}
}

// leafOf asks for a certificate once its index is above the one given, and tells which
// root signed it.
func leafOf(n *proc.Node, i int, index uint64) (next uint64, signedBy string, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	url := fmt.Sprintf("http://%s/v1/agent/connect/ca/leaf/svc%d?index=%d&wait=2m", n.HTTP, i, index)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return 0, "", err
	}
	resp, err := leafClient.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, "", err
	}
	if resp.StatusCode != http.StatusOK {
		return 0, "", fmt.Errorf("%s: %s", resp.Status, strings.TrimSpace(string(body)))
	}
	var leaf api.LeafCert
	if err := json.Unmarshal(body, &leaf); err != nil {
		return 0, "", err
	}
	block, _ := pem.Decode([]byte(leaf.CertPEM))
	if block == nil {
		return 0, "", errors.New("no certificate in the answer")
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return 0, "", err
	}
	return leaf.ModifyIndex, identity.HexColon(cert.AuthorityKeyId), nil
}

var leafClient = &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
