package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"
)

// provesMutualTLS finds out whether the wire of a contender is what it is compared as:
// its server's side speaks TLS 1.3, and turns away who speaks less, shows no
// certificate, or one of another authority.
func provesMutualTLS(in *instance) error {
	if in.far == "" {
		return nil // in the clear, or checked by its own tests
	}
	mine, err := tls.LoadX509KeyPair(in.pem, in.pem)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "meshbench-wrong-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	wrongFile := filepath.Join(dir, "wrong.pem")
	if err := writePair(wrongFile); err != nil {
		return err
	}
	wrong, err := tls.LoadX509KeyPair(wrongFile, wrongFile)
	if err != nil {
		return err
	}
	if err := probe(in, &tls.Config{Certificates: []tls.Certificate{mine}, MinVersion: tls.VersionTLS13}); err != nil {
		return fmt.Errorf("the right certificate is refused: %w", err)
	}
	for what, c := range map[string]*tls.Config{
		"no certificate":                     {},
		"a certificate of another authority": {Certificates: []tls.Certificate{wrong}},
		"TLS 1.2":                            {Certificates: []tls.Certificate{mine}, MaxVersion: tls.VersionTLS12},
	} {
		if c.MaxVersion != 0 && in.also12 {
			continue
		}
		if probe(in, c) == nil {
			return fmt.Errorf("it serves a client with %s", what)
		}
	}
	return nil
}

// probe exchanges one message over TLS with the server's side.
func probe(in *instance, c *tls.Config) error {
	c.InsecureSkipVerify = true // the server is judged by what it refuses
	d := net.Dialer{Timeout: 5 * time.Second}
	t, err := tls.DialWithDialer(&d, "tcp", in.far, c)
	if err != nil {
		return err
	}
	defer t.Close()
	if err = in.exchange(t, in.request(1), in.room(1)); err == nil && t.ConnectionState().Version != tls.VersionTLS13 {
		err = errors.New("not TLS 1.3")
	}
	if err != nil {
		return fmt.Errorf("probe: %w", err)
	}
	return nil
}

// refusesWrongServers is the other half: the client's side of a pair shows its
// certificate, and turns away a server of another authority or one
// that speaks TLS 1.2 only.
func (p *pair) refusesWrongServers(ctx context.Context) error {
	if p.plain {
		return nil
	}
	dir, err := os.MkdirTemp("", "meshbench-client-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	right, wrong := filepath.Join(dir, "pair.pem"), filepath.Join(dir, "wrong.pem")
	for _, f := range []string{right, wrong} {
		if err := writePair(f); err != nil {
			return err
		}
	}
	for _, c := range []struct {
		what   string
		pem    string
		most   uint16
		served bool
	}{
		{"the right certificate", right, 0, true},
		{"a certificate of another authority", wrong, 0, false},
		{"TLS 1.2", right, tls.VersionTLS12, false},
	} {
		if c.most != 0 && p.also12 {
			continue
		}
		served, err := p.reaches(ctx, dir, right, c.pem, c.most)
		if err != nil {
			return err
		}
		if served != c.served {
			return fmt.Errorf("a server with %s is served: %v", c.what, served)
		}
	}
	return nil
}

// reaches runs the client's side alone, towards a server of ours that asks for its
// certificate, and tells whether an exchange comes through.
func (p *pair) reaches(ctx context.Context, dir, trusted, shown string, most uint16) (bool, error) {
	mine, err := tls.LoadX509KeyPair(shown, shown)
	if err != nil {
		return false, err
	}
	theirs, err := tls.LoadX509KeyPair(trusted, trusted)
	if err != nil {
		return false, err
	}
	pool := x509.NewCertPool()
	leaf, err := x509.ParseCertificate(theirs.Certificate[0])
	if err != nil {
		return false, err
	}
	pool.AddCert(leaf)
	ln, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{
		Certificates: []tls.Certificate{mine}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pool, MinVersion: tls.VersionTLS12, MaxVersion: most,
	})
	if err != nil {
		return false, err
	}
	defer ln.Close()
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() { defer c.Close(); _ = serve(c) }()
		}
	}()
	s := side{listen: freeAddr(), to: ln.Addr().String(), dir: dir, pem: trusted, config: filepath.Join(dir, "client.conf")}
	in := &instance{}
	stop, err := p.run(ctx, in, s)
	if err != nil {
		return false, err
	}
	defer stop()
	listening := time.Now().Add(10 * time.Second)
	for {
		at := front{s.listen, p.http}
		c, err := at.dial(ctx)
		if err == nil {
			err = at.exchange(c, at.request(1), at.room(1))
			c.Close()
			return err == nil, nil
		}
		if time.Now().After(listening) {
			return false, fmt.Errorf("it does not listen: %w", err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}
