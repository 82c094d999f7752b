package consensus

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/weftmesh/weft/catalog"
)

// TestEachLossIsSeen: of many servers whose connections end at once none is forgotten,
// the leader least of all.
func TestEachLossIsSeen(t *testing.T) {
	s := &streams{lost: make(chan struct{}, 1), conns: map[string]map[net.Conn]struct{}{}, gone: map[string]bool{}}
	var all []net.Conn
	for i := range 5 {
		for range 2 {
			near, far := net.Pipe()
			defer far.Close()
			c, err := s.keep(fmt.Sprint(i), near)
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, c)
		}
	}
	for range 2 {
		for _, c := range all {
			if err := c.Close(); err != nil {
				t.Error(err)
			}
		}
	}
	select {
	case <-s.lost:
	default:
		t.Fatal("nobody is told")
	}
	if got := s.takeLost(); len(got) != 5 {
		t.Errorf("%v were lost, want five", got)
	}
	if got := s.takeLost(); len(got) != 0 || len(s.conns) != 0 {
		t.Errorf("%v are lost twice, %v are still there", got, s.conns)
	}
}

// flood is a connection on which bytes come without an end.
type flood struct {
	net.Conn
	first byte
}

func (f *flood) Read(b []byte) (int, error)  { b[0] = f.first; return len(b), nil }
func (f *flood) Write(b []byte) (int, error) { return len(b), nil }
func (f *flood) Close() error                { return nil }

// dialled is what a transport of raft connects to.
type dialled struct {
	raft.StreamLayer
	conn net.Conn
}

func (d dialled) Dial(raft.ServerAddress, time.Duration) (net.Conn, error) { return d.conn, nil }
func (dialled) Accept() (net.Conn, error)                                  { return nil, net.ErrClosed }

func (dialled) Addr() net.Addr { return networkAddr("") }
func (d dialled) Close() error { return d.conn.Close() }

// TestFirstByteOfABackup holds backupComes to what raft sends.
func TestFirstByteOfABackup(t *testing.T) {
	near, far := net.Pipe()
	defer far.Close()
	tr := raft.NewNetworkTransport(dialled{conn: near}, 1, patience, io.Discard)
	defer tr.Close()
	go func() {
		_ = tr.InstallSnapshot("a", "a", &raft.InstallSnapshotRequest{}, &raft.InstallSnapshotResponse{}, strings.NewReader(""))
	}()
	b := make([]byte, 1)
	if _, err := io.ReadFull(far, b); err != nil || b[0] != backupComes {
		t.Errorf("it begins with %d, %v; want %d", b[0], err, backupComes)
	}
}

// TestMessagesAreBounded: a message to raft that never ends is cut off at the bound,
// unless it is a backup of the size that was named; an answer begins the next one.
func TestMessagesAreBounded(t *testing.T) {
	s := &streams{lost: make(chan struct{}, 1), conns: map[string]map[net.Conn]struct{}{}, gone: map[string]bool{}, log: slog.New(slog.DiscardHandler)}
	buf := make([]byte, 1<<20)
	open := func(first byte) net.Conn {
		t.Helper()
		c, err := s.keep("a", &flood{first: first})
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	take := func(c net.Conn) (mib int, err error) {
		for ; err == nil && mib < 3*maxMessage>>20; mib++ {
			_, err = c.Read(buf)
		}
		return mib, err
	}
	const most = maxMessage >> 20
	if n, err := take(open(0)); n != most+1 || !errors.Is(err, catalog.ErrTooLarge) || len(s.conns) != 0 {
		t.Errorf("%d MiB of entries came, %v, %d connections are open", n, err, len(s.conns))
	}
	c := open(0)
	for range 3 * most {
		if _, err := c.Read(buf); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Write(nil); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	c = open(backupComes)
	if _, err := c.Read(buf); err != nil {
		t.Fatal(err)
	}
	s.expect("b", 1<<40) // another server's
	s.expect("a", 2<<20)
	if n, err := take(c); n != most+2 || !errors.Is(err, catalog.ErrTooLarge) {
		t.Errorf("%d MiB of a backup came, %v", n, err)
	}
}
