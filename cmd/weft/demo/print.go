package demo

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
)

// style prints for terminals and for files.
type style struct{ on bool }

func (s style) wrap(code, text string) string {
	if !s.on {
		return text
	}
	return "\x1b[" + code + "m" + text + "\x1b[0m"
}

func (s style) title(t string) string { return s.wrap("1", t) }
func (s style) dim(t string) string   { return s.wrap("2", t) }
func (s style) good(t string) string  { return s.wrap("32", t) }
func (s style) bad(t string) string   { return s.wrap("31", t) }

func (s *show) printf(format string, args ...any) { fmt.Fprintf(s.out, format, args...) }

// begin prints the line that explains a step.
func (s *show) begin(text string) {
	s.step++
	s.printf("\n%s\n", s.style.title(fmt.Sprintf("%d  %s", s.step, text)))
}

func (s *show) fact(name, value string) {
	s.printf("   %s %s\n", s.style.dim(fmt.Sprintf("%-16s", name)), strings.TrimRight(value, "\n"))
}

func (s *show) more(format string, args ...any) {
	s.printf("   %-16s %s\n", "", fmt.Sprintf(format, args...))
}

// command runs a weft command as the reader would, prints it with its output, and
// insists on its exit code.
func (s *show) command(ctx context.Context, wantExit int, args ...string) error {
	s.printf("   %s\n", s.style.good("$ weft "+strings.Join(args, " ")))
	out, err := s.weft(ctx, args...)
	for _, l := range strings.Split(strings.TrimRight(out, "\n"), "\n") {
		s.printf("   %s\n", l)
	}
	got := 0
	if exit := new(exec.ExitError); errors.As(err, &exit) {
		got = exit.ExitCode()
	} else if err != nil {
		return err
	}
	if got != wantExit {
		return fmt.Errorf("weft %s: exit code %d, expected %d", strings.Join(args, " "), got, wantExit)
	}
	return nil
}

// weft runs a command and gives what it printed.
func (s *show) weft(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, s.bin, args...) //nolint:gosec // our own binary, with arguments of our own
	cmd.Env = append(os.Environ(), "WEFT_HTTP_ADDR="+s.dbHost.http, "WEFT_HTTP_TOKEN=", "CONSUL_HTTP_ADDR=", "CONSUL_HTTP_TOKEN=",
		"WEFT_CLUSTER_SECRET_FILE=")
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// fields picks some key=value pairs from a log line.
func fields(line string, keys ...string) string {
	var out []string
	for _, k := range keys {
		i := strings.Index(line, " "+k+"=")
		if i < 0 {
			continue
		}
		v := line[i+len(k)+2:]
		if q, err := strconv.QuotedPrefix(v); err == nil {
			v = q
		} else if sp := strings.IndexByte(v, ' '); sp >= 0 {
			v = v[:sp]
		}
		out = append(out, k+"="+v)
	}
	return strings.Join(out, " ")
}

func describe(cs *tls.ConnectionState) string {
	return fmt.Sprintf("%s, %s, key exchange %s", tls.VersionName(cs.Version), tls.CipherSuiteName(cs.CipherSuite), cs.CurveID)
}
