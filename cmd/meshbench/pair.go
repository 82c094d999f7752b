package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

// pair is a contender of two processes, as on two hosts: one on the client's side,
// one on the server's, with mutual TLS 1.3 between them unless it says plain.
type pair struct {
	label  string
	plain  bool
	http   bool   // it understands HTTP, and is spoken to so
	also12 bool   // it cannot be told to refuse TLS 1.2; its two sides speak 1.3
	binary string // "" is this program
	needs  string // what to install
	// script gives the arguments of one side, and the text of its configuration file.
	script func(s side) (args []string, config string)
}

// side is one process of a pair.
type side struct {
	server     bool
	listen, to string
	dir        string
	pem        string // certificate and key of both ends, and what both trust
	config     string // where the configuration will be
}

func (p *pair) name() string { return p.label }

func (p *pair) start(ctx context.Context, backend string) (*instance, error) {
	dir, err := os.MkdirTemp("", "meshbench-")
	if err != nil {
		return nil, err
	}
	pem := filepath.Join(dir, "pair.pem")
	if err := writePair(pem); err != nil {
		return nil, err
	}
	near, far := freeAddr(), freeAddr()
	in := &instance{front: front{near, p.http}, also12: p.also12}
	if !p.plain {
		in.far, in.pem = far, pem
	}
	var stops []func()
	in.stop = func() {
		for _, stop := range stops {
			stop()
		}
		_ = os.RemoveAll(dir)
	}
	for _, s := range []side{{server: true, listen: far, to: backend}, {listen: near, to: far}} {
		name := "client"
		if s.server {
			name = "server"
		}
		s.dir, s.pem, s.config = dir, pem, filepath.Join(dir, name+".conf")
		stop, err := p.run(ctx, in, s)
		if err != nil {
			in.stop()
			return nil, err
		}
		stops = append(stops, stop)
	}
	if err := waitFor(ctx, in.front); err != nil {
		in.stop()
		return nil, err
	}
	return in, nil
}

// run starts the process of one side.
func (p *pair) run(ctx context.Context, in *instance, s side) (stop func(), err error) {
	bin, err := os.Executable()
	if p.binary != "" {
		bin, err = exec.LookPath(p.binary)
	}
	if err != nil {
		return nil, errNotInstalled{p.needs}
	}
	args, text := p.script(s)
	if err := os.WriteFile(s.config, []byte(text), 0o600); err != nil {
		return nil, err
	}
	c := exec.CommandContext(ctx, bin, args...) //nolint:gosec // contenders of this file
	c.Stderr = os.Stderr
	if err := c.Start(); err != nil {
		return nil, err
	}
	in.pids = append(in.pids, c.Process.Pid)
	return func() {
		_ = c.Process.Signal(syscall.SIGTERM) // nginx takes its workers along
		late := time.AfterFunc(2*time.Second, func() { _ = c.Process.Kill() })
		_ = c.Wait()
		late.Stop()
	}, nil
}

// errNotInstalled says what a contender needs.
type errNotInstalled struct{ needs string }

func (e errNotInstalled) Error() string { return "not installed (" + e.needs + ")" }

// haproxy in its HTTP mode keeps its TLS connections, and uses them for many.
func haproxy(label string, tls, http bool) *pair {
	mode := "tcp"
	if http {
		mode = "http\n  http-reuse always\n  timeout http-keep-alive 1h\n  timeout http-request 1h"
	}
	return &pair{label: label, plain: !tls, http: http, binary: "haproxy", needs: "Debian package haproxy", script: func(s side) ([]string, string) {
		bind, server := s.listen, s.to
		if tls {
			v := " ssl ssl-min-ver TLSv1.3 verify required crt " + s.pem + " ca-file " + s.pem
			if s.server {
				bind += v
			} else {
				server += v + " verifyhost meshbench"
			}
		}
		return []string{"-db", "-q", "-f", s.config}, fmt.Sprintf("global\n  maxconn 8000\n  nbthread 2\ndefaults\n  mode %s\n"+
			"  timeout connect 5s\n  timeout client 1h\n  timeout server 1h\nlisten l\n  bind %s\n  server s %s\n", mode, bind, server)
	}}
}

func nginx() *pair {
	return &pair{label: "nginx-stream", binary: "nginx", needs: "Debian packages nginx and libnginx-mod-stream", script: func(s side) ([]string, string) {
		listen := s.listen
		var tls string
		if s.server {
			listen += " ssl"
			tls = fmt.Sprintf("ssl_certificate %[1]s; ssl_certificate_key %[1]s; ssl_protocols TLSv1.3; ssl_verify_client on; ssl_client_certificate %[1]s;", s.pem)
		} else {
			tls = fmt.Sprintf("proxy_ssl on; proxy_ssl_certificate %[1]s; proxy_ssl_certificate_key %[1]s; proxy_ssl_protocols TLSv1.3; "+
				"proxy_ssl_verify on; proxy_ssl_trusted_certificate %[1]s; proxy_ssl_name meshbench; proxy_ssl_session_reuse off;", s.pem)
		}
		return []string{"-c", s.config, "-p", s.dir}, fmt.Sprintf("load_module /usr/lib/nginx/modules/ngx_stream_module.so;\n"+
			"daemon off; worker_processes 2; worker_rlimit_nofile 20000; pid %s.pid; error_log stderr alert;\nevents { worker_connections 8000; }\n"+
			"stream { server { listen %s; proxy_pass %s; proxy_timeout 1h; tcp_nodelay on; %s } }\n", s.config, listen, s.to, tls)
	}}
}

func stunnel() *pair {
	return &pair{label: "stunnel", binary: "stunnel4", needs: "Debian package stunnel4", script: func(s side) ([]string, string) {
		client, check := "no", ""
		if !s.server {
			client, check = "yes", "checkHost = meshbench\n"
		}
		return []string{s.config}, fmt.Sprintf("foreground = yes\ndebug = 2\npid =\nsocket = l:TCP_NODELAY=1\nsocket = r:TCP_NODELAY=1\n[s]\nclient = %s\n"+
			"accept = %s\nconnect = %s\ncert = %s\nkey = %[4]s\nCAfile = %[4]s\nverifyChain = yes\nrequireCert = yes\nsslVersionMin = TLSv1.3\n%s", client, s.listen, s.to, s.pem, check)
	}}
}

func ghostunnel() *pair {
	return &pair{label: "ghostunnel", also12: true, binary: "ghostunnel", needs: "module github.com/ghostunnel/ghostunnel", script: func(s side) ([]string, string) {
		which, check := "client", "--override-server-name=meshbench"
		if s.server {
			which, check = "server", "--allow-cn=meshbench"
		}
		return []string{which, "--quiet=all", "--listen=" + s.listen, "--target=" + s.to, "--keystore=" + s.pem, "--cacert=" + s.pem, check}, ""
	}}
}

// relay is thirty lines of Go, the floor that any Go proxy must beat (relay.go).
func relay() *pair {
	return &pair{label: "go-relay", script: func(s side) ([]string, string) {
		which := "client"
		if s.server {
			which = "server"
		}
		return []string{"relay", which, s.listen, s.to, s.pem}, ""
	}}
}
