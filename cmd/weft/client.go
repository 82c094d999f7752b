package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/consul/api"
	"github.com/urfave/cli/v2"
)

const agentFlags = "How to reach the agent"

// clientFlags are the flags of every command that asks an agent.
func clientFlags(own ...cli.Flag) []cli.Flag {
	str := func(name, usage string) cli.Flag {
		return &cli.StringFlag{Name: name, Usage: usage, Category: agentFlags}
	}
	return append(own,
		str("http-addr", "Where the agent's HTTP API is: host:port, https://host:port or unix:///path. WEFT_HTTP_ADDR or CONSUL_HTTP_ADDR; 127.0.0.1:8500 when none is set."),
		str("token", "The ACL token. WEFT_HTTP_TOKEN or CONSUL_HTTP_TOKEN."),
		str("token-file", "A file that holds the ACL token. WEFT_HTTP_TOKEN_FILE or CONSUL_HTTP_TOKEN_FILE."),
		str("ca-file", "The authority of the agent's certificate. WEFT_CACERT or CONSUL_CACERT."),
		str("ca-path", "A folder of such authorities. WEFT_CAPATH or CONSUL_CAPATH."),
		str("client-cert", "The certificate shown to the agent. WEFT_CLIENT_CERT or CONSUL_CLIENT_CERT."),
		str("client-key", "Its key. WEFT_CLIENT_KEY or CONSUL_CLIENT_KEY."),
		str("tls-server-name", "The name that the agent's certificate must carry. WEFT_TLS_SERVER_NAME or CONSUL_TLS_SERVER_NAME."),
		str("datacenter", "The datacenter to ask. The agent's own when it is not set."),
		&cli.BoolFlag{Name: "stale", Usage: "Let any server answer, however old its answer.", Category: agentFlags},
	)
}

// client asks an agent.
type client struct {
	*api.Client
	http  *http.Client
	base  url.URL
	addr  string // as shown to people
	token string
	auth  *api.HttpBasicAuth
	query api.QueryOptions
}

// dialTimeout bounds reaching the agent; answers may take as long as they take.
const dialTimeout = 10 * time.Second

const defaultHTTPAddr = "127.0.0.1:8500"

// newClient reads flags first, then WEFT_*, then CONSUL_*.
func newClient(c *cli.Context, s streams) (*client, error) {
	set := settings{c: c, env: s.env}
	cfg := &api.Config{
		Scheme:     "http",
		Datacenter: c.String("datacenter"),
		// A clone of the default transport would carry TLS settings of its own, which
		// the API client then leaves as they are.
		Transport: &http.Transport{
			Proxy: http.ProxyFromEnvironment, DialContext: (&net.Dialer{Timeout: dialTimeout}).DialContext,
			TLSHandshakeTimeout: dialTimeout, DisableKeepAlives: true,
		},
		TLSConfig: api.TLSConfig{
			Address:  set.get("tls-server-name", "TLS_SERVER_NAME"),
			CAFile:   set.get("ca-file", "CACERT"),
			CAPath:   set.get("ca-path", "CAPATH"),
			CertFile: set.get("client-cert", "CLIENT_CERT"),
			KeyFile:  set.get("client-key", "CLIENT_KEY"),
		},
	}
	if err := set.apply(cfg); err != nil {
		return nil, err
	}
	addr := set.get("http-addr", "HTTP_ADDR")
	if addr == "" {
		addr = defaultHTTPAddr
	}
	shown, err := setAddress(cfg, addr)
	if err != nil {
		return nil, err
	}
	cfg.HttpClient, err = api.NewHttpClient(cfg.Transport, cfg.TLSConfig)
	if err != nil {
		return nil, fmt.Errorf("TLS settings: %w", err)
	}
	ac, err := api.NewClient(cfg)
	if err != nil {
		return nil, err
	}
	return &client{
		Client: ac, http: cfg.HttpClient, addr: shown, token: cfg.Token, auth: cfg.HttpAuth,
		base:  url.URL{Scheme: cfg.Scheme, Host: cfg.Address},
		query: api.QueryOptions{Datacenter: cfg.Datacenter, AllowStale: c.Bool("stale")},
	}, nil
}

// settings looks a value up as flag, then WEFT_ variable, then CONSUL_ variable.
type settings struct {
	c   *cli.Context
	env func(string) string
}

func (s settings) get(flag, variable string) string {
	if flag != "" && s.c.IsSet(flag) {
		return s.c.String(flag)
	}
	if v := s.env("WEFT_" + variable); v != "" {
		return v
	}
	return s.env("CONSUL_" + variable)
}

func (s settings) bool(variable string, def bool) (bool, error) {
	v := s.get("", variable)
	if v == "" {
		return def, nil
	}
	b, err := strconv.ParseBool(v)
	if err != nil {
		return false, fmt.Errorf("WEFT_%s or CONSUL_%s: %q is neither true nor false", variable, variable, v)
	}
	return b, nil
}

func (s settings) apply(cfg *api.Config) error {
	ssl, err := s.bool("HTTP_SSL", false)
	if err != nil {
		return err
	}
	if ssl {
		cfg.Scheme = "https"
	}
	verify, err := s.bool("HTTP_SSL_VERIFY", true)
	if err != nil {
		return err
	}
	cfg.TLSConfig.InsecureSkipVerify = !verify
	if auth := s.get("", "HTTP_AUTH"); auth != "" {
		user, password, _ := strings.Cut(auth, ":")
		cfg.HttpAuth = &api.HttpBasicAuth{Username: user, Password: password}
	}
	cfg.Token, err = s.secret()
	return err
}

// secret is the token: a flag before a variable, a value before a file.
func (s settings) secret() (string, error) {
	if s.c.IsSet("token") {
		return s.c.String("token"), nil
	}
	file := s.get("token-file", "HTTP_TOKEN_FILE")
	if !s.c.IsSet("token-file") {
		if t := s.get("", "HTTP_TOKEN"); t != "" {
			return t, nil
		}
	}
	if file == "" {
		return "", nil
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return "", fmt.Errorf("token file: %w", err)
	}
	return strings.TrimSpace(string(b)), nil
}

// setAddress takes host:port, a URL or a Unix socket apart.
func setAddress(cfg *api.Config, addr string) (shown string, err error) {
	scheme, rest, ok := strings.Cut(addr, "://")
	switch {
	case !ok:
		cfg.Address = addr
		return addr, nil
	case scheme == "http" || scheme == "https":
		rest = strings.TrimSuffix(rest, "/")
		if strings.Contains(rest, "/") {
			return "", fmt.Errorf("the agent's address %q must not hold a path", addr)
		}
		cfg.Scheme, cfg.Address = scheme, rest
		return rest, nil
	case scheme == "unix":
		cfg.Address = "localhost"
		cfg.Transport.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", rest)
		}
		return addr, nil
	default:
		return "", fmt.Errorf("the agent's address %q begins with neither http://, https:// nor unix://", addr)
	}
}

// call makes a request that the API client has no method for. in is sent as it is
// when it is bytes, as JSON otherwise; out, when not nil, is read from JSON.
func (c *client) call(ctx context.Context, method, path string, params url.Values, in, out any) (http.Header, error) {
	body, err := requestBody(in)
	if err != nil {
		return nil, err
	}
	resp, err := c.do(ctx, method, path, params, body)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if out == nil {
		return resp.Header, nil
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxAnswer)).Decode(out); err != nil {
		return nil, fmt.Errorf("the agent's answer to %s %s cannot be read: %w", method, path, err)
	}
	return resp.Header, nil
}

// Bounds of what is read from an agent.
const (
	maxAnswer = 64 << 20
	maxError  = 64 << 10
)

// do makes a request and gives the answer, whose body the caller closes; any
// status but 200 is an error.
func (c *client) do(ctx context.Context, method, path string, params url.Values, body io.Reader) (*http.Response, error) {
	if params == nil {
		params = url.Values{}
	}
	if c.query.Datacenter != "" {
		params.Set("dc", c.query.Datacenter)
	}
	if c.query.AllowStale && method == http.MethodGet {
		params.Set("stale", "")
	}
	u := c.base
	u.Path = path
	u.RawQuery = params.Encode()
	req, err := http.NewRequestWithContext(ctx, method, u.String(), body)
	if err != nil {
		return nil, err
	}
	if c.token != "" {
		req.Header.Set("X-Consul-Token", c.token)
	}
	if c.auth != nil {
		req.SetBasicAuth(c.auth.Username, c.auth.Password)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode == http.StatusOK {
		return resp, nil
	}
	defer resp.Body.Close()
	b, _ := io.ReadAll(io.LimitReader(resp.Body, maxError)) // the status alone says enough
	return nil, api.StatusError{Code: resp.StatusCode, Body: strings.TrimSpace(string(b))}
}

func requestBody(in any) (io.Reader, error) {
	switch x := in.(type) {
	case nil:
		return nil, nil
	case []byte:
		return bytes.NewReader(x), nil
	default:
		b, err := json.Marshal(x)
		return bytes.NewReader(b), err
	}
}

// read gives the options of a query that stops with ctx.
func (c *client) read(ctx context.Context) *api.QueryOptions {
	return c.query.WithContext(ctx)
}

// write gives the options of a change that stops with ctx.
func (c *client) write(ctx context.Context) *api.WriteOptions {
	return (&api.WriteOptions{Datacenter: c.query.Datacenter}).WithContext(ctx)
}

var unexpectedCode = regexp.MustCompile(`(?s)Unexpected response(?: code)?:? (\d+)(?:: | \()(.*?)\)?$`)

// explain says err as the server said it, or what stood in the way of asking.
func (c *client) explain(err error) error {
	if err == nil {
		return nil
	}
	var se api.StatusError
	if errors.As(err, &se) {
		return statusWords(se.Code, se.Body)
	}
	if m := unexpectedCode.FindStringSubmatch(err.Error()); m != nil {
		code, _ := strconv.Atoi(m[1]) // the expression matches digits only
		return statusWords(code, strings.TrimSpace(m[2]))
	}
	var ue *url.Error
	if !errors.As(err, &ue) {
		return err
	}
	var op *net.OpError
	switch {
	case errors.As(err, &op) && op.Op == "dial":
		return fmt.Errorf("no agent at %s: is it running? (weft agent -dev)", c.addr)
	case strings.Contains(ue.Err.Error(), "server gave HTTP response to HTTPS client"):
		return fmt.Errorf("the agent at %s speaks plain HTTP: leave out https:// and WEFT_HTTP_SSL", c.addr)
	case errors.Is(ue.Err, io.EOF):
		return fmt.Errorf("the agent at %s closed the connection without an answer", c.addr)
	default:
		return fmt.Errorf("agent at %s: %w", c.addr, ue.Err)
	}
}

func statusWords(code int, body string) error {
	if body == "" {
		body = fmt.Sprintf("the agent answered %d %s", code, http.StatusText(code))
	}
	if code == http.StatusInternalServerError && strings.HasPrefix(body, "No cluster leader") {
		body += "; `weft operator raft list-peers -stale` on a server's host shows the servers, and the log of each says what it waits for"
	}
	return errors.New(body)
}

// notFound tells whether the server said 404.
func notFound(err error) bool {
	var se api.StatusError
	return errors.As(err, &se) && se.Code == http.StatusNotFound
}

// withClient makes an action that has a client and whose errors are explained.
func withClient(s streams, action func(c *cli.Context, cl *client) error) func(*cli.Context) error {
	return func(c *cli.Context) error {
		cl, err := newClient(c, s)
		if err != nil {
			return withCode(exitUsage, err)
		}
		err = action(c, cl)
		var exit *exitError
		var usage *usageError
		if errors.As(err, &exit) || errors.As(err, &usage) {
			return err
		}
		return cl.explain(err)
	}
}
