package proc

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"
)

const clocksMove = true

// fakeClock takes the place of the kernel's __vdso_clock_gettime in the memory of one
// process: it asks the kernel by a system call, and adds the eight bytes of seconds
// that follow it to CLOCK_REALTIME. Monotonic clocks stay as they are, as they do
// when somebody sets the clock of a host.
var fakeClock = []byte{
	0xb8, 0xe4, 0x00, 0x00, 0x00, // mov eax, 228 (clock_gettime)
	0x0f, 0x05, // syscall
	0x85, 0xc0, // test eax, eax
	0x75, 0x0e, // jnz end
	0x85, 0xff, // test edi, edi (CLOCK_REALTIME)
	0x75, 0x0a, // jnz end
	0x48, 0x8b, 0x0d, 0x04, 0x00, 0x00, 0x00, // mov rcx, [rip+4]
	0x48, 0x01, 0x0e, // add [rsi], rcx
	0xc3, // end: ret
}

// clockOf replaces the clock of a process that has just begun a program and stands
// still, and returns where in its memory the offset in seconds lies.
func clockOf(pid int) (int64, error) {
	start, image, err := vdso(pid)
	if err != nil {
		return 0, err
	}
	f, err := elf.NewFile(bytes.NewReader(image))
	if err != nil {
		return 0, fmt.Errorf("the vDSO: %w", err)
	}
	symbols, err := f.DynamicSymbols()
	if err != nil {
		return 0, fmt.Errorf("the vDSO: %w", err)
	}
	for _, s := range symbols {
		if s.Name != "__vdso_clock_gettime" {
			continue
		}
		if s.Size < uint64(len(fakeClock)+8) {
			return 0, fmt.Errorf("the vDSO: its clock has %d bytes only", s.Size)
		}
		at := start + int64(s.Value) //nolint:gosec // an address of user space
		return at + int64(len(fakeClock)), poke(pid, at, append(bytes.Clone(fakeClock), make([]byte, 8)...))
	}
	return 0, errors.New("the vDSO has no clock")
}

func vdso(pid int) (start int64, image []byte, err error) {
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		return 0, nil, err
	}
	for line := range strings.Lines(string(maps)) {
		var end int64
		if !strings.HasSuffix(strings.TrimSpace(line), "[vdso]") {
			continue
		}
		if _, err := fmt.Sscanf(line, "%x-%x", &start, &end); err != nil {
			return 0, nil, err
		}
		mem, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
		if err != nil {
			return 0, nil, err
		}
		defer mem.Close()
		image = make([]byte, end-start)
		_, err = mem.ReadAt(image, start)
		return start, image, err
	}
	return 0, nil, errors.New("the process has no vDSO")
}

// setClock moves the wall clock of a process away from the true time, by whole seconds.
func setClock(pid int, at int64, off time.Duration) error {
	return poke(pid, at, binary.LittleEndian.AppendUint64(nil, uint64(off/time.Second))) //nolint:gosec // two's complement
}

func poke(pid int, at int64, b []byte) error {
	mem, err := os.OpenFile(fmt.Sprintf("/proc/%d/mem", pid), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer mem.Close()
	_, err = mem.WriteAt(b, at)
	return err
}

// startClocked starts a program whose wall clock can be moved. It stands still until
// the clock is replaced, so that it never sees another one.
func startClocked(cmd *exec.Cmd, bin string, off time.Duration) (at int64, err error) {
	runtime.LockOSThread() // who traces a process is a thread
	defer runtime.UnlockOSThread()
	cmd.SysProcAttr = &syscall.SysProcAttr{Ptrace: true}
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	pid := cmd.Process.Pid
	defer func() {
		if err != nil {
			_ = cmd.Process.Kill()
		}
	}()
	for {
		var status syscall.WaitStatus
		if _, err := syscall.Wait4(pid, &status, 0, nil); err != nil {
			return 0, err
		}
		if !status.Stopped() {
			return 0, fmt.Errorf("%s ended before it began", bin)
		}
		exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
		if err != nil {
			return 0, err
		}
		if want, err := filepath.EvalSymlinks(bin); err != nil || exe == want {
			break
		}
		if err := syscall.PtraceCont(pid, 0); err != nil { // that which puts it into a namespace
			return 0, err
		}
	}
	if at, err = clockOf(pid); err != nil {
		return 0, err
	}
	if err := setClock(pid, at, off); err != nil {
		return 0, err
	}
	return at, syscall.PtraceDetach(pid)
}
