package handover

import (
	"context"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/weftmesh/weft/agent/dns"
	"github.com/weftmesh/weft/agent/sidecar"
	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/connect"
)

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

func fresh() *Sockets {
	return &Sockets{log: quiet(), inherited: map[string]*os.File{}, kept: map[string]*socket{}}
}

// TestSocketsOutlive keeps a listener over its own closing, takes it over, and gives it up.
func TestSocketsOutlive(t *testing.T) {
	s := fresh()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	s.Keep("tcp", addr, l.(syscall.Conn))
	_ = l.Close() // its copy stays
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatalf("what is kept does not listen: %v", err)
	}
	defer c.Close() //nolint:errcheck // only dialled
	next := fresh()
	next.inherited, s.kept = map[string]*os.File{nameOf("tcp", addr): s.kept[nameOf("tcp", addr)].file}, map[string]*socket{}
	if next.Take("unix", addr) != nil || next.TakePacket(addr) != nil {
		t.Error("it was taken for something else")
	}
	l = next.Take("tcp", addr)
	if l == nil || next.Take("tcp", addr) != nil {
		t.Fatal("it is not there, or twice")
	}
	if a, err := l.Accept(); err != nil {
		t.Errorf("who came in between is lost: %v", err)
	} else {
		_ = a.Close() // that it came is enough
	}
	_ = l.Close() // a copy stays
	next.Release("tcp", addr)
	if c, err := net.Dial("tcp", addr); err == nil {
		_ = c.Close() // it should not be
		t.Error("what was given up listens")
	}
}

// noViews knows nothing.
type noViews struct{}

func (noViews) Read(context.Context, catalog.Query) (*catalog.View, error) {
	return nil, catalog.ErrNotFound
}

// bothAt listens on a number that is free for TCP and for UDP.
func bothAt(t *testing.T) (net.Listener, net.PacketConn) {
	t.Helper()
	for {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		if p, err := net.ListenPacket("udp", l.Addr().String()); err == nil {
			return l, p
		}
		_ = l.Close() // another one
	}
}

// DNS of which one socket of two was left is bound anew, and left to the next process whole.
func TestHalfOfDNS(t *testing.T) {
	for _, network := range []string{"tcp", "udp"} {
		s := fresh()
		l, p := bothAt(t)
		addr := l.Addr().String()
		left := l.(syscall.Conn)
		if network == "udp" {
			left = p.(syscall.Conn)
		}
		f, err := second(left, addr)
		if err != nil {
			t.Fatal(err)
		}
		s.inherited[nameOf(network, addr)] = f
		_, _ = l.Close(), p.Close() // of the one a copy stays
		srv, err := dns.New(dns.Config{
			Addrs: []string{addr}, Views: noViews{}, Domain: "consul", Datacenter: "dc1", Logger: quiet(), Sockets: s,
		})
		if err != nil {
			t.Errorf("%s was left: %v", network, err)
			continue
		}
		srv.Close()
		if len(s.kept) != 2 {
			t.Errorf("%s was left: the next process gets %d sockets", network, len(s.kept))
		}
		s.Close()
	}
}

// TestSocketsDrop holds when the file of a Unix socket goes.
func TestSocketsDrop(t *testing.T) {
	for what, c := range map[string]struct {
		end  func(s *Sockets, path string)
		stay bool
	}{
		"given up":  {func(s *Sockets, path string) { s.Release("unix", path) }, false},
		"the end":   {func(s *Sockets, _ string) { s.Close() }, false},
		"passed on": {func(s *Sockets, _ string) { s.PassedOn() }, true},
	} {
		path := filepath.Join(t.TempDir(), "s")
		s := fresh()
		l, err := net.Listen("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		s.Keep("unix", path, l.(syscall.Conn))
		_ = l.Close() // its copy stays
		c.end(s, path)
		if _, err := os.Stat(path); (err == nil) != c.stay {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// TestStoreWhenHeard has a process that takes over say nothing to systemd before it is
// heard, and then what is true by then.
func TestStoreWhenHeard(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notify")
	systemd, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer systemd.Close() //nolint:errcheck // read only
	t.Setenv("NOTIFY_SOCKET", path)
	t.Setenv(controlEnv, "3")
	t.Setenv("LISTEN_FDS", "")
	s := Inherit(quiet())
	defer s.Close()
	var names []string
	for range 2 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		s.Keep("tcp", l.Addr().String(), l.(syscall.Conn))
		names = append(names, nameOf("tcp", l.Addr().String()))
		_ = l.Close() // its copy stays
		if len(names) == 1 {
			s.Release("tcp", l.Addr().String())
		}
	}
	s.Store()
	b := make([]byte, 1024)
	for _, want := range []string{"FDSTOREREMOVE=1\nFDNAME=" + names[0], "FDSTORE=1\nFDPOLL=0\nFDNAME=" + names[1]} {
		_ = systemd.SetReadDeadline(time.Now().Add(10 * time.Second)) // fails with the socket
		n, err := systemd.Read(b)
		if got := string(b[:n]); err != nil || got != want {
			t.Errorf("systemd hears %q, %v, want %q", got, err, want)
		}
	}
}

func TestNames(t *testing.T) {
	a, b := nameOf("tcp", "127.0.0.1:80"), nameOf("tcp", "127.0.0.1_80:1")
	if a == b || nameOf("tcp", "127.0.0.1:0") != "" || len(nameOf("unix", "/"+string(make([]byte, 500)))) > 120 {
		t.Errorf("%q %q", a, b)
	}
	for _, r := range a {
		if r == ':' || r < ' ' || r > '~' {
			t.Errorf("%q is no name for systemd", a)
		}
	}
}

// TestTalk has two processes agree, and not agree.
func TestTalk(t *testing.T) {
	ours, theirs, err := pair()
	if err != nil {
		t.Fatal(err)
	}
	defer theirs.Close() //nolint:errcheck // Before duplicates
	fd, err := duplicate(int(theirs.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv(controlEnv, strconv.Itoa(fd))
	p, err := Before()
	if err != nil || p == nil || os.Getenv(controlEnv) != "" {
		t.Fatalf("%v, %v, %q", p, err, os.Getenv(controlEnv))
	}
	n := &Successor{child: &child{ended: make(chan struct{})}, talk: newTalk(ours)}
	said := make(chan error, 1)
	go func() { said <- p.AwaitStart(t.Context()) }()
	if err := n.Configured(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := n.Start(); err != nil {
		t.Fatal(err)
	}
	if err := <-said; err != nil {
		t.Fatal(err)
	}
	go func() { said <- p.Serving(t.Context()) }()
	if err := n.Configured(t.Context()); err == nil {
		t.Error("one word was taken for another")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := n.Serving(ctx); err == nil {
		t.Error("it heard what was not said")
	}
	if err := n.Main(); err != nil {
		t.Error(err)
	}
	if err := <-said; err != nil {
		t.Error(err)
	}
	t.Setenv(controlEnv, "x")
	if _, err := Before(); err == nil {
		t.Error("x was taken for a descriptor")
	}
}

// source is a process with one proxy.
type source struct {
	snap     catalog.Latest[*connect.Snapshot]
	draining chan sidecar.Carried
	counted  chan *connect.Counts
}

func (s *source) Snapshot(id string) catalog.Watch[*connect.Snapshot] {
	if id == "web" {
		return &s.snap
	}
	none := &catalog.Latest[*connect.Snapshot]{}
	none.Close(catalog.ErrNotFound)
	return none
}
func (s *source) Listens(string) bool { return true }
func (s *source) Draining(_ string, _ int, said *sidecar.Carried) {
	if said == nil {
		return
	}
	select {
	case s.draining <- *said:
	default:
	}
}

func (s *source) Counted(pid int, counts *connect.Counts) {
	if pid == os.Getpid() {
		s.counted <- counts
	}
}

// TestFeedOfCounts has a drainer tell what it has counted: at once, and what it counted
// before it ended.
func TestFeedOfCounts(t *testing.T) {
	dir := t.TempDir()
	src := &source{counted: make(chan *connect.Counts, 100)} // what comes late holds nobody up
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	served := make(chan error, 1)
	go func() { served <- Serve(ctx, dir, src, quiet()) }()
	counting, stop := context.WithCancel(ctx)
	told := make(chan struct{})
	m := connect.NewMetrics(nil)
	go func() {
		defer close(told)
		Feed{Dir: dir, Log: quiet()}.Count(counting, m.Counts)
	}()
	const tunnels = "weft_proxy_tunnels_ended_total"
	for what, end := range []func(){stop, cancel} {
		select {
		case c := <-src.counted:
			if c.Number != uint64(what)+1 || len(c.Series[tunnels]) == 0 {
				t.Errorf("telling %d is number %d, with %v", what+1, c.Number, c.Series)
			}
		case <-ctx.Done():
			t.Error("what it counted is not heard")
		}
		end()
	}
	<-told
	if err := <-served; err != nil {
		t.Error(err)
	}
}

// TestFeedOfCountsToNobody: a successor that does not read does not hold up the end.
func TestFeedOfCountsToNobody(t *testing.T) {
	dir := t.TempDir()
	l, err := listenFeed(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ctx, end := context.WithCancel(t.Context())
	defer end()
	large := connect.Counts{Series: map[string][]connect.Series{"": {{Labels: []string{strings.Repeat("x", maxCounts/2)}}}}}
	told := make(chan struct{})
	go func() {
		defer close(told)
		Feed{Dir: dir, Log: quiet()}.Count(ctx, func() connect.Counts { end(); return large })
	}()
	select {
	case <-told:
	case <-time.After(feedWrite):
		t.Error("the end waits for who does not read")
	}
}

// TestFeedOfTooManyCounts: what the successor would not take is said once, not sent for ever.
func TestFeedOfTooManyCounts(t *testing.T) {
	dir := t.TempDir()
	l, err := listenFeed(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	large := connect.Counts{Series: map[string][]connect.Series{"": {{Labels: []string{strings.Repeat("x", maxCounts)}}}}}
	var log strings.Builder
	Feed{Dir: dir, Log: slog.New(slog.NewTextHandler(&log, nil))}.Count(t.Context(), func() connect.Counts { return large })
	if n := strings.Count(log.String(), "level=WARN"); n != 1 {
		t.Errorf("%d warnings: %s", n, log.String())
	}
}

// TestFeed has a drainer hear of policy, tell what it carries, and of a proxy that is gone.
func TestFeed(t *testing.T) {
	dir := t.TempDir()
	src := &source{draining: make(chan sidecar.Carried, 1)}
	src.snap.Publish(&connect.Snapshot{Service: "web"})
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	served := make(chan error, 1)
	go func() { served <- Serve(ctx, dir, src, quiet()) }()
	feed := Feed{Dir: dir, Log: quiet()}
	carried := func(ctx context.Context) sidecar.Carried {
		sleep(ctx, time.Millisecond)
		return sidecar.Carried{Peers: []connect.PeerStatus{{Source: "a"}}, Applied: 7}
	}
	gone := false
	feed.Follow(ctx, "other", carried, func(f sidecar.Fed) { gone = f.Gone })
	if !gone {
		t.Error("a proxy that nobody knows is not gone")
	}
	following, stop := context.WithCancel(ctx)
	heard := make(chan sidecar.Fed, 8)
	done := make(chan struct{})
	go func() {
		defer close(done)
		feed.Follow(following, "web", carried, func(f sidecar.Fed) { heard <- f })
	}()
	if f := <-heard; f.Snapshot == nil || f.Snapshot.Service != "web" || !f.Listens {
		t.Errorf("heard %+v", f)
	}
	src.snap.Publish(&connect.Snapshot{Service: "web", Local: "x"})
	if f := <-heard; f.Snapshot.Local != "x" {
		t.Errorf("heard %+v", f)
	}
	for p := range src.draining {
		if len(p.Peers) == 1 && p.Peers[0].Source == "a" && p.Applied == 7 {
			break
		}
	}
	stop()
	<-done
	cancel()
	if err := <-served; err != nil {
		t.Error(err)
	}
}

// TestFeedOfManyPairs: a drainer is heard whatever the names of those that it carries.
func TestFeedOfManyPairs(t *testing.T) {
	dir := t.TempDir()
	src := &source{draining: make(chan sidecar.Carried, 1)}
	src.snap.Publish(&connect.Snapshot{Service: "web"})
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	served := make(chan error, 1)
	go func() { served <- Serve(ctx, dir, src, quiet()) }()
	var pairs []connect.PeerStatus
	for i := range 2 * maxPeers {
		long := strings.Repeat("<", i%16*32)
		pairs = append(pairs, connect.PeerStatus{Source: long, Destination: long, Peer: long, Open: i})
	}
	carried := func(ctx context.Context) sidecar.Carried {
		sleep(ctx, time.Millisecond)
		return sidecar.Carried{Peers: pairs, Applied: 7}
	}
	following, stop := context.WithCancel(ctx)
	followed := make(chan struct{})
	go func() {
		defer close(followed)
		Feed{Dir: dir, Log: quiet()}.Follow(following, "web", carried, func(sidecar.Fed) {})
	}()
	select {
	case said := <-src.draining:
		if said.Applied != 7 || len(said.Peers) < 10 || len(said.Peers) > maxPeers {
			t.Errorf("heard of index %d and %d pairs", said.Applied, len(said.Peers))
		}
	case <-ctx.Done():
		t.Error("the drainer is not heard")
	}
	stop()
	<-followed
	cancel()
	if err := <-served; err != nil {
		t.Error(err)
	}
}
