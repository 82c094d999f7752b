package main

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// asProgram makes the test binary be weft itself.
const asProgram = "WEFT_TEST_AS_PROGRAM"

func TestMain(m *testing.M) {
	if os.Getenv(asProgram) != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

// program prepares the binary with args and an environment without settings.
func program(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0], args...)
	for _, kv := range os.Environ() {
		if !strings.HasPrefix(kv, "WEFT_") && !strings.HasPrefix(kv, "CONSUL_") {
			cmd.Env = append(cmd.Env, kv)
		}
	}
	cmd.Env = append(cmd.Env, asProgram+"=1")
	return cmd
}

// call runs a command in this process. Tests that do must not be parallel: the
// CLI library keeps its help flag in a global.
func call(env map[string]string, args ...string) (code int, stdout, stderr string) {
	return callWith("", env, args...)
}

func callWith(stdin string, env map[string]string, args ...string) (code int, stdout, stderr string) {
	var out, errs bytes.Buffer
	s := streams{in: strings.NewReader(stdin), out: &out, err: &errs, env: func(k string) string { return env[k] }}
	code = run(context.Background(), append([]string{"weft"}, args...), s)
	return code, out.String(), errs.String()
}

func TestExitCodesOfTheBinary(t *testing.T) {
	dir := t.TempDir()
	file, bad := dir+"/file", dir+"/bad.hcl"
	writeFile(t, bad, `service { name = "a" prot = 1 }`)
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name   string
		args   []string
		code   int
		stderr string
	}{
		{"version", []string{"version"}, exitOK, ""},
		{"help", []string{"--help"}, exitOK, ""},
		{"help of a command", []string{"help", "intention", "check"}, exitOK, ""},
		{"help of no command", []string{"help", "nope"}, exitUsage, `weft has no command "nope"`},
		{"unknown command", []string{"nope"}, exitUsage, `weft has no command "nope"`},
		{"misspelt command", []string{"intentions"}, exitUsage, `did you mean "intention"?`},
		{"unknown flag", []string{"agent", "-nope"}, exitUsage, "there is no flag -nope\nSee: weft agent -help"},
		{"no agent", []string{"members", "-http-addr", "127.0.0.1:1"}, exitFailure, "no agent at 127.0.0.1:1: is it running? (weft agent -dev)"},
		{"no agent to check with", []string{"intention", "check", "-http-addr=127.0.0.1:1", "a", "b"}, exitUsage, "no agent at"},
		{"bad configuration", []string{"agent", "-dev", "-hcl", "nope = 1"}, exitConfig, "-hcl:1: nope: unknown key"},
		{"bad flag value", []string{"agent", "-dev", "-http-port", "99999"}, exitConfig, "-http-port: ports.http: 99999 is not a port"},
		{"missing file", []string{"agent", "-dev", "-config-file", dir + "/none.hcl"}, exitConfig, "none.hcl: cannot be read"},
		{"no data directory", []string{"agent", "-server", "-bootstrap", "-bind", "127.0.0.1"}, exitConfig, "data_dir: must be set"},
		{"no address of this host", []string{"agent", "-server", "-bootstrap", "-bind", "192.0.2.1", "-serf-lan-port", "0", "-data-dir", dir + "/data"}, exitConfig, "bind_addr must be an address of this host"},
		{"data directory is a file", []string{"agent", "-dev", "-data-dir", file}, exitDataDir, "data directory " + file + " cannot be used"},
		{"bad service file", []string{"services", "register", "-http-addr=127.0.0.1:1", bad}, exitFailure, "bad.hcl:1: service.prot: unknown key"},
		{"bad entry file", []string{"config", "write", "-http-addr=127.0.0.1:1", bad}, exitFailure, "bad.hcl:1"},
		{"validate bad", []string{"validate", dir + "/none"}, exitFailure, "configuration is not valid"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			cmd := program(t, tc.args...)
			var errs bytes.Buffer
			cmd.Stderr = &errs
			code := exitOK
			if err := cmd.Run(); err != nil {
				var exit *exec.ExitError
				if !errors.As(err, &exit) {
					t.Fatal(err)
				}
				code = exit.ExitCode()
			}
			if code != tc.code || !strings.Contains(errs.String(), tc.stderr) {
				t.Errorf("exit code %d, want %d; stderr:\n%s\nwant %q", code, tc.code, errs.String(), tc.stderr)
			}
		})
	}
}
