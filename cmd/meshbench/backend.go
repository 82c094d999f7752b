package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
)

// The backend speaks a protocol that costs next to nothing: a request is a
// 100-byte message whose first four bytes ask for so many bytes of answer; zero
// asks for bytes until the connection closes. What begins with G is HTTP instead:
// GET /1024 asks for as many bytes.
const requestSize = 100

type backend struct {
	addr string
	cmd  *exec.Cmd
	in   io.Closer
}

// startBackend runs the backend as a process of its own, which ends with its input.
func startBackend(ctx context.Context) (*backend, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, self, "backend") //nolint:gosec // ourselves
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("backend: %w", err)
	}
	addr, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		return nil, fmt.Errorf("backend did not say its address: %w", err)
	}
	return &backend{addr: strings.TrimSpace(addr), cmd: cmd, in: in}, nil
}

func (b *backend) stop() {
	b.in.Close()
	_ = b.cmd.Wait()
}

// runBackend serves until its input ends; it returns only when it cannot.
func runBackend() error {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Println(ln.Addr())
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin) // the parent is gone: so are we
		os.Exit(0)
	}()
	for {
		c, err := ln.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer c.Close()
			_ = serve(c)
		}()
	}
}

func serve(c net.Conn) error {
	req := make([]byte, requestSize)
	var answer []byte
	for {
		got, err := c.Read(req)
		if got > 0 && req[0] == 'G' {
			return serveHTTP(c, req[:got])
		}
		if err == nil && got < len(req) {
			_, err = io.ReadFull(c, req[got:])
		}
		if err != nil {
			return err
		}
		n := int(binary.BigEndian.Uint32(req))
		if n == 0 {
			return pour(c)
		}
		if n > 1<<20 {
			return errors.New("asked for more than 1 MiB")
		}
		if len(answer) < n {
			answer = make([]byte, n)
		}
		if _, err := c.Write(answer[:n]); err != nil {
			return err
		}
	}
}

// pour writes until the far end has enough.
func pour(c net.Conn) error {
	chunk := make([]byte, 256<<10)
	for {
		if _, err := c.Write(chunk); err != nil {
			return err
		}
	}
}

// serveHTTP answers requests without bodies, of which got are the first bytes.
func serveHTTP(c net.Conn, got []byte) error {
	buf := append(make([]byte, 0, 4096), got...)
	var answer []byte
	for {
		end := bytes.Index(buf, []byte("\r\n\r\n"))
		if end < 0 {
			if len(buf) == cap(buf) {
				return errors.New("a request of more than 4 KiB")
			}
			k, err := c.Read(buf[len(buf):cap(buf)])
			if err != nil {
				return err
			}
			buf = buf[:len(buf)+k]
			continue
		}
		path, _, _ := bytes.Cut(bytes.TrimPrefix(buf, []byte("GET /")), []byte(" "))
		n, err := strconv.Atoi(string(path))
		if err != nil || n < 0 || n > 1<<20 {
			return fmt.Errorf("asked for %.20q", path)
		}
		buf = append(buf[:0], buf[end+4:]...)
		if n == 0 {
			if _, err := io.WriteString(c, "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n"); err != nil {
				return err
			}
			return pour(c)
		}
		answer = append(fmt.Appendf(answer[:0], "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n", n), make([]byte, n)...)
		if _, err := c.Write(answer); err != nil {
			return err
		}
	}
}
