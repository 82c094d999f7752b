package config

import (
	"fmt"
	"math"
	"time"
)

// Limits are what clients, agents and servers may ask.
type Limits struct {
	HTTPConnsPerClient  int           `key:"limits.http_max_conns_per_client"`
	KVMaxValueSize      int           `key:"limits.kv_max_value_size"`
	TxnMaxRequest       int           `key:"limits.txn_max_req_len"`
	RPCHandshakeTimeout time.Duration `key:"limits.rpc_handshake_timeout"`
	RPCClientTimeout    time.Duration `key:"limits.rpc_client_timeout"`
	RPCConnsPerClient   int           `key:"limits.rpc_max_conns_per_client"`
	RPCRate             float64       `key:"limits.rpc_rate"`
	RPCBurst            int           `key:"limits.rpc_max_burst"`
	// Mode is disabled, permissive or enforcing.
	Mode      string  `key:"limits.request_limits.mode"`
	ReadRate  float64 `key:"limits.request_limits.read_rate"`
	WriteRate float64 `key:"limits.request_limits.write_rate"`
}

func defaultLimits() Limits {
	return Limits{
		HTTPConnsPerClient: 200, KVMaxValueSize: 512 << 10, TxnMaxRequest: 512 << 10,
		RPCHandshakeTimeout: 5 * time.Second, RPCClientTimeout: 10 * time.Second, RPCConnsPerClient: 1024, RPCBurst: 1000,
		Mode: "disabled", ReadRate: -1, WriteRate: -1,
	}
}

func limitKeys() []Key {
	return with(Effective, "",
		Key{Name: "limits.http_max_conns_per_client", Type: Int, Default: "200", Reload: true, Doc: "How many connections to the HTTP API one client address may hold. More are answered with status 429. 0: any number."},
		Key{Name: "limits.kv_max_value_size", Type: Int, Default: "524288", Doc: "The largest value in the KV store, in bytes. More than 983040 does not fit a log entry and is taken for that."},
		Key{Name: "limits.txn_max_req_len", Type: Int, Default: "524288", Doc: "The largest body of a transaction, in bytes. More than 983040 is taken for that."},
		Key{Name: "limits.rpc_handshake_timeout", Type: Duration, Default: "5s", Reload: true, Doc: "How long a handshake at the server port may take. Acts on servers."},
		Key{Name: "limits.rpc_client_timeout", Type: Duration, Default: "10s", Reload: true, Doc: "How long one try of a request to a server may take, beside the time that it is to wait for a change."},
		Key{Name: "limits.rpc_max_conns_per_client", Type: Int, Default: "1024", Reload: true, Doc: "How many connections one address may hold to the server port. 0: any number. Acts on servers."},
		Key{Name: "limits.rpc_rate", Type: Float, Default: "0", Reload: true, Doc: "How many requests a second an agent without a server makes of the servers for its clients. More are answered with status 429. What the host says of itself and what its proxies need is not counted. 0: any number."},
		Key{Name: "limits.rpc_max_burst", Type: Int, Default: "1000", Reload: true, Doc: "How many of them may come at once."},
		Key{Name: "limits.request_limits.mode", Type: String, Default: "disabled", Reload: true, Doc: "What a server does with requests over read_rate and write_rate: \"enforcing\" refuses them, with status 429, or 503 where only the leader could do it; \"permissive\" counts and logs them, \"disabled\" neither. What hosts say of themselves, certificates and watches are not counted."},
		Key{Name: "limits.request_limits.read_rate", Type: Float, Default: "-1", Reload: true, Doc: "How many reads a second a server takes, and as many at once. -1: any number."},
		Key{Name: "limits.request_limits.write_rate", Type: Float, Default: "-1", Reload: true, Doc: "How many writes a second a server takes, and as many at once. -1: any number."},
	)
}

func (c *Config) validateLimits() error {
	l := &c.Limits
	for _, n := range []struct {
		key   string
		value int
	}{
		{"limits.http_max_conns_per_client", l.HTTPConnsPerClient},
		{"limits.rpc_max_conns_per_client", l.RPCConnsPerClient},
		{"limits.rpc_max_burst", l.RPCBurst},
	} {
		if n.value < 0 {
			return c.problem(n.key, "must not be below 0")
		}
	}
	for _, d := range []struct {
		key   string
		value time.Duration
	}{{"limits.rpc_handshake_timeout", l.RPCHandshakeTimeout}, {"limits.rpc_client_timeout", l.RPCClientTimeout}} {
		if d.value <= 0 {
			return c.problem(d.key, "must be above zero")
		}
	}
	for _, size := range []struct {
		key   string
		value *int
	}{{"limits.kv_max_value_size", &l.KVMaxValueSize}, {"limits.txn_max_req_len", &l.TxnMaxRequest}} {
		if *size.value < 1 {
			return c.problem(size.key, "must be above 0")
		}
		if *size.value > maxLogValue {
			c.Warnings = append(c.Warnings, fmt.Sprintf("%s: %s is taken for %d: more does not fit a log entry", c.where[size.key], size.key, maxLogValue))
			*size.value = maxLogValue
		}
	}
	for _, r := range []struct {
		key   string
		value float64
	}{
		{"limits.rpc_rate", l.RPCRate}, {"limits.request_limits.read_rate", l.ReadRate}, {"limits.request_limits.write_rate", l.WriteRate},
	} {
		if math.IsNaN(r.value) {
			return c.problem(r.key, "is no number")
		}
	}
	switch l.Mode {
	case "":
		l.Mode = "disabled"
	case "disabled", "permissive", "enforcing":
	default:
		return c.problem("limits.request_limits.mode", "%q is none of disabled, permissive, enforcing", l.Mode)
	}
	if l.Mode != "disabled" && !c.Server {
		c.Warnings = append(c.Warnings, "limits.request_limits acts on servers only, and this host has none: limits.rpc_rate bounds what an agent asks")
	}
	return nil
}

// Reloads tells whether a reload takes over the key.
func Reloads(key string) bool {
	switch key {
	case "services", "checks", "files", "node_meta": // gathered from several keys
		return true
	}
	k := table().keys[normalize(key)]
	return k != nil && k.Reload
}
