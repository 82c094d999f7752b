//go:build linux

package proc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// Systemd is the machine's own systemd, of which another process is the first of
// namespaces made for it: whether the machine runs under systemd does not matter. It
// has the network of the test, and the files of the machine under a layer of its own,
// so that nothing that it or a unit writes stays. It runs weft.service, which is
// started by the test. Everything ends with the test, also when that is killed.
type Systemd struct {
	*Agent
	t      testing.TB
	dir    string // of the test's
	cgroup string // as the test sees it
	pid    int    // of systemd, as the test sees it
	err    buffer // of its start
	log    buffer // what systemd says
	ended  chan struct{}
}

// boot1 puts itself into the cgroup $2, which becomes the root of those that it sees,
// and goes on as boot2.
const boot1 = `set -e
echo 0 > "$2/cgroup.procs"
exec unshare --cgroup sh -c "$0" sh "$1"`

// boot2 makes the file systems in the directory $1, and becomes systemd. No unit of the
// machine is known to it, and no generator: it starts nothing by itself.
const boot2 = `set -e
mount --make-rprivate /
cd "$1"
mount -t tmpfs -o mode=755 tmpfs layer
mkdir layer/upper layer/work
mount -t overlay -o lowerdir=/,upperdir=layer/upper,workdir=layer/work overlay root
io=$PWD/io
cd root
mkdir -p proc sys dev run tmp mnt
rm -rf var/lib/weft var/lib/private/weft etc/weft.d etc/credstore etc/systemd/system.conf.d
mount -t proc proc proc
mount --bind proc/sys proc/sys
mount -o remount,bind,ro proc/sys
mount -t sysfs -o ro sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs -o mode=755 tmpfs run
mount -t tmpfs -o mode=1777 tmpfs tmp
mount -t tmpfs -o mode=755 tmpfs dev
for d in null zero full random urandom tty; do : > dev/$d; mount --bind /dev/$d dev/$d; done
mkdir dev/pts dev/shm run/test run/units run/none
mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts dev/pts
ln -s pts/ptmx dev/ptmx
mount -t tmpfs -o mode=1777 tmpfs dev/shm
mount --bind "$io" run/test
: > dev/kmsg
mount --bind "$io/systemd" dev/kmsg
for u in default sysinit basic network-online multi-user shutdown; do printf '[Unit]\nDescription=%s\nDefaultDependencies=no\n' $u > run/units/$u.target; done
pivot_root . mnt
cd /
umount -l /mnt
for s in /usr/lib/systemd/systemd /lib/systemd/systemd; do
  [ -x $s ] && exec env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin container=test SYSTEMD_UNIT_PATH=/run/units \
    SYSTEMD_GENERATOR_PATH=/run/none SYSTEMD_ENVIRONMENT_GENERATOR_PATH=/run/none $s --system --log-target=kmsg --show-status=no
done
exit 1`

var systemds atomic.Int64

// StartSystemd starts systemd and gives it the unit file and the user of packaging/,
// the binary and the configuration of a server that is alone, in HCL. It needs root.
func StartSystemd(t testing.TB, unit, sysusers, hcl string) *Systemd {
	t.Helper()
	NeedRoot(t, "to make the namespaces of another systemd")
	for _, p := range []string{"systemctl", "systemd-sysusers", "unshare", "nsenter", "mount", "pivot_root"} {
		Need(t, p, "/usr/sbin", "/sbin")
	}
	Need(t, "systemd", "/usr/lib/systemd", "/lib/systemd")
	s := &Systemd{Agent: Prepare(t, nil), t: t, dir: t.TempDir(), cgroup: makeCgroup(t), ended: make(chan struct{})}
	for _, d := range []string{"io", "layer", "root"} {
		if err := os.Mkdir(filepath.Join(s.dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	s.pipe("systemd", &s.log)
	s.pipe("weft", &s.Agent.log)
	s.boot()
	Eventually(t, 20*time.Second, "systemd runs", func() error {
		select {
		case <-s.ended:
			missing(t, "systemd as the first process of new namespaces:\n"+s.err.String()+s.log.String())
		default:
		}
		out, err := s.Systemctl("is-system-running")
		if err == nil && out != "running" {
			err = errors.New(out)
		}
		return err
	})
	s.Write("/usr/lib/sysusers.d/weft.conf", read(t, sysusers), 0o644)
	if out, err := s.inside("systemd-sysusers", "/usr/lib/sysusers.d/weft.conf"); err != nil {
		t.Fatalf("%s: %v\n%s", sysusers, err, out)
	}
	s.InstallProgram(s.bin)
	secret := filepath.Join(s.dir, "secret")
	s.MustCLI("secret", "new", "-out", secret)
	s.Write("/etc/credstore/weft-cluster-secret", read(t, secret), 0o600)
	s.Write("/etc/weft.d/weft.hcl", s.args[2]+"\n"+hcl, 0o644) // its ports
	s.Write("/run/units/weft.service", read(t, unit), 0o644)
	return s
}

// boot starts systemd. The kernel kills it, and with it all in its namespaces, when the
// thread that started it ends, and so with the test.
func (s *Systemd) boot() {
	cmd := exec.Command("sh", "-c", boot1, boot2, s.dir, s.cgroup)
	cmd.Stdout, cmd.Stderr = &s.err, &s.err
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWPID | syscall.CLONE_NEWNS | syscall.CLONE_NEWIPC | syscall.CLONE_NEWUTS,
		Pdeathsig:  syscall.SIGKILL,
	}
	started := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		defer close(s.ended)
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait() // its output says what it died of
		}
	}()
	if err := <-started; err != nil {
		missing(s.t, "new namespaces: "+err.Error())
	}
	s.pid = cmd.Process.Pid
	s.t.Cleanup(func() {
		if s.t.Failed() {
			out, _ := s.Systemctl("status", "weft.service") // what there is to see
			s.t.Logf("systemd:\n%s%s%s", s.err.String(), s.log.String(), out)
		}
		_ = cmd.Process.Kill() // ended already is as good
		<-s.ended
		removeCgroup(s.cgroup)
	})
}

// pipe has what is written to a file of io end up in b.
func (s *Systemd) pipe(name string, b io.Writer) {
	s.t.Helper()
	path := filepath.Join(s.dir, "io", name)
	if err := syscall.Mkfifo(path, 0o622); err != nil {
		s.t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0) // there is always one who writes, and so no end
	if err != nil {
		s.t.Fatal(err)
	}
	go func() { _, _ = io.Copy(b, f) }() // until it is closed
	s.t.Cleanup(func() { _ = f.Close() })
}

// inside runs a program in the namespaces of systemd.
func (s *Systemd) inside(program string, args ...string) (out string, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "nsenter", append([]string{"--target", strconv.Itoa(s.pid), "--mount", "--pid", "--uts", "--ipc", program}, args...)...)
	b, err := cmd.CombinedOutput()
	return strings.TrimSpace(string(b)), err
}

// Systemctl runs systemctl, and gives what it prints.
func (s *Systemd) Systemctl(args ...string) (out string, err error) {
	out, err = s.inside("systemctl", args...)
	if err != nil {
		err = fmt.Errorf("systemctl %s: %w: %s", strings.Join(args, " "), err, out)
	}
	return out, err
}

// MustSystemctl is Systemctl that fails the test when the command does.
func (s *Systemd) MustSystemctl(args ...string) string {
	s.t.Helper()
	out, err := s.Systemctl(args...)
	if err != nil {
		s.t.Fatal(err)
	}
	return out
}

// Show is a property of the unit, as systemctl show prints it.
func (s *Systemd) Show(property string) string {
	s.t.Helper()
	return s.MustSystemctl("show", "--property="+property, "--value", "weft.service")
}

// Count is Show of a number.
func (s *Systemd) Count(property string) int {
	s.t.Helper()
	n, err := strconv.Atoi(s.Show(property))
	if err != nil {
		s.t.Fatalf("%s: %v", property, err)
	}
	return n
}

// Write writes a file that systemd and the unit see, and nobody else.
func (s *Systemd) Write(path, text string, mode os.FileMode) {
	s.t.Helper()
	path = s.path(path)
	err := os.MkdirAll(filepath.Dir(path), 0o755)
	if err == nil {
		err = os.WriteFile(path, []byte(text), mode)
	}
	if err != nil {
		s.t.Fatal(err)
	}
}

// InstallProgram puts a program where the unit starts one from, as a package manager does.
func (s *Systemd) InstallProgram(program string) {
	s.t.Helper()
	syscall.ForkLock.RLock() // a child that has it open for writing would keep it from being run
	s.Write("/usr/bin/weft.new", read(s.t, program), 0o755)
	syscall.ForkLock.RUnlock()
	if err := os.Rename(s.path("/usr/bin/weft.new"), s.path("/usr/bin/weft")); err != nil {
		s.t.Fatal(err)
	}
}

// path is what a file of systemd's is called here.
func (s *Systemd) path(path string) string {
	return filepath.Join("/proc", strconv.Itoa(s.pid), "root", path)
}

// Processes are those of the unit, as the test sees them, by what the unit calls them.
func (s *Systemd) Processes() map[int]int {
	s.t.Helper()
	pids := map[int]int{}
	b, err := os.ReadFile(filepath.Join(s.cgroup, "system.slice", "weft.service", "cgroup.procs"))
	if err != nil {
		return pids // there is none
	}
	for _, f := range strings.Fields(string(b)) {
		pid, err := strconv.Atoi(f)
		if err != nil {
			s.t.Fatal(err)
		}
		status, _ := os.ReadFile(filepath.Join("/proc", f, "status")) // gone meanwhile, if that fails
		for line := range strings.Lines(string(status)) {
			if names := strings.Fields(line); len(names) > 1 && names[0] == "NSpid:" {
				if own, err := strconv.Atoi(names[len(names)-1]); err == nil {
					pids[own] = pid
				}
			}
		}
	}
	return pids
}

// Main is the main process, as the test sees it, 0 when there is none.
func (s *Systemd) Main() int {
	s.t.Helper()
	return s.Processes()[s.Count("MainPID")]
}

// Said tells what systemd wrote to its log.
func (s *Systemd) Said() string { return s.log.String() }

// WaitServing waits until the agent serves, whichever process it is.
func (s *Systemd) WaitServing(within time.Duration) {
	s.t.Helper()
	waitServing(s.t, s.Agent, within)
}

func read(t testing.TB, file string) string {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// makeCgroup makes a cgroup in the hierarchy of version 2, wherever that is mounted, and
// removes those of processes that ended without doing so.
func makeCgroup(t testing.TB) string {
	t.Helper()
	top := ""
	for line := range strings.Lines(read(t, "/proc/self/mountinfo")) {
		before, after, _ := strings.Cut(line, " - ")
		if at := strings.Fields(before); strings.HasPrefix(after, "cgroup2 ") && len(at) > 4 {
			top = at[4]
		}
	}
	if top == "" {
		missing(t, "cgroups of version 2, which systemd puts units into: mount -t cgroup2 cgroup2 DIRECTORY")
	}
	left, _ := filepath.Glob(filepath.Join(top, "weft-test-*")) // the pattern is a good one
	for _, dir := range left {
		name := strings.Split(filepath.Base(dir), "-")
		if pid, err := strconv.Atoi(name[2]); err == nil && syscall.Kill(pid, 0) != nil {
			removeCgroup(dir)
		}
	}
	dir := filepath.Join(top, fmt.Sprintf("weft-test-%d-%d", os.Getpid(), systemds.Add(1)))
	if err := os.Mkdir(dir, 0o755); err != nil {
		missing(t, "a cgroup for systemd: "+err.Error())
	}
	return dir
}

// removeCgroup removes a cgroup and those in it, none of which has a process any more.
func removeCgroup(dir string) {
	entries, _ := os.ReadDir(dir) // gone is as good
	for _, e := range entries {
		if e.IsDir() {
			removeCgroup(filepath.Join(dir, e.Name()))
		}
	}
	_ = os.Remove(dir) // what stays is removed by the next test
}
