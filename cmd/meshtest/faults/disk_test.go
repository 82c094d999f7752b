//go:build faults

package faults_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/weftmesh/weft/cmd/meshtest/proc"
)

// loopDisk is a small file system of its own.
func loopDisk(t *testing.T, mib int64) (mnt string) {
	t.Helper()
	proc.NeedRoot(t, "to mount a small file system")
	mkfs, mount := proc.Need(t, "mkfs.ext4", "/sbin", "/usr/sbin"), proc.Need(t, "mount")
	dir := inMemory(t, 1)[0]
	image, mnt := filepath.Join(dir, "disk"), filepath.Join(dir, "mnt")
	must(t, os.MkdirAll(dir, 0o700))
	must(t, os.WriteFile(image, nil, 0o600))
	must(t, os.Truncate(image, mib<<20))
	must(t, os.Mkdir(mnt, 0o700))
	command(t, mkfs, "-q", "-m0", image)
	command(t, mount, "-o", "loop", image, mnt)
	t.Cleanup(func() { _ = exec.Command("umount", "-l", mnt).Run() })
	return mnt
}

// inMemory are directories for data whose syncs wait neither for the disk of this machine
// nor for each other, where a test is of something else.
func inMemory(t *testing.T, n int) (dirs []string) {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "weft-")
	must(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) }) // after the servers are dead
	for i := range n {
		dirs = append(dirs, filepath.Join(dir, strconv.Itoa(i)))
	}
	return dirs
}

// fill takes all space that is left; the file's name is returned.
func fill(t *testing.T, mnt string) string {
	t.Helper()
	name := filepath.Join(mnt, "fill")
	f, err := os.Create(name)
	must(t, err)
	_, err = io.Copy(f, zeros{})
	f.Close()
	if err == nil || !strings.Contains(err.Error(), "no space left") {
		t.Fatalf("filling the disk ended with %v", err)
	}
	return name
}

func server(t *testing.T, dir string) *proc.Agent {
	t.Helper()
	return proc.Start(t, "-server", "-bootstrap-expect=1", "-bind", "127.0.0.1", "-data-dir", dir)
}

// freezable freezes the file system until thaw is called, or the test ends.
func freezable(t *testing.T, mnt string) (freeze, thaw func()) {
	t.Helper()
	fsfreeze := proc.Need(t, "fsfreeze", "/sbin", "/usr/sbin")
	frozen := false
	thaw = func() {
		if frozen {
			frozen = false
			if out, err := exec.Command(fsfreeze, "-u", mnt).CombinedOutput(); err != nil {
				t.Errorf("fsfreeze -u: %v\n%s", err, out)
			}
		}
	}
	t.Cleanup(thaw)
	return func() { command(t, fsfreeze, "-f", mnt); frozen = true }, thaw
}

// TestP07FrozenDisk freezes the disk of a server that is alone: it says so, keeps
// proxying, and goes on when the disk does; what it acknowledged is there.
func TestP07FrozenDisk(t *testing.T) {
	t.Parallel()
	mnt := loopDisk(t, 256)
	freeze, thaw := freezable(t, mnt)
	a := server(t, filepath.Join(mnt, "data"))
	e := startEcho(t)
	up := proc.FreePorts(t, 1)[0]
	register(t, a, sidecar("db", e.port()))
	register(t, a, sidecar("web", 1, api.Upstream{DestinationName: "db", LocalBindPort: up}))
	intend(t, a, "web", "db", api.IntentionActionAllow)
	conn := through(t, net.JoinHostPort("127.0.0.1", strconv.Itoa(up)))

	freeze()
	written := make(chan error, 1)
	start := time.Now()
	go func() {
		_, err := a.Client.Connect().IntentionUpsert(&api.Intention{SourceName: "frozen", DestinationName: "db", Action: api.IntentionActionAllow}, nil)
		written <- err
	}()
	pause(4000)
	if err := ping(conn); err != nil {
		t.Errorf("the frozen disk cut a connection: %v", err)
	}
	thaw()
	err := <-written
	t.Logf("a write during 4 s of frost ended after %s: %v", time.Since(start).Round(10*time.Millisecond), err)
	proc.Eventually(t, 10*time.Second, "writes work again", func() error {
		_, err := a.Client.Connect().IntentionUpsert(&api.Intention{SourceName: "thawed", DestinationName: "db", Action: api.IntentionActionAllow}, nil)
		return err
	})
	if err == nil && !hasIntention(t, a, "frozen") {
		t.Error("the acknowledged write is lost")
	}
	if !a.Running() {
		t.Error("the process ended")
	}
}

func hasIntention(t *testing.T, a *proc.Agent, source string) bool {
	t.Helper()
	got, _, err := a.Client.Connect().Intentions(nil)
	must(t, err)
	return slices.ContainsFunc(got, func(i *api.Intention) bool { return i.SourceName == source })
}

// TestP07FrozenForGood: a disk that hangs for half a minute ends the process, with
// an exit code and a reason of its own.
func TestP07FrozenForGood(t *testing.T) {
	t.Parallel()
	mnt := loopDisk(t, 256)
	freeze, thaw := freezable(t, mnt)
	a := server(t, filepath.Join(mnt, "data"))
	t.Cleanup(thaw) // before the process is waited for
	freeze()
	proc.Eventually(t, 50*time.Second, "the server says that it stops", func() error {
		if !strings.Contains(a.Log(), "the disk hangs: a write") {
			return fmt.Errorf("it has not said so")
		}
		return nil
	})
	// A thread that waits for the disk keeps the process from ending, whatever it does.
	pause(8000)
	thaw()
	if code := a.Wait(20 * time.Second); code != 74 {
		t.Errorf("exit code %d, want 74\n%s", code, tail(a.Log()))
	}
	a.Exec()
}

func tail(s string) string { return s[max(0, len(s)-2000):] }

// TestP08FullDisk fills the disk under the agent: it refuses writes and says why,
// keeps proxying, and is well again, by itself, after space came back.
func TestP08FullDisk(t *testing.T) {
	t.Parallel()
	mnt := loopDisk(t, 160)
	a := server(t, filepath.Join(mnt, "data"))
	e := startEcho(t)
	up := proc.FreePorts(t, 1)[0]
	register(t, a, sidecar("db", e.port()))
	register(t, a, sidecar("web", 1, api.Upstream{DestinationName: "db", LocalBindPort: up}))
	intend(t, a, "web", "db", api.IntentionActionAllow)
	conn := through(t, net.JoinHostPort("127.0.0.1", strconv.Itoa(up)))

	file := fill(t, mnt)
	acked, refused := map[string]bool{}, ""
	for i := range 60 {
		name := "full" + strconv.Itoa(i)
		if _, err := a.Client.Connect().IntentionUpsert(&api.Intention{SourceName: name, DestinationName: "db", Action: api.IntentionActionAllow}, nil); err == nil {
			acked[name] = true
		} else {
			refused = err.Error()
		}
		pause(20)
	}
	t.Logf("%d writes were acknowledged, then: %s", len(acked), refused)
	if !strings.Contains(refused, "nothing was written") {
		t.Errorf("the refusal does not say what it means: %s", refused)
	}
	if !a.Running() {
		t.Fatalf("the process ended\n%s", tail(a.Log()))
	}
	if err := ping(conn); err != nil {
		t.Errorf("the full disk cut a running connection: %v", err)
	}
	must(t, os.Remove(file))
	start := time.Now()
	proc.Eventually(t, 10*time.Second, "writes work again", func() error {
		_, err := a.Client.Connect().IntentionUpsert(&api.Intention{SourceName: "after", DestinationName: "db", Action: api.IntentionActionAllow}, nil)
		return err
	})
	t.Logf("writes again %s after space came back", time.Since(start).Round(10*time.Millisecond))
	a.Kill()
	a.Exec()
	for name := range acked {
		if !hasIntention(t, a, name) {
			t.Errorf("%s was acknowledged on the full disk and is lost", name)
		}
	}
	through(t, net.JoinHostPort("127.0.0.1", strconv.Itoa(up)))
}

// TestP08Wall: where the space ends between two looks, the reserve is given up and
// writes wait for room; nothing that was acknowledged is lost.
func TestP08Wall(t *testing.T) {
	t.Parallel()
	proc.NeedRoot(t, "to mount a small file system")
	mnt := t.TempDir()
	command(t, proc.Need(t, "mount"), "-t", "tmpfs", "-o", "size=64m", "tmpfs", mnt)
	t.Cleanup(func() { _ = exec.Command("umount", "-l", mnt).Run() })
	a := server(t, filepath.Join(mnt, "data"))
	acked := map[string]bool{}
	var mu sync.Mutex
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				key := fmt.Sprintf("k-%d-%d", w, i)
				if _, err := a.Client.KV().Put(&api.KVPair{Key: key, Value: make([]byte, 2<<10)}, nil); err == nil {
					mu.Lock()
					acked[key] = true
					mu.Unlock()
				}
				pause(5) // so that they do not fill the disk again when there is room
			}
		})
	}
	ended := func() bool { return strings.Contains(a.Log(), "the reserve was given up") }
	for range 5 { // where a look comes before the next write, nothing is written any more
		pause(300)
		file := fill(t, mnt)
		pause(3000)
		must(t, os.Remove(file))
		pause(3000)
		if ended() || !a.Running() {
			break
		}
	}
	close(stop)
	wg.Wait()
	if !a.Running() {
		t.Fatalf("the process ended\n%s", tail(a.Log()))
	}
	if !ended() {
		t.Error("the space did not end")
	}
	a.Kill()
	a.Exec()
	lost := 0
	for key := range acked {
		if p, _, err := a.Client.KV().Get(key, nil); err != nil || p == nil {
			lost++
		}
	}
	t.Logf("%d writes acknowledged, %d lost", len(acked), lost)
	if lost > 0 {
		t.Errorf("%d of %d acknowledged writes are lost", lost, len(acked))
	}
}

// badDisk is a directory behind FUSE that fails when it is told to.
type badDisk struct {
	mnt   string
	in    io.WriteCloser
	lines *bufio.Scanner
	mu    sync.Mutex
}

var buildBadDisk = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "lyingdisk")
	if err != nil {
		return "", err
	}
	out := filepath.Join(dir, "lyingdisk")
	cmd := exec.Command("go", "build", "-C", "../lyingdisk", "-o", out, ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if b, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w: %s", err, b)
	}
	return out, nil
})

func newBadDisk(t *testing.T) *badDisk {
	t.Helper()
	proc.NeedRoot(t, "to mount a file system")
	program, err := buildBadDisk()
	must(t, err)
	dir, mnt := t.TempDir(), t.TempDir()
	cmd := exec.Command(program, dir, mnt)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	must(t, err)
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	d := &badDisk{mnt: mnt, in: in, lines: bufio.NewScanner(out)}
	t.Cleanup(func() {
		_ = in.Close()
		done := make(chan struct{})
		go func() { _ = cmd.Wait(); close(done) }()
		select {
		case <-done:
		case <-time.After(10 * time.Second):
			_ = syscall.Unmount(mnt, syscall.MNT_DETACH)
			_ = cmd.Process.Kill()
			<-done
		}
	})
	if !d.lines.Scan() || d.lines.Text() != "mounted" {
		t.Fatal("the file system was not mounted")
	}
	return d
}

func (d *badDisk) tell(t *testing.T, order string) string {
	t.Helper()
	d.mu.Lock()
	defer d.mu.Unlock()
	_, err := io.WriteString(d.in, order+"\n")
	must(t, err)
	if !d.lines.Scan() || !strings.HasPrefix(d.lines.Text(), "ok") {
		t.Fatalf("%s: %q", order, d.lines.Text())
	}
	return d.lines.Text()
}

// TestP09FailingSync: one sync that fails ends the process, with a reason and an
// exit code, and nothing that was acknowledged is lost.
func TestP09FailingSync(t *testing.T) {
	t.Parallel()
	d := newBadDisk(t)
	a := server(t, filepath.Join(d.mnt, "data"))
	acked, rounds := 0, proc.Count(4, 40)
	for round := range rounds {
		d.tell(t, fmt.Sprintf("eio %d", proc.Count(3+7*round, 1+round)))
		for i := 0; a.Running() && i < 500; i++ {
			if _, err := a.Client.KV().Put(&api.KVPair{Key: fmt.Sprintf("k%d", acked)}, nil); err == nil {
				acked++
			}
		}
		if code := a.Wait(20 * time.Second); code != 75 {
			t.Errorf("exit code %d, want 75\n%s", code, tail(a.Log()))
		}
		if log := a.Log(); !strings.Contains(log, "raft.db") || !strings.Contains(log, "check the disk") {
			t.Errorf("the log does not name the file and the remedy:\n%s", tail(log))
		}
		d.tell(t, "forget") // what a failed sync was about may be gone
		a.Exec()
	}
	keys, _, err := a.Client.KV().Keys("", "", nil)
	must(t, err)
	for i := range acked {
		if !slices.Contains(keys, fmt.Sprintf("k%d", i)) {
			t.Errorf("k%d was acknowledged and is lost", i)
		}
	}
	t.Logf("%d failed syncs, each ended the process; %d writes acknowledged, none lost", rounds, acked)
}

// TestP07StalledSync: a disk that only syncs slowly for a while is waited for.
func TestP07StalledSync(t *testing.T) {
	t.Parallel()
	d := newBadDisk(t)
	a := server(t, filepath.Join(d.mnt, "data"))
	d.tell(t, "stall 3s")
	start := time.Now()
	_, err := a.Client.KV().Put(&api.KVPair{Key: "slow"}, nil)
	t.Logf("a write while syncs take 3 s: %v after %s", err, time.Since(start).Round(10*time.Millisecond))
	d.tell(t, "stall 0s")
	proc.Eventually(t, 10*time.Second, "writes work again", func() error {
		_, err := a.Client.KV().Put(&api.KVPair{Key: "fast"}, nil)
		return err
	})
	if !a.Running() {
		t.Errorf("the process ended\n%s", tail(a.Log()))
	}
}

// TestP01LyingDisk kills the server in the middle of writes, and takes from the
// disk all that was not synced, as a power cut does.
func TestP01LyingDisk(t *testing.T) {
	t.Parallel()
	rounds := proc.Count(6, 200)
	d := newBadDisk(t)
	a := server(t, filepath.Join(d.mnt, "data"))
	var mu sync.Mutex
	acked := map[string]bool{}
	forgotten := 0
	for round := range rounds {
		stop := make(chan struct{})
		var wg sync.WaitGroup
		for w := range 8 {
			wg.Go(func() {
				for i := 0; ; i++ {
					select {
					case <-stop:
						return
					default:
					}
					key := fmt.Sprintf("k-%d-%d-%d", round, w, i)
					if _, err := a.Client.KV().Put(&api.KVPair{Key: key, Value: make([]byte, 300)}, nil); err == nil {
						mu.Lock()
						acked[key] = true
						mu.Unlock()
					}
				}
			})
		}
		pause(time.Duration(400 + 37*round%300))
		d.tell(t, "cut")
		a.Signal(syscall.SIGKILL)
		var n int
		_, err := fmt.Sscanf(d.tell(t, "forget"), "ok %d", &n)
		must(t, err)
		a.Kill()
		close(stop)
		wg.Wait()
		forgotten += n
		a.Exec()
	}
	keys, _, err := a.Client.KV().Keys("", "", nil)
	must(t, err)
	have := map[string]bool{}
	for _, k := range keys {
		have[k] = true
	}
	lost := 0
	for k := range acked {
		if !have[k] {
			lost++
		}
	}
	t.Logf("%d power cuts, %d blocks forgotten, %d writes acknowledged, %d lost", rounds, forgotten, len(acked), lost)
	if lost > 0 {
		t.Errorf("%d of %d acknowledged writes are lost", lost, len(acked))
	}
}
