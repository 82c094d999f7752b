package config

import (
	"strings"
	"testing"
	"time"
)

func TestLimits(t *testing.T) {
	c, err := load(t, "a.hcl", `
		limits {
			http_max_conns_per_client = 0
			rpc_handshake_timeout = "2s"
			rpc_client_timeout = "60s"
			rpc_max_conns_per_client = 100
			rpc_rate = 12.5
			rpc_max_burst = 7
			request_limits { mode = "enforcing" read_rate = 500 write_rate = 200.5 }
		}`)
	if err != nil {
		t.Fatal(err)
	}
	if len(c.Warnings) != 0 {
		t.Errorf("warnings: %q", c.Warnings)
	}
	want := defaultLimits()
	want.HTTPConnsPerClient, want.RPCHandshakeTimeout, want.RPCClientTimeout, want.RPCConnsPerClient = 0, 2*time.Second, time.Minute, 100
	want.RPCRate, want.RPCBurst, want.Mode, want.ReadRate, want.WriteRate = 12.5, 7, "enforcing", 500, 200.5
	if c.Limits != want {
		t.Errorf("limits: %+v, want %+v", c.Limits, want)
	}
	for _, key := range []string{"limits.http_max_conns_per_client", "limits.request_limits.mode", "log_level", "services"} {
		if !Reloads(key) {
			t.Errorf("%s is not reloaded", key)
		}
	}
	if Reloads("limits.kv_max_value_size") || Reloads("data_dir") || Reloads("nothing") {
		t.Error("a reload takes over what it does not")
	}
}

func TestLimitsRefused(t *testing.T) {
	for src, want := range map[string]string{
		`rpc_handshake_timeout = "0s"`:       "limits.rpc_handshake_timeout: must be above zero",
		`rpc_client_timeout = "0s"`:          "limits.rpc_client_timeout: must be above zero",
		`rpc_max_conns_per_client = -1`:      "limits.rpc_max_conns_per_client: must not be below 0",
		`rpc_max_burst = -1`:                 "limits.rpc_max_burst: must not be below 0",
		`kv_max_value_size = 0`:              "limits.kv_max_value_size: must be above 0",
		`request_limits { mode = "strict" }`: `limits.request_limits.mode: "strict" is none of disabled, permissive, enforcing`,
	} {
		if _, err := load(t, "a.hcl", `limits { `+src+` }`); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", src, err, want)
		}
	}
}
