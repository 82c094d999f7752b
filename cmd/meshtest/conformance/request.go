package conformance

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"time"
)

// result is the answer of one step.
type result struct {
	status int
	header http.Header
	kind   string // json, text, binary or dns
	value  any
	raw    []byte
	took   time.Duration
}

// run is a case in progress with its agent.
type run struct {
	agent      *agent
	token      string
	env        vars
	blobs      map[string][]byte
	background map[string]chan answer
}

type answer struct {
	result *result
	err    error
}

// do sends the request, or the DNS query, of a step.
func (r *run) do(s *Step, env vars) (*result, error) {
	start := time.Now()
	if s.DNS == nil {
		res, err := r.http(s, env)
		if err == nil {
			res.took = time.Since(start)
		}
		return res, err
	}
	v, err := s.DNS.ask(r.agent.dns, env.subst(s.DNS.Name))
	return &result{kind: "dns", value: v, took: time.Since(start)}, err
}

// http writes the request byte by byte as the case has it: a client library would
// clean up just what the cases about malformed requests are about.
func (r *run) http(s *Step, env vars) (*result, error) {
	method, path, _ := strings.Cut(env.subst(s.Do), " ")
	timeout := 30 * time.Second
	if s.Timeout > 0 {
		timeout = seconds(s.Timeout)
	}
	conn, err := net.DialTimeout("tcp", r.agent.http, timeout)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(timeout))

	body, has := r.requestBody(s, env)
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s %s HTTP/1.1\r\nHost: %s\r\n", method, path, r.agent.http)
	for k, v := range r.requestHeader(s, env) {
		fmt.Fprintf(&b, "%s: %s\r\n", k, v)
	}
	if has || method == http.MethodPut || method == http.MethodPost {
		fmt.Fprintf(&b, "Content-Length: %d\r\n", len(body))
	}
	b.WriteString("\r\n")
	b.Write(body)
	// An agent that refuses a body may answer before it has all of it.
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		_, _ = conn.Write(b.Bytes())
	}()
	res, err := readAnswer(s, conn, method)
	conn.Close()
	<-sent
	return res, err
}

func (r *run) requestHeader(s *Step, env vars) map[string]string {
	header := map[string]string{}
	for k, v := range s.Headers {
		header[http.CanonicalHeaderKey(k)] = env.subst(v)
	}
	token := r.token
	if s.Token != nil {
		token = *s.Token
	}
	if _, set := header["X-Consul-Token"]; token != "" && !set {
		header["X-Consul-Token"] = env.subst(token)
	}
	return header
}

func (r *run) requestBody(s *Step, env vars) (body []byte, has bool) {
	switch {
	case s.JSON != nil:
		return env.substJSON(s.JSON), true
	case s.Raw != nil:
		return []byte(env.subst(*s.Raw)), true
	case len(s.Fill) == 2:
		n, _ := integer(s.Fill[1])
		return bytes.Repeat([]byte(text(s.Fill[0])), int(n)), true
	case s.BodyFrom != "":
		return r.blobs[s.BodyFrom], true
	default:
		return nil, false
	}
}

func readAnswer(s *Step, conn net.Conn, method string) (*result, error) {
	resp, err := http.ReadResponse(bufio.NewReader(conn), &http.Request{Method: method})
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	res := &result{status: resp.StatusCode, header: resp.Header}
	if s.Lines > 0 {
		lines := bufio.NewReader(resp.Body)
		for range s.Lines {
			line, err := lines.ReadBytes('\n')
			if res.raw = append(res.raw, line...); err != nil && !errors.Is(err, io.EOF) {
				return nil, err
			}
		}
	} else if res.raw, err = io.ReadAll(resp.Body); err != nil {
		return nil, err
	}
	if s.Binary {
		res.kind, res.value = "binary", valueOf(describeBinary(res.raw))
		return res, nil
	}
	res.kind, res.value = "text", string([]rune(string(res.raw)))
	contentType, _ := last(res.header, "Content-Type")
	if s.Lines == 0 && len(res.raw) > 0 && strings.HasPrefix(contentType, "application/json") {
		if v, err := parseJSON(res.raw); err == nil {
			res.kind, res.value = "json", v
		}
	}
	return res, nil
}

// describeBinary says what can be compared of a snapshot archive.
func describeBinary(raw []byte) map[string]any {
	gz, err := gzip.NewReader(bytes.NewReader(raw))
	if err != nil {
		return map[string]any{"gzip": false, "text": string(raw[:min(300, len(raw))])}
	}
	names := []string{}
	for files := tar.NewReader(gz); ; {
		h, err := files.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return map[string]any{"gzip": true, "tar": nil}
		}
		names = append(names, h.Name)
	}
	slices.Sort(names)
	return map[string]any{"gzip": true, "tar": names}
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }
