package agent

import (
	"context"
	"errors"
	"net"
	"reflect"
	"testing"

	"github.com/weftmesh/weft/catalog"
)

func TestNodeRowSaysAllAddresses(t *testing.T) {
	cfg := Config{
		NodeName: "n", NodeID: "0c4f6d1a-31a5-44c9-8f01-0d2c8bd3a9b1", Datacenter: "dc1", Advertise: "10.0.0.1", AdvertiseWAN: "198.51.100.7",
		TaggedAddresses: map[string]string{"lan_ipv6": "2001:db8::1", "rack": "10.9.9.9", "wan_ipv4": "198.51.100.8"},
		Locality:        &catalog.Locality{Region: "eu", Zone: "a"},
	}
	n := cfg.node(nil)
	want := map[string]string{
		"lan": "10.0.0.1", "lan_ipv4": "10.0.0.1", "lan_ipv6": "2001:db8::1", "wan": "198.51.100.7", "wan_ipv4": "198.51.100.8", "rack": "10.9.9.9",
	}
	if !reflect.DeepEqual(n.TaggedAddresses, want) || n.Locality.Zone != "a" {
		t.Errorf("%v %+v", n.TaggedAddresses, n.Locality)
	}
}

// TestAwaitServiceWithoutAPI: an agent that serves no HTTP API is not ready before
// it knows a leader.
func TestAwaitServiceWithoutAPI(t *testing.T) {
	a, err := New(Config{
		NodeName: "n", NodeID: "0c4f6d1a-31a5-44c9-8f01-0d2c8bd3a9b1", Datacenter: "dc1", Advertise: "127.0.0.1",
		Dial: func(context.Context) (net.Conn, error) { return nil, net.ErrClosed },
	})
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 10*readyPoll)
	defer cancel()
	if err := AwaitService(ctx, a); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("it was ready without a server: %v", err)
	}
}
