package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/cmd/weft/config"
	"github.com/weftmesh/weft/connect/enroll"
)

// What makes this host one of a cluster: the cluster secret of a server, the join
// token and certificate of an agent.

// Names of the systemd credentials and of the environment variables that name files.
const (
	secretCredential = "weft-cluster-secret"      //nolint:gosec // a name, not the thing
	tokenCredential  = "weft-join-token"          //nolint:gosec // the same
	secretEnv        = "WEFT_CLUSTER_SECRET_FILE" //nolint:gosec // the same
	tokenEnv         = "WEFT_JOIN_TOKEN_FILE"     //nolint:gosec // the same

	clusterIDFile = "cluster-id"
	// secretFile is where a first server that is alone puts the secret that it makes.
	secretFile = "cluster.secret" //nolint:gosec // the same
)

// trust is what this host proves itself with.
type trust struct {
	secret    enroll.Secret // of a server; an agent has none
	creds     *enroll.Credentials
	clusterID string
	// keys are the first keys of gossip; none on an agent, which learns them.
	keys [][]byte
}

// mint makes join tokens where the cluster secret is; nil elsewhere.
func (t *trust) mint() func(ttl time.Duration) (enroll.Token, error) {
	if t.secret.Empty() {
		return nil
	}
	return func(ttl time.Duration) (enroll.Token, error) { return t.secret.Mint(enroll.MintOptions{TTL: ttl}) }
}

// expiry tells when this host's certificate ends.
func (t *trust) expiry() prometheus.Collector {
	return prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "weft_node_certificate_expiry_timestamp_seconds", Help: "When the certificate of this node ends, in seconds since 1970; 0 while it has none.",
	}, func() float64 {
		if t.creds == nil || t.creds.NotAfter().IsZero() {
			return 0
		}
		return float64(t.creds.NotAfter().Unix())
	})
}

// openTrust reads, or on a first server makes, what this host has.
func (h *host) openTrust() error {
	var err error
	switch {
	case h.cfg.Server:
		err = h.openSecret()
	default:
		err = h.openIdentity()
	}
	if err != nil {
		return withCode(exitConfig, err)
	}
	if keys := h.cfg.GossipKeys(); len(keys) > 0 {
		h.trust.keys = keys // the operator's own
	}
	return nil
}

// credentialFile finds a file: where the configuration says, else the environment,
// else systemd; "" when nobody does.
func credentialFile(configured, env, credential string) string {
	if configured != "" {
		return configured
	}
	if f := os.Getenv(env); f != "" {
		return f
	}
	if dir := os.Getenv("CREDENTIALS_DIRECTORY"); dir != "" {
		if f := filepath.Join(dir, credential); exists(f) {
			return f
		}
	}
	return ""
}

func exists(file string) bool {
	_, err := os.Stat(file)
	return err == nil
}

// openSecret gives a server the cluster secret and its own certificate.
func (h *host) openSecret() error {
	c := h.cfg
	secret, err := readOrMakeSecret(c)
	if err != nil {
		return err
	}
	if c.DataDir != "" && exists(filepath.Join(c.DataDir, secretFile)) {
		h.log.Warn("the cluster secret lies in the data directory: who has a copy of that can be a server, and can open the key of the certificate authority",
			"file", filepath.Join(c.DataDir, secretFile), "hint", "move it to where no backup takes it, and name it by cluster_secret_file or as the systemd credential "+secretCredential)
	}
	h.trust.secret, h.trust.clusterID = secret, secret.ClusterID()
	if err := keepClusterID(c.DataDir, h.trust.clusterID); err != nil {
		return err
	}
	h.trust.keys = [][]byte{secret.GossipKey()}
	h.trust.creds, err = enroll.NewServer(enroll.ServerConfig{
		Secret: secret, Node: c.NodeName, NodeID: h.nodeID, Datacenter: c.Datacenter, Logger: h.log,
	})
	return err
}

func readOrMakeSecret(c *config.Config) (enroll.Secret, error) {
	file := credentialFile(c.Cluster.SecretFile, secretEnv, secretCredential)
	if file != "" {
		return enroll.ReadSecret(file)
	}
	if c.DataDir == "" {
		return enroll.NewSecret(), nil // -dev: as short as the process
	}
	file = filepath.Join(c.DataDir, secretFile)
	secret, err := enroll.ReadSecret(file)
	switch {
	case !errors.Is(err, fs.ErrNotExist):
		return secret, err
	case exists(filepath.Join(c.DataDir, clusterIDFile)):
		return secret, fmt.Errorf("cluster_secret_file: %w: this data directory is of a cluster, and its secret is not there: put the file back at %s, or name it", catalog.ErrInvalid, file)
	case !c.Bootstrap:
		return secret, fmt.Errorf("cluster_secret_file: %w: servers of one cluster share a secret, and this one has none: run `weft secret new -out FILE` once, and give the file to each server", catalog.ErrInvalid)
	}
	secret = enroll.NewSecret()
	return secret, enroll.WriteSecret(file, secret)
}

// keepClusterID remembers of which cluster a data directory is, so that another
// secret is noticed before anything is written under it.
func keepClusterID(dir, id string) error {
	if dir == "" {
		return nil
	}
	file := filepath.Join(dir, clusterIDFile)
	b, err := os.ReadFile(file)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	was := strings.TrimSpace(string(b))
	if was == "" { // a file that a crash left empty says nothing
		return enroll.WriteClusterID(file, id)
	}
	if was != id {
		return fmt.Errorf("cluster_secret_file: %w: it is the secret of cluster %s, and the data directory %s is of cluster %s: use the secret of that cluster, or an empty data directory",
			catalog.ErrInvalid, id, dir, was)
	}
	return nil
}

// openIdentity gives an agent without a server the certificate that it has, or the
// way to one.
func (h *host) openIdentity() error {
	c := h.cfg
	tokenFile := credentialFile(c.Cluster.JoinTokenFile, tokenEnv, tokenCredential)
	token := func() (string, error) {
		if tokenFile == "" {
			return "", nil
		}
		t, err := enroll.ReadToken(tokenFile)
		return t.Text(), err
	}
	dir := ""
	if c.DataDir != "" {
		dir = filepath.Join(c.DataDir, "node")
	}
	var err error
	h.trust.creds, err = enroll.NewAgent(enroll.AgentConfig{
		Dir: dir, Token: token, Servers: func() []string { return h.pool.Addrs() },
		Node: c.NodeName, NodeID: h.nodeID, Datacenter: c.Datacenter, Version: buildInfo().Version,
		Logger: h.log, OnJoined: h.joined,
	})
	if err != nil {
		return err
	}
	h.trust.clusterID = h.trust.creds.Self().ClusterID
	t, err := enroll.Token{}, error(nil)
	if tokenFile != "" {
		t, err = enroll.ReadToken(tokenFile)
	}
	switch {
	case err == nil && !t.Empty():
		h.trust.clusterID = t.ClusterID // a token of another cluster moves this host there
	case h.trust.creds.Ready():
		if err != nil {
			h.log.Warn("the join token cannot be read, and is not needed: this host has its certificate", "err", err)
		}
	case err != nil:
		return err
	default:
		return fmt.Errorf("join_token_file: %w: this host has never joined a cluster and has no join token: make one with `weft join-token` where the cluster secret is, and name its file", catalog.ErrInvalid)
	}
	return nil
}

// joined takes over what a server said when this host joined or renewed.
func (h *host) joined(j enroll.Joined) {
	h.pool.Hint(j.Servers)
	if err := h.gossip.Import(j.GossipKeys); err != nil {
		h.log.Error("the keys of gossip were not taken over; other members may not hear this host", "err", err)
	}
}

// refresh lets a server learn what changed while it was down. All others are asked:
// one that was down itself knows no better.
func (h *host) refresh(ctx context.Context, servers []string) error {
	var mu sync.Mutex
	var asking sync.WaitGroup
	var errs []error
	for _, s := range servers {
		if s == joinAddr(h.cfg.AdvertiseAddr, h.cfg.Ports.Server) {
			continue
		}
		asking.Go(func() {
			j, err := h.trust.creds.Inquire(ctx, []string{s})
			if err == nil {
				err = h.gossip.Import(j.GossipKeys)
			}
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				errs = append(errs, err)
			}
		})
	}
	asking.Wait()
	return errors.Join(errs...)
}

// listen binds the server port.
func (h *host) listen() (net.Listener, error) {
	addr := joinAddr(h.cfg.BindAddr, h.cfg.Ports.Server)
	if ln := h.relay.sockets.Take("tcp", addr); ln != nil {
		return ln, nil
	}
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("the server cannot listen: %w; set bind_addr or ports.server", err)
	}
	if c, ok := ln.(syscall.Conn); ok {
		h.relay.sockets.Keep("tcp", addr, c)
	}
	return ln, nil
}
