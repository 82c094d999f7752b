package mux

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Config is what New needs.
type Config struct {
	Listener net.Listener
	// TLS is the config of the next connection. It must choose among the protocols
	// that have listeners.
	TLS func() *tls.Config
	// Admit may refuse a connection after its handshake; nil admits all. A connection
	// that it admits is one that CloseIf sees.
	Admit func(tls.ConnectionState) error

	HandshakeTimeout time.Duration // 5 s when 0
	MaxHandshakes    int           // in progress at a time; 512 when 0
	MaxConns         int           // open at a time; 16,384 when 0
	MaxPerSource     int           // open at a time from one address; 256 when 0
	RatePerSource    float64       // handshakes a second from one address; 50 when 0

	Logger     *slog.Logger          // nil discards
	Registerer prometheus.Registerer // nil registers nowhere
}

// Mux is one port of many protocols.
type Mux struct {
	cfg Config
}

// New checks the configuration.
func New(cfg Config) (*Mux, error) {
	if cfg.Listener == nil || cfg.TLS == nil {
		return nil, errors.New("mux: a listener and a TLS config are needed")
	}
	return &Mux{cfg: cfg}, nil
}

// Listen gives the listener of an application protocol, of *tls.Conn whose handshake
// is done. Call it before Run; connections of other protocols are refused.
func (m *Mux) Listen(proto string) net.Listener { panic("mux") }

// Addr is where the port is.
func (m *Mux) Addr() net.Addr { return m.cfg.Listener.Addr() }

// Run accepts until ctx ends, and then closes the listeners and all connections.
func (m *Mux) Run(ctx context.Context) error { <-ctx.Done(); return nil }

// CloseIf closes the open connections of which gone is true, and tells how many. A
// connection that is admitted meanwhile is either seen by gone or by Config.Admit.
func (m *Mux) CloseIf(gone func(tls.ConnectionState) bool) int { return 0 }
