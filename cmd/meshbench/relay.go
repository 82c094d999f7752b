package main

import (
	"crypto/tls"
	"crypto/x509"
	"io"
	"net"
	"os"
)

// runRelay is the smallest TLS proxy in Go: "client" dials TLS, "server" accepts it.
func runRelay(which, listen, to, pem string) error {
	pair, err := tls.LoadX509KeyPair(pem, pem)
	if err != nil {
		return err
	}
	b, err := os.ReadFile(pem)
	if err != nil {
		return err
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(b)
	conf := &tls.Config{
		Certificates: []tls.Certificate{pair}, RootCAs: pool, ClientCAs: pool, ServerName: "meshbench",
		ClientAuth: tls.RequireAndVerifyClientCert, MinVersion: tls.VersionTLS13,
	}
	ln, err := net.Listen("tcp", listen)
	if err != nil {
		return err
	}
	for {
		c, err := ln.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer c.Close()
			far, err := net.Dial("tcp", to) //nolint:gosec // an argument of ours
			if err != nil {
				return
			}
			defer far.Close()
			if which == "server" {
				c = tls.Server(c, conf)
			} else {
				far = tls.Client(far, conf)
			}
			go func() { _, _ = io.Copy(far, c); far.Close() }()
			_, _ = io.Copy(c, far)
		}()
	}
}
