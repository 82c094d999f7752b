package main

import (
	"context"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"strconv"
	"sync"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/connect"
	"github.com/weftmesh/weft/connect/identity"
)

// How a standalone proxy keeps in touch with its agent.
const (
	requestTimeout = 15 * time.Second
	feedWait       = 5 * time.Minute
	heartbeatEvery = 10 * time.Second
	heartbeatTTL   = 30 * time.Second
	// heartbeatGone is when the agent forgets a proxy that was killed.
	heartbeatGone = time.Minute
)

func heartbeatID(proxy string) string { return proxy + ":process" }

// httpSource is a watch over the snapshots that an agent makes for a proxy. Its
// indexes are its own: the agent's begin anew when it restarts.
type httpSource struct {
	client *client
	proxy  string

	mu     sync.Mutex
	last   *connect.Snapshot
	index  uint64 // ours
	remote uint64 // the agent's
}

var _ catalog.Watch[*connect.Snapshot] = (*httpSource)(nil)

// Next implements catalog.Watch.
func (s *httpSource) Next(ctx context.Context, after uint64) (*connect.Snapshot, uint64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.index <= after {
		snap := new(connect.Snapshot)
		params := url.Values{"index": {strconv.FormatUint(s.remote, 10)}, "wait": {feedWait.String()}}
		head, err := s.client.call(ctx, http.MethodGet, "/v1/agent/connect/proxy/"+s.proxy, params, nil, snap)
		if err != nil {
			s.remote = 0 // whatever comes next is news
			return nil, 0, s.client.explain(err)
		}
		index, err := strconv.ParseUint(head.Get("X-Consul-Index"), 10, 64)
		if err != nil || index == 0 {
			index = snap.Index
		}
		if index == s.remote {
			continue // the wait is over and nothing changed
		}
		s.remote, s.last = index, snap
		s.index++
	}
	return s.last, s.index, nil
}

const (
	// tellEvery is how often a proxy says how it is.
	tellEvery = 2 * time.Second
	// maxTold bounds what it says of itself, and maxCounts what it has counted; the agent
	// takes both, which is less than 2 MiB.
	maxTold   = 1 << 20
	maxCounts = maxTold - 1<<10
)

// told is what a proxy says of itself.
type told struct {
	connect.Status
	Metrics json.RawMessage `json:",omitempty"`
}

// tell has the agent know how the proxy is and what it has counted, until ctx ends, and
// once more then: what ended last counts, too.
func (s *httpSource) tell(ctx context.Context, status func() connect.Status, counts func() connect.Counts, log *slog.Logger) {
	failing := false
	for pause := tellEvery / 4; ; pause = tellEvery {
		t := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			t.Stop()
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), tellEvery)
			defer cancel()
			if err := s.tellOnce(last, status(), counts()); err != nil {
				log.Debug("the agent was not told how the proxy ended", "id", s.proxy, "err", s.client.explain(err))
			}
			return
		case <-t.C:
		}
		err := s.tellOnce(ctx, status(), counts())
		if err != nil && !failing && ctx.Err() == nil {
			level := slog.LevelDebug
			if refused := (api.StatusError{}); errors.Is(err, errManyCounts) || errors.As(err, &refused) && refused.Code == http.StatusBadRequest {
				level = slog.LevelWarn // it is there, and this will not pass by itself
			}
			log.Log(ctx, level, "the agent was not told all about the proxy, will retry", "id", s.proxy, "err", s.client.explain(err))
		}
		failing = err != nil
	}
}

var errManyCounts = fmt.Errorf("its metrics take more than %d bytes, and the agent's are without them", maxCounts)

func (s *httpSource) tellOnce(ctx context.Context, st connect.Status, counts connect.Counts) error {
	metrics, err := json.Marshal(counts)
	if err != nil {
		return err
	}
	var many error
	if len(metrics) > maxCounts {
		metrics, many = nil, errManyCounts
	}
	body, err := json.Marshal(told{st, metrics})
	if err == nil && len(body) > maxTold+len(metrics) { // those who matter most remain
		st.Upstreams, st.Peers, st.Tunnels = nil, nil, nil
		body, err = json.Marshal(told{st, metrics})
	}
	if err != nil {
		return err
	}
	ctx, cancel := proxyContext(ctx)
	defer cancel()
	_, err = s.client.call(ctx, http.MethodPut, "/v1/agent/connect/proxy/"+s.proxy, nil, body, nil)
	return errors.Join(err, many)
}

// httpSigner passes certificate requests to an agent.
type httpSigner struct {
	client  *client
	service catalog.Name
}

var _ connect.Signer = (*httpSigner)(nil)

// Sign implements connect.Signer.
func (s *httpSigner) Sign(ctx context.Context, csr []byte) (identity.Chain, error) {
	ctx, cancel := proxyContext(ctx)
	defer cancel()
	body := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: csr})
	var answer struct{ CertPEM string }
	_, err := s.client.call(ctx, http.MethodPut, "/v1/agent/connect/ca/sign/"+s.service, nil, body, &answer)
	if err != nil {
		return identity.Chain{}, s.client.explain(err)
	}
	if answer.CertPEM == "" {
		return identity.Chain{}, errNoCertificate
	}
	return identity.ParseChain([]byte(answer.CertPEM))
}

// heartbeat keeps the registration of a proxy alive, and makes it again when the
// agent has forgotten it.
type heartbeat struct {
	client       *client
	registration *api.AgentServiceRegistration
	log          *slog.Logger
}

func (h *heartbeat) register(ctx context.Context) error {
	ctx, cancel := proxyContext(ctx)
	defer cancel()
	return h.client.Agent().ServiceRegisterOpts(h.registration, api.ServiceRegisterOpts{}.WithContext(ctx))
}

// run beats until ctx ends and deregisters then.
func (h *heartbeat) run(ctx context.Context) {
	tick := time.NewTicker(heartbeatEvery)
	defer tick.Stop()
	failing := false
	for {
		select {
		case <-ctx.Done():
			h.deregister(context.WithoutCancel(ctx))
			return
		case <-tick.C:
		}
		err := h.beat(ctx)
		if err != nil && !failing && ctx.Err() == nil {
			h.log.Warn("the agent does not answer; the last policy stays in force", "id", h.registration.ID, "err", err)
		}
		failing = err != nil
	}
}

func (h *heartbeat) beat(ctx context.Context) error {
	ctx, cancel := proxyContext(ctx)
	defer cancel()
	opt := (&api.QueryOptions{}).WithContext(ctx)
	err := h.client.Agent().UpdateTTLOpts(heartbeatID(h.registration.ID), "", api.HealthPassing, opt)
	if notFound(err) {
		err = h.register(ctx)
	}
	return h.client.explain(err)
}

func (h *heartbeat) deregister(ctx context.Context) {
	ctx, cancel := proxyContext(ctx)
	defer cancel()
	if err := h.client.Agent().ServiceDeregisterOpts(h.registration.ID, (&api.QueryOptions{}).WithContext(ctx)); err != nil {
		h.log.Warn("the proxy stays registered", "id", h.registration.ID, "err", h.client.explain(err))
	}
}
