package checks

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/weftmesh/weft/catalog"
)

// maxDrain and maxDrainTime bound what is read of a body beyond what is kept: enough to
// say how long it was, not enough to be held up by an endless one.
const (
	maxDrain     = 1 << 20
	maxDrainTime = time.Second
)

// httpProbe asks a URL: 2xx passes, 429 warns, all else is critical. A connection
// serves one request, so that a listener that is gone is noticed.
func httpProbe(def *catalog.CheckDefinition, base *tls.Config) probe {
	client := &http.Client{Transport: &http.Transport{
		Proxy:                  http.ProxyFromEnvironment,
		DialContext:            (&net.Dialer{}).DialContext,
		TLSClientConfig:        tlsConfig(def, base, ""),
		DisableKeepAlives:      true,
		MaxResponseHeaderBytes: 64 << 10,
	}}
	client.CheckRedirect = func(next *http.Request, via []*http.Request) error {
		// 307 and 308 keep the method: who answers the check could make this host
		// send a write to any address that it reaches, the agent's own API first.
		if def.DisableRedirects || next.Method != http.MethodGet && next.Method != http.MethodHead {
			return http.ErrUseLastResponse
		}
		if len(via) >= 10 {
			return errors.New("stopped after 10 redirects") // net/http's own bound, which this function replaces
		}
		return nil
	}
	method := def.Method
	if method == "" {
		method = http.MethodGet
	}
	target := PlainURL(def.HTTP)
	shown := target
	if u, err := url.Parse(target); err == nil {
		shown = u.Redacted()
	}
	return func(ctx context.Context) (catalog.Status, string) {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		req, err := http.NewRequestWithContext(ctx, method, target, strings.NewReader(def.Body))
		if err != nil {
			return catalog.StatusCritical, err.Error()
		}
		setHeader(req, def.Header)
		resp, err := client.Do(req)
		if err != nil {
			return catalog.StatusCritical, err.Error()
		}
		defer resp.Body.Close()
		limit := outputMax(def.OutputMaxSize)
		// The verdict is in the status line, whether or not the body breaks off.
		body, _ := io.ReadAll(io.LimitReader(resp.Body, int64(limit)))
		drained := time.AfterFunc(maxDrainTime, cancel)
		more, _ := io.Copy(io.Discard, io.LimitReader(resp.Body, maxDrain))
		drained.Stop()
		output := fmt.Sprintf("HTTP %s %s: %s Output: %s", method, shown, resp.Status,
			truncated(string(body), len(body)+int(more), limit))
		return httpStatus(resp.StatusCode), output
	}
}

func setHeader(req *http.Request, header map[string][]string) {
	for name, values := range header {
		for _, v := range values {
			req.Header.Add(name, v)
		}
	}
	if host := req.Header.Get("Host"); host != "" {
		req.Host = host // net/http ignores the header and sends this
	}
	if req.Header.Get("User-Agent") == "" {
		req.Header.Set("User-Agent", UserAgent)
	}
	if req.Header.Get("Accept") == "" {
		req.Header.Set("Accept", "text/plain, text/*, */*")
	}
}

func httpStatus(code int) catalog.Status {
	switch {
	case code >= 200 && code <= 299:
		return catalog.StatusPassing
	case code == http.StatusTooManyRequests:
		return catalog.StatusWarning
	default:
		return catalog.StatusCritical
	}
}

// tlsConfig is that of a check. host is the name to expect where TLSServerName does
// not say and the client does not set it itself.
func tlsConfig(def *catalog.CheckDefinition, base *tls.Config, host string) *tls.Config {
	cfg := &tls.Config{MinVersion: tls.VersionTLS12}
	if base != nil {
		cfg = base.Clone()
	}
	cfg.ServerName = cmp.Or(def.TLSServerName, cfg.ServerName, host)
	cfg.InsecureSkipVerify = def.TLSSkipVerify //nolint:gosec // asked for, check by check
	return cfg
}
