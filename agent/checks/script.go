package checks

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/weftmesh/weft/catalog"
)

const (
	// scriptTimeout ends a command that has no timeout of its own.
	scriptTimeout = 30 * time.Second
	// scriptLinger is how long output is still read when the command has ended and
	// something that it started holds on to it.
	scriptLinger = time.Second
	// maxArgs and maxArgBytes bound a command line.
	maxArgs     = 1024
	maxArgBytes = 128 << 10
)

func validScript(def *catalog.CheckDefinition) error {
	if def.ScriptArgs[0] == "" {
		return refuse("Invalid check: Args names no command")
	}
	if len(def.ScriptArgs) > maxArgs {
		return refuse("Invalid check: Args has %d elements, at most %d are allowed", len(def.ScriptArgs), maxArgs)
	}
	size := 0
	for _, a := range def.ScriptArgs {
		if strings.ContainsRune(a, 0) {
			return refuse("Invalid check: Args holds a zero byte, which no command can be given")
		}
		size += len(a)
	}
	if size > maxArgBytes {
		return refuse("Invalid check: Args has %d bytes, at most %d are allowed", size, maxArgBytes)
	}
	return nil
}

// scriptProbe runs a command in a process group of its own: exit code 0 is passing,
// 1 is warning, anything else critical. When the time is up the whole group is killed.
func scriptProbe(def *catalog.CheckDefinition) probe {
	limit := outputMax(def.OutputMaxSize)
	return func(ctx context.Context) (catalog.Status, string) {
		out := &tail{limit: limit}
		cmd := exec.CommandContext(ctx, def.ScriptArgs[0], def.ScriptArgs[1:]...) //nolint:gosec // what runs is what an operator, who opened the gate, registered
		cmd.Stdout, cmd.Stderr = out, out
		cmd.Env = scriptEnv(os.Environ())
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		cmd.Cancel = func() error { return killGroup(cmd) }
		cmd.WaitDelay = scriptLinger
		err := cmd.Run()
		var exit *exec.ExitError
		switch {
		case ctx.Err() != nil:
			return catalog.StatusCritical, out.after("Timed out running check: the command and all that it started were killed")
		case err == nil:
			return catalog.StatusPassing, out.String()
		case errors.Is(err, exec.ErrWaitDelay):
			_ = killGroup(cmd) // what is left behind would pile up, run by run
			return byExitCode(cmd.ProcessState.ExitCode()), out.String()
		case errors.As(err, &exit) && exit.Exited():
			return byExitCode(exit.ExitCode()), out.String()
		default:
			return catalog.StatusCritical, out.after(err.Error())
		}
	}
}

func byExitCode(code int) catalog.Status {
	switch code {
	case 0:
		return catalog.StatusPassing
	case 1:
		return catalog.StatusWarning
	default:
		return catalog.StatusCritical
	}
}

// killGroup ends the command and what it started. A group that is gone is no mistake.
func killGroup(cmd *exec.Cmd) error {
	err := syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
	if errors.Is(err, syscall.ESRCH) {
		return os.ErrProcessDone
	}
	return err
}

// scriptEnv is the agent's environment without what its supervisor gave it alone.
func scriptEnv(env []string) []string {
	return slices.DeleteFunc(env, func(kv string) bool {
		name, _, _ := strings.Cut(kv, "=")
		switch name {
		case "NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES":
			return true
		}
		return false
	})
}

// tail keeps the end of what is written, where a command says what went wrong. It
// never holds more than twice its limit.
type tail struct {
	limit int
	total int
	kept  []byte
}

// Write implements io.Writer. exec writes from one goroutine when stdout and stderr
// are the same.
func (t *tail) Write(p []byte) (int, error) {
	t.total += len(p)
	if len(p) > t.limit {
		t.kept = append(t.kept[:0], p[len(p)-t.limit:]...)
		return len(p), nil
	}
	if len(t.kept)+len(p) > 2*t.limit {
		t.kept = append(t.kept[:0], t.kept[len(t.kept)-(t.limit-min(len(p), t.limit)):]...)
	}
	t.kept = append(t.kept, p...)
	return len(p), nil
}

func (t *tail) String() string {
	kept := t.kept[max(0, len(t.kept)-t.limit):]
	text := strings.ToValidUTF8(string(kept), "\uFFFD")
	if t.total > len(kept) {
		return fmt.Sprintf("Captured %d of %d bytes\n...\n%s", len(kept), t.total, text)
	}
	return text
}

// after is the output behind a sentence of our own.
func (t *tail) after(sentence string) string {
	if t.total == 0 {
		return sentence
	}
	return sentence + "\n" + t.String()
}
