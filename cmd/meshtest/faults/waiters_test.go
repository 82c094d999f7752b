//go:build faults

package faults_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestWaitersOfP18 is the process of the clients of TestP18BlockedQueries, and
// nothing when it runs by itself. One thread serves all of them, from one buffer:
// clients of net/http would take most of the time that is measured.
func TestWaitersOfP18(t *testing.T) {
	env := os.Getenv("P18_WAITERS")
	if env == "" {
		return
	}
	var addr, path string
	var n, distinct int
	_, err := fmt.Sscanf(env, "%s %d %s %d", &addr, &n, &path, &distinct)
	must(t, err)
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin) // the parent is gone: so are we
		os.Exit(0)
	}()
	if err := waitForEver(addr, path, n, distinct); err != nil {
		fmt.Fprintln(os.Stderr, "a client of P18:", err)
		os.Exit(1)
	}
}

// rawClient is one connection, with what is known of the answer under way.
type rawClient struct {
	request string // up to the index
	index   []byte // of the last answer
	left    int    // bytes of the body to come
	inBody  bool
}

// waitForEver reads, then waits for each change, with n connections.
func waitForEver(addr, path string, n, distinct int) error {
	to := netip.MustParseAddrPort(addr)
	poll, err := unix.EpollCreate1(0)
	if err != nil {
		return err
	}
	clients := make(map[int32]*rawClient, n)
	buf := make([]byte, 256<<10)
	for i := range n {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
		if err != nil {
			return err
		}
		if err := unix.Connect(fd, &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()}); err != nil {
			return err
		}
		p := path
		if distinct > 1 {
			p += strconv.Itoa(i % distinct)
		}
		c := &rawClient{request: "GET " + p + "?wait=10m&index="}
		clients[int32(fd)] = c
		// The first answer is read at once, so that few ask at the same time.
		if err := c.ask(fd); err != nil {
			return err
		}
		for done := false; !done; {
			if done, err = c.read(fd, buf); err != nil {
				return err
			}
		}
		if err := c.ask(fd); err != nil {
			return err
		}
		if err := unix.EpollCtl(poll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(fd)}); err != nil {
			return err
		}
	}
	return serveWaiters(poll, clients, buf)
}

// serveWaiters says when all were answered, the first time at once: all of them wait.
func serveWaiters(poll int, clients map[int32]*rawClient, buf []byte) error {
	fmt.Println(time.Now().UnixNano())
	events := make([]unix.EpollEvent, 256)
	for answered := 0; ; {
		k, err := unix.EpollWait(poll, events, -1)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return err
		}
		for _, e := range events[:k] {
			c := clients[e.Fd]
			done, err := c.read(int(e.Fd), buf)
			if err != nil {
				return err
			}
			if !done {
				continue
			}
			if answered++; answered == len(clients) {
				fmt.Println(time.Now().UnixNano())
				answered = 0
			}
			if err := c.ask(int(e.Fd)); err != nil {
				return err
			}
		}
	}
}

func (c *rawClient) ask(fd int) error {
	_, err := unix.Write(fd, []byte(c.request+string(c.index)+" HTTP/1.1\r\nHost: localhost\r\n\r\n"))
	return err
}

var (
	lengthHeader = []byte("\r\nContent-Length: ")
	indexHeader  = []byte("\r\nX-Consul-Index: ")
)

// read takes what there is; done is whether it completes an answer.
func (c *rawClient) read(fd int, buf []byte) (done bool, err error) {
	n, err := unix.Read(fd, buf)
	if err != nil {
		return false, err
	}
	if n == 0 {
		return false, io.ErrUnexpectedEOF
	}
	got := buf[:n]
	if !c.inBody {
		head, body, whole := bytes.Cut(got, []byte("\r\n\r\n"))
		if !whole || !bytes.HasPrefix(head, []byte("HTTP/1.1 200 ")) {
			return false, fmt.Errorf("answered with %.200q", got) // a header is one segment
		}
		if c.left, err = strconv.Atoi(string(header(head, lengthHeader))); err != nil {
			return false, err
		}
		c.index = bytes.Clone(header(head, indexHeader))
		c.inBody, got = true, body
	}
	if c.left -= len(got); c.left < 0 {
		return false, errors.New("more was answered than asked for")
	}
	c.inBody = c.left > 0
	return !c.inBody, nil
}

func header(head, name []byte) []byte {
	_, rest, _ := bytes.Cut(head, name)
	value, _, _ := bytes.Cut(rest, []byte("\r\n"))
	return value
}
