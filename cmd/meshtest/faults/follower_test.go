//go:build faults

package faults_test

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/weftmesh/weft/cmd/meshtest/proc"
)

// applied is the index up to which a server's store has come.
func applied(n *proc.Node) (int, error) {
	self, err := n.Client.Agent().Self()
	if err != nil {
		return 0, err
	}
	raft, ok := self["Stats"]["raft"].(map[string]any)
	if !ok {
		return 0, errors.New("it says nothing of Raft")
	}
	return strconv.Atoi(fmt.Sprint(raft["applied_index"]))
}

// catchesUp waits until a server has what the leader has now, and tells how long that took.
func catchesUp(t *testing.T, n, lead *proc.Node, within time.Duration) time.Duration {
	t.Helper()
	begin := time.Now()
	want, err := applied(lead)
	must(t, err)
	proc.Eventually(t, within, n.Name+" catches up", func() error {
		have, err := applied(n)
		if err == nil && have < want {
			err = fmt.Errorf("%d of %d", have, want)
		}
		return err
	})
	return time.Since(begin)
}

// TestP10LaggingFollower takes a follower away for longer than the log lasts: it comes
// back by a backup, beneath load, also when it is cut off in the middle of that.
func TestP10LaggingFollower(t *testing.T) {
	c := proc.StartCluster(t, proc.ClusterOptions{
		Servers: 3, Namespaces: true,
		ServerArgs: []string{"-hcl", fmt.Sprintf(`raft_snapshot_threshold = %d raft_trailing_logs = 500 raft_snapshot_interval = "1s"`, proc.Count(1000, 5000))},
	})
	lead := c.Leader()
	lag := c.Followers()[0]
	value := strings.Repeat("x", proc.Count(2<<10, 32<<10))
	lag.Kill()
	l := startLoadOf(t, "p10", 32, 4*time.Millisecond, value, lead)
	proc.Eventually(t, 5*time.Minute, "more is written than the log keeps", func() error {
		if acked, _, _ := l.sum(); acked < proc.Count(2000, 6000) {
			return fmt.Errorf("%d", acked)
		}
		return nil
	})
	l.end()
	alone := startLoadOf(t, "alone", 16, 8*time.Millisecond, "", lead) // the same state, and nobody to catch up
	pause(proc.Count[time.Duration](2000, 15_000))
	alone.end()
	beside := startLoadOf(t, "beside", 16, 8*time.Millisecond, "", lead)
	lag.Launch()
	proc.Eventually(t, 30*time.Second, "it runs", func() error {
		_, err := lag.Client.Agent().Self()
		return err
	})
	c.Isolate(lag)
	pause(1500)
	c.Network.Heal()
	took := catchesUp(t, lag, lead, 60*time.Second)
	proc.Eventually(t, 60*time.Second, "it votes", func() error {
		list, _, _ := lead.CLI("operator", "raft", "list-peers")
		for _, line := range strings.Split(list, "\n") {
			if strings.HasPrefix(line, lag.Name+" ") && strings.Contains(line, "true") {
				return nil
			}
		}
		return errors.New(list)
	})
	beside.end()
	t.Logf("a follower that lacked %d writes of %d KiB, cut off while it got the backup, was up to date %s after the cable was back, with %d backups installed",
		len(l.acked), len(value)>>10, took.Round(10*time.Millisecond), strings.Count(lag.Log(), "restored a backup"))
	t.Logf("writes beside it: %s; alone: %s", spread(beside.took), spread(alone.took))
	l.judge(t, c.Servers...)
}

// TestP11StalledFollower freezes a follower again and again at load: it always comes
// back by itself.
func TestP11StalledFollower(t *testing.T) {
	c := proc.StartCluster(t, proc.ClusterOptions{Servers: 3})
	var took []time.Duration
	l := startLoad(t, "p11", 16, 8*time.Millisecond, c.Leader())
	for i := range proc.Count(5, 100) {
		lead, others := c.Roles()
		f := others[i%2]
		f.Freeze()
		time.Sleep(time.Duration(1000+(i*i*proc.Count(250, 577))%proc.Count(5000, 29_000)) * time.Millisecond)
		f.Thaw()
		took = append(took, catchesUp(t, f, lead, 60*time.Second))
	}
	t.Logf("%d of %d stalls were recovered from; back with the leader after: %s", len(took), len(took), spread(took))
	acked := l.judge(t, c.Servers...)
	t.Logf("beneath it there were %d writes, none for %s at the longest", acked, l.gap(l.begun).Round(time.Millisecond))
}

// TestP07FrozenLeader freezes the disk of the leader: another leads within seconds,
// the frozen one proves nothing to readers, and follows when its disk goes on.
func TestP07FrozenLeader(t *testing.T) {
	var mounts, dirs []string
	for range 3 {
		mnt := loopDisk(t, 256)
		mounts, dirs = append(mounts, mnt), append(dirs, filepath.Join(mnt, "data"))
	}
	c := proc.StartCluster(t, proc.ClusterOptions{Servers: 3, ServerDirs: dirs, ServerArgs: manyConns})
	var gaps []time.Duration
	for round := range proc.Count(2, 4) {
		lead, others := c.Roles()
		l := startLoad(t, fmt.Sprintf("p07-%d", round), 16, 10*time.Millisecond, others...)
		p := startProbes(t, others...)
		pause(500)
		freeze, thaw := freezable(t, mounts[slices.Index(c.Servers, lead)])
		freeze()
		at := time.Now()
		gap, _ := p.gapAfter(t, at, others...)
		gaps = append(gaps, gap)
		p.end()
		reads, refused := staleReads(t, p.store, lead, others[0], proc.Count(4*time.Second, 25*time.Second))
		thaw()
		back := catchesUp(t, lead, c.Leader(), 60*time.Second)
		t.Logf("frozen: writes again after %s; the frozen one answered %d consistent reads, none old, and refused %d; thawed: up to date after %s",
			gap.Round(time.Millisecond), reads, refused, back.Round(time.Millisecond))
		c.WaitServing(60 * time.Second)
		l.judge(t, c.Servers...)
	}
	t.Logf("from the frost on the leader's disk to the next write: %s", spread(gaps))
	if worst := slices.Max(gaps); worst > 10*time.Second {
		t.Errorf("nobody could write for %s", worst)
	}
}

// staleReads writes by one server and reads by another that may not answer, and must
// not answer with what is old.
func staleReads(t *testing.T, s store, from, by *proc.Node, length time.Duration) (answered, refused int) {
	t.Helper()
	for i, end := 0, time.Now().Add(length); time.Now().Before(end); i++ {
		want := strconv.Itoa(i)
		if done, err := s.put(by, "fresh", want, ""); !done {
			t.Logf("a write that is to be read: %v", err)
			continue
		}
		short := store{&http.Client{Transport: s.http.Transport, Timeout: time.Second}}
		for _, how := range []string{"", "?consistent"} {
			p, err := short.get(from, "fresh", how)
			switch {
			case err != nil:
				refused++
			case p.Value != want:
				t.Fatalf("%s was written, and then %s answered %q to a read %s", want, from.Name, p.Value, how)
			default:
				answered++
			}
		}
	}
	return answered, refused
}

// TestP08FullDiskOfThree fills the disk of the leader, and then of a follower, at load:
// nobody sees it.
func TestP08FullDiskOfThree(t *testing.T) {
	var mounts, dirs []string
	for range 3 {
		mnt := loopDisk(t, 192)
		mounts, dirs = append(mounts, mnt), append(dirs, filepath.Join(mnt, "data"))
	}
	c := proc.StartCluster(t, proc.ClusterOptions{Servers: 3, ServerDirs: dirs})
	for round, who := range []string{"leader", "follower"} {
		lead := c.Leader()
		n := lead
		if who == "follower" {
			n = c.Followers()[0]
		}
		others := slices.DeleteFunc(slices.Clone(c.Servers), func(o *proc.Node) bool { return o == n })
		l := startLoad(t, fmt.Sprintf("p08-%d", round), 16, 16*time.Millisecond, others...)
		pause(500)
		at := time.Now()
		file := fillSlowly(t, mounts[slices.Index(c.Servers, n)])
		pause(1500)
		if who == "leader" {
			proc.Eventually(t, 10*time.Second, "another leads", func() error {
				if c.Leader() == lead {
					return errors.New("the server with the full disk leads still")
				}
				return nil
			})
		}
		gap := l.gap(at)
		must(t, os.Remove(file))
		freed := time.Now()
		proc.Eventually(t, 20*time.Second, "the disk has room, as its server sees it", func() error {
			if i := strings.LastIndex(n.Log(), "there is room on the disk again"); i < strings.LastIndex(n.Log(), "the disk is nearly full") {
				return errors.New("it does not")
			}
			return nil
		})
		catchesUp(t, n, c.Leader(), 30*time.Second)
		_, failed, errs := l.sum()
		t.Logf("the disk of the %s is full: longest time without an acknowledged write %s, %d failed; with room again it was well after %s",
			who, gap.Round(time.Millisecond), failed, time.Since(freed).Round(10*time.Millisecond))
		for e, k := range errs {
			t.Errorf("%d × %s", k, e)
		}
		l.judge(t, c.Servers...)
	}
}

// fillSlowly fills a disk as a program that runs away does, some MiB at a time.
func fillSlowly(t *testing.T, mnt string) string {
	t.Helper()
	name := filepath.Join(mnt, "fill")
	f, err := os.Create(name)
	must(t, err)
	defer f.Close()
	for b := make([]byte, 1<<20); ; {
		if _, err = f.Write(b); err != nil {
			break
		}
		pause(15)
	}
	if !strings.Contains(err.Error(), "no space left") {
		t.Fatalf("filling the disk ended with %v", err)
	}
	return name
}
