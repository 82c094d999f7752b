package main

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
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
	if err := probe(in.far, &tls.Config{Certificates: []tls.Certificate{mine}, MinVersion: tls.VersionTLS13}); err != nil {
		return fmt.Errorf("the right certificate is refused: %w", err)
	}
	for what, c := range map[string]*tls.Config{
		"no certificate":                     {},
		"a certificate of another authority": {Certificates: []tls.Certificate{wrong}},
		"TLS 1.2":                            {Certificates: []tls.Certificate{mine}, MaxVersion: tls.VersionTLS12},
	} {
		if probe(in.far, c) == nil {
			return fmt.Errorf("it serves a client with %s", what)
		}
	}
	return nil
}

// probe exchanges one message over TLS.
func probe(addr string, c *tls.Config) error {
	c.InsecureSkipVerify = true // the server is judged by what it refuses
	d := net.Dialer{Timeout: 5 * time.Second}
	t, err := tls.DialWithDialer(&d, "tcp", addr, c)
	if err != nil {
		return err
	}
	defer t.Close()
	_ = t.SetDeadline(time.Now().Add(5 * time.Second)) // fails only when closed
	if _, err := t.Write(request(1)); err != nil {
		return err
	}
	_, err = io.ReadFull(t, make([]byte, 1))
	if err == nil && t.ConnectionState().Version != tls.VersionTLS13 {
		err = errors.New("not TLS 1.3")
	}
	if err != nil {
		return fmt.Errorf("probe: %w", err)
	}
	return nil
}
