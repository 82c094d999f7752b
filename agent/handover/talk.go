package handover

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// controlEnv names the descriptor over which a process talks to the one before it.
const controlEnv = "WEFT_HANDOVER"

// What the processes say to each other: one word a line, in this order.
const (
	wordConfigured = "configured" // successor: my configuration is good, I have bound nothing
	wordStart      = "start"      // predecessor: all but the proxies is given up
	wordServing    = "serving"    // successor: I serve
	wordMain       = "main"       // predecessor: you are the main process now
)

// maxWord bounds a line.
const maxWord = 64

type talk struct {
	conn net.Conn
	in   *bufio.Reader
}

func newTalk(c net.Conn) talk { return talk{c, bufio.NewReaderSize(c, maxWord)} }

func (t talk) say(word string) error {
	if _, err := io.WriteString(t.conn, word+"\n"); err != nil {
		return fmt.Errorf("hand-over: %q could not be said: %w", word, err)
	}
	return nil
}

func (t talk) hear(ctx context.Context, word string) error {
	stop := context.AfterFunc(ctx, func() { _ = t.conn.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	line, err := t.in.ReadSlice('\n')
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	if err != nil {
		return fmt.Errorf("hand-over: %q was not heard: %w", word, err)
	}
	if got := strings.TrimSpace(string(line)); got != word {
		return fmt.Errorf("hand-over: heard %q, want %q", got, word)
	}
	return nil
}

// Predecessor is the process that starts this one to take over from it.
type Predecessor struct{ talk talk }

// Before finds the process that this one takes over from, nil when it was started in
// the ordinary way.
func Before() (*Predecessor, error) {
	text := os.Getenv(controlEnv)
	if text == "" {
		return nil, nil
	}
	_ = os.Unsetenv(controlEnv)
	fd, err := strconv.Atoi(text)
	if err != nil || fd < firstFD {
		return nil, fmt.Errorf("hand-over: %s=%q is no descriptor; it is not meant to be set by hand", controlEnv, text)
	}
	f := os.NewFile(uintptr(fd), "handover")
	defer f.Close() //nolint:errcheck // FileConn duplicates
	c, err := net.FileConn(f)
	if err != nil {
		return nil, fmt.Errorf("hand-over: %w", err)
	}
	return &Predecessor{newTalk(c)}, nil
}

// AwaitStart says that the configuration is good, and waits until the predecessor has
// given up what only one process can have.
func (p *Predecessor) AwaitStart(ctx context.Context) error {
	if p == nil {
		return nil
	}
	if err := p.talk.say(wordConfigured); err != nil {
		return err
	}
	return p.talk.hear(ctx, wordStart)
}

// Serving says that this process serves, and waits until it is the main one.
func (p *Predecessor) Serving(ctx context.Context) error {
	if p == nil {
		return nil
	}
	defer p.talk.conn.Close() //nolint:errcheck // all has been said
	if err := p.talk.say(wordServing); err != nil {
		return err
	}
	return p.talk.hear(ctx, wordMain)
}

// Successor is a process that was started to take over from this one.
type Successor struct {
	child *child
	talk  talk
	once  sync.Once
}

// Launch starts program to take over, with the arguments of this process and all its
// sockets.
func Launch(program string, args []string, s *Sockets) (*Successor, error) {
	ours, theirs, err := pair()
	if err != nil {
		return nil, fmt.Errorf("hand-over: %w", err)
	}
	defer theirs.Close() //nolint:errcheck // the successor has its own
	files, names := s.files()
	cmd := exec.Command(program) //nolint:gosec // the program that runs here, by its path
	cmd.Args = args
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.ExtraFiles = append(slices.Clone(files), theirs)
	cmd.Env = append(environment(),
		"LISTEN_FDS="+strconv.Itoa(len(files)),
		"LISTEN_FDNAMES="+strings.Join(names, ":"),
		controlEnv+"="+strconv.Itoa(firstFD+len(files)))
	c, err := spawn(cmd)
	if err != nil {
		_ = ours.Close() // nobody is at the other end
		return nil, fmt.Errorf("hand-over: %w", err)
	}
	return &Successor{child: c, talk: newTalk(ours)}, nil
}

// environment is that of this process without what is meant for it alone. systemd says
// whose watchdog it is; it is that of the main process.
func environment() []string {
	own := []string{"LISTEN_PID=", "LISTEN_PIDFDID=", "LISTEN_FDS=", "LISTEN_FDNAMES=", "WATCHDOG_PID=", controlEnv + "="}
	return slices.DeleteFunc(os.Environ(), func(kv string) bool {
		return slices.ContainsFunc(own, func(o string) bool { return strings.HasPrefix(kv, o) })
	})
}

// PID is its process ID.
func (n *Successor) PID() int { return n.child.pid }

// Ended is closed when the process has ended.
func (n *Successor) Ended() <-chan struct{} { return n.child.ended }

// Configured waits until the successor says that its configuration is good.
func (n *Successor) Configured(ctx context.Context) error { return n.hear(ctx, wordConfigured) }

// Start tells the successor that it may bind what this process has given up.
func (n *Successor) Start() error { return n.talk.say(wordStart) }

// Serving waits until the successor serves.
func (n *Successor) Serving(ctx context.Context) error { return n.hear(ctx, wordServing) }

// Main tells the successor that it is the main process now.
func (n *Successor) Main() error {
	defer n.talk.conn.Close() //nolint:errcheck // all has been said
	return n.talk.say(wordMain)
}

// hear waits for a word. A successor that has ended says why in its error.
func (n *Successor) hear(ctx context.Context, word string) error {
	err := n.talk.hear(ctx, word)
	if err == nil {
		return nil
	}
	select {
	case <-n.child.ended:
		return errors.New("hand-over: the new process ended; what it wrote to its log says why")
	case <-time.After(lastWords):
		return err
	}
}

// lastWords is how long a process whose end of the talk is closed may take to end.
const lastWords = 200 * time.Millisecond

// Kill ends the successor, and waits until it has.
func (n *Successor) Kill() {
	n.once.Do(func() {
		n.child.kill()
		_ = n.talk.conn.Close()
	})
	<-n.child.ended
}
