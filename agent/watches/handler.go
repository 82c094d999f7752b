package watches

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"syscall"
	"time"
)

const (
	// maxOutput is how much of what a handler says is kept.
	maxOutput = 4096
	// scriptLinger is how long output is still read when a command has ended.
	scriptLinger = time.Second
)

// script runs the command, which finds the new state as JSON on its standard input
// and the index in CONSUL_INDEX. It ends with ctx, with all that it started.
func (d Definition) script(ctx context.Context, index string, v any) (string, error) {
	body, err := json.Marshal(v)
	if err != nil {
		return "", err
	}
	args := d.args
	if d.shell != "" {
		args = []string{"/bin/sh", "-c", d.shell}
	}
	cmd := exec.CommandContext(ctx, args[0], args[1:]...) //nolint:gosec // what runs is what the configuration names
	out := &head{}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(append(body, '\n')), out, out
	cmd.Env = append(os.Environ(), "CONSUL_INDEX="+index, "WEFT_INDEX="+index)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = scriptLinger
	err = cmd.Run()
	return out.String(), err
}

// request sends the new state as JSON, with the index in a header.
func (d Definition) request(ctx context.Context, index string, v any) (string, error) {
	body, err := json.Marshal(v)
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(ctx, d.http.Timeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, d.http.Method, d.http.Path, bytes.NewReader(append(body, '\n')))
	if err != nil {
		return "", err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("X-Consul-Index", index)
	for name, values := range d.http.Header {
		for _, v := range values {
			req.Header.Add(name, v)
		}
	}
	c := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true, Proxy: http.ProxyFromEnvironment,
		TLSClientConfig: &tls.Config{InsecureSkipVerify: d.http.TLSSkipVerify}, //nolint:gosec // only where the configuration says so
	}}
	resp, err := c.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	text, _ := io.ReadAll(io.LimitReader(resp.Body, maxOutput)) // it is only for the log
	if resp.StatusCode < 200 || resp.StatusCode > 299 {
		return string(text), fmt.Errorf("the handler answered %s", resp.Status)
	}
	return string(text), nil
}

// head keeps the first bytes of what is written.
type head struct {
	kept  bytes.Buffer
	total int
}

// Write implements io.Writer.
func (h *head) Write(p []byte) (int, error) {
	h.total += len(p)
	h.kept.Write(p[:min(len(p), maxOutput-h.kept.Len())])
	return len(p), nil
}

func (h *head) String() string {
	if h.total > h.kept.Len() {
		return fmt.Sprintf("%s ... (captured %d of %d bytes)", h.kept.String(), h.kept.Len(), h.total)
	}
	return h.kept.String()
}
