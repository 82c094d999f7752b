package wire

import (
	"bytes"
	"encoding/json"
	"errors"
	"reflect"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/weftmesh/weft/catalog"
)

// nouns are all that travels or is stored.
func nouns() []any {
	out := []any{
		&catalog.Node{}, &catalog.Service{}, &catalog.Check{}, &catalog.CheckDefinition{},
		&catalog.ServiceRegistration{}, &catalog.ServiceIntentions{}, &catalog.Intention{},
		&catalog.Root{}, &catalog.CAConfig{}, &catalog.Leaf{}, &catalog.Member{},
		&catalog.NodeState{}, &catalog.Instance{}, &catalog.ServiceSummary{}, &catalog.View{}, &catalog.Query{},
		&SyncRequest{}, &SyncReply{}, &ApplyRequest{}, &ApplyReply{}, &ReadRequest{}, &ReadReply{},
		&WatchRequest{}, &WatchEvent{}, &SignRequest{}, &SignReply{}, &SetCAConfigRequest{},
		&SetCAConfigReply{}, &StatusRequest{}, &StatusReply{},
		&catalog.KVPair{}, &catalog.KeyDelay{}, &catalog.Session{}, &catalog.TxnResult{}, &catalog.UserEvent{},
		&TxnRequest{}, &TxnReply{}, &RenewSessionRequest{}, &RenewSessionReply{},
	}
	for _, t := range commandTypes() {
		c, _ := catalog.NewCommand(t)
		out = append(out, c)
	}
	return out
}

func empty(v any) any { return reflect.New(reflect.TypeOf(v).Elem()).Interface() }

func toJSON(t *testing.T, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatalf("%T: %v", v, err)
	}
	return string(b)
}

// TestRoundTrip holds JSON → wire → JSON equal for every noun, that equal values
// have equal bytes, and that nothing decoded points into the input.
func TestRoundTrip(t *testing.T) {
	for _, noun := range nouns() {
		t.Run(strings.TrimPrefix(reflect.TypeOf(noun).String(), "*"), func(t *testing.T) {
			for seed := range uint64(200) {
				v := empty(noun)
				newFiller(seed).fill(v)
				b, err := Marshal(v)
				if err != nil {
					t.Fatal(err)
				}
				want := toJSON(t, v)
				in := bytes.Clone(b)
				got := empty(noun)
				if err := Unmarshal(in, got); err != nil {
					t.Fatalf("seed %d: %v", seed, err)
				}
				for i := range in {
					in[i] = 0xff
				}
				if g := toJSON(t, got); g != want {
					t.Fatalf("seed %d:\nsent %s\ngot  %s", seed, want, g)
				}
				again, err := Marshal(got)
				if err != nil || !bytes.Equal(again, b) {
					t.Fatalf("seed %d: encoded again, the bytes differ (%v)", seed, err)
				}
			}
		})
	}
}

// TestFromJSON holds the same for what comes in over HTTP: decoded strictly, opaque
// maps included.
func TestFromJSON(t *testing.T) {
	body := `{"Name":"web","Port":80,"Meta":{},"Tags":[],"TaggedAddresses":{"lan":{"Address":"10.0.0.1","Port":8}},
	  "Proxy":{"Config":{"a":1,"b":1.5,"big":9007199254740991,"s":"x","n":null,"l":[1,"y",{"z":[]}],"m":{},"t":true},
	  "Upstreams":[{"DestinationName":"db","LocalBindPort":9191,"Config":{"connect_timeout_ms":500}}]}}`
	var reg catalog.ServiceRegistration
	if err := catalog.DecodeJSON([]byte(body), &reg); err != nil {
		t.Fatal(err)
	}
	b, err := Marshal(&reg)
	if err != nil {
		t.Fatal(err)
	}
	var got catalog.ServiceRegistration
	if err := Unmarshal(b, &got); err != nil {
		t.Fatal(err)
	}
	if want, g := toJSON(t, &reg), toJSON(t, &got); g != want {
		t.Fatalf("sent %s\ngot  %s", want, g)
	}
}

func TestTimeKeepsOffset(t *testing.T) {
	at := time.Date(2026, 3, 1, 12, 0, 0, 5, time.FixedZone("", 2*3600))
	b, err := Marshal(&catalog.Root{NotBefore: at})
	if err != nil {
		t.Fatal(err)
	}
	var r catalog.Root
	if err := Unmarshal(b, &r); err != nil {
		t.Fatal(err)
	}
	if got := r.NotBefore.Format(time.RFC3339Nano); got != "2026-03-01T12:00:00.000000005+02:00" {
		t.Fatal(got)
	}
}

// TestUnknownField: a message of a newer version is read by an older one.
func TestUnknownField(t *testing.T) {
	b, err := Marshal(&struct {
		Token  string
		Newer  map[string][]int
		Newest time.Time
	}{"t", map[string][]int{"a": {1}}, time.Unix(1, 0)})
	if err != nil {
		t.Fatal(err)
	}
	var req StatusRequest
	if err := Unmarshal(b, &req); err != nil || req.Token != "t" {
		t.Fatal(req, err)
	}
}

func TestViewIsEncodedOnce(t *testing.T) {
	v := &catalog.View{Query: catalog.Query{Kind: catalog.QueryNodes}, Index: 4, Nodes: []*catalog.Node{{Node: "a"}}}
	_, first, err := split(&WatchEvent{View: v, Current: 4})
	if err != nil {
		t.Fatal(err)
	}
	_, second, err := split(&ReadReply{View: v})
	if err != nil {
		t.Fatal(err)
	}
	if len(first) == 0 || &first[0] != &second[0] {
		t.Fatal("the view was encoded twice")
	}
	buf, err := grpcCodec{}.Marshal(&WatchEvent{View: v, Current: 9})
	if err != nil {
		t.Fatal(err)
	}
	var e WatchEvent
	if err := (grpcCodec{}).Unmarshal(buf, &e); err != nil {
		t.Fatal(err)
	}
	if e.Current != 9 || e.View.Index != 4 || e.View.Nodes[0].Node != "a" {
		t.Fatalf("%+v", e)
	}
}

func TestUnmarshalRefuses(t *testing.T) {
	good, err := Marshal(&SyncReply{Index: 1})
	if err != nil {
		t.Fatal(err)
	}
	deep := append(bytes.Repeat([]byte{0x91}, 1<<20), 0xc0)
	huge := []byte{0xdf, 0xff, 0xff, 0xff, 0xff} // a map of four thousand million entries
	for name, b := range map[string][]byte{
		"empty": {}, "cut": good[:len(good)-1], "trailing": append(bytes.Clone(good), 0),
		"deep": deep, "huge": huge, "huge string": {0xdb, 0xff, 0xff, 0xff, 0xff},
	} {
		for _, v := range []any{&SyncReply{}, &ReadReply{}, &WatchEvent{}, new(any), &catalog.View{}, &catalog.CAConfig{}} {
			if name == "trailing" {
				if _, ok := v.(*SyncReply); !ok {
					continue
				}
			}
			if err := Unmarshal(b, v); !errors.Is(err, catalog.ErrInvalid) {
				t.Errorf("%s into %T: %v", name, v, err)
			}
		}
	}
}

// TestLargeValue: the effort for a value grows with its length, not with the square of
// it, whether it comes as a command, as a log entry or in an opaque map.
func TestLargeValue(t *testing.T) {
	for _, size := range []int{100, 4 << 10, 64 << 10, 512 << 10, 2 << 20, MaxRequest - 1<<10} {
		cmd := &catalog.SetKey{Pair: catalog.KVPair{Key: "k", Value: bytes.Repeat([]byte{'x'}, size)}}
		request, err := Marshal(&ApplyRequest{Command: Command{cmd}})
		if err != nil {
			t.Fatal(err)
		}
		opaque, err := Marshal(map[string]any{"v": cmd.Pair.Value})
		if err != nil {
			t.Fatal(err)
		}
		decoders := map[string]func() error{
			"request": func() error {
				var req ApplyRequest
				err := Unmarshal(request, &req)
				if got, ok := req.Command.Command.(*catalog.SetKey); err == nil && (!ok || !bytes.Equal(got.Pair.Value, cmd.Pair.Value)) {
					t.Errorf("%d bytes: another value came back", size)
				}
				return err
			},
			"opaque": func() error { var v any; return Unmarshal(opaque, &v) },
		}
		if entry, err := EncodeEntry(cmd); err == nil {
			decoders["entry"] = func() error { _, err := DecodeEntry(entry); return err }
		} else if size <= catalog.MaxValue {
			t.Fatal(err)
		}
		for name, decode := range decoders {
			// An allocation each time that the value is copied, and some for the rest.
			if n := testing.AllocsPerRun(3, func() {
				if err := decode(); err != nil {
					t.Fatal(err)
				}
			}); n > 80 {
				t.Errorf("%s of %d bytes: %v allocations", name, size, n)
			}
		}
	}
}

// TestLengthIsNotBelieved: a message that announces much and does not have it makes the
// decoder allocate by its own length.
func TestLengthIsNotBelieved(t *testing.T) {
	const announced = "\xff\xff\xff\xf0"
	for _, length := range []int{40, 10 << 10, 1 << 20} {
		filler := append([]byte{0x81, 0xc6, byte(length >> 24), byte(length >> 16), byte(length >> 8), byte(length)}, make([]byte, length)...)
		for name, head := range map[string]string{"list": "\xdd" + announced, "map": "\xdf" + announced, "bytes": "\xc6" + announced} {
			b := append(bytes.Clone(filler), head...)
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			var v any
			err := Unmarshal(b, &v)
			runtime.ReadMemStats(&after)
			if !errors.Is(err, catalog.ErrInvalid) {
				t.Errorf("%s: %v", name, err)
			}
			if got, most := after.TotalAlloc-before.TotalAlloc, uint64(128<<10+40*length); got > most {
				t.Errorf("%s after %d bytes: %d bytes were allocated, want at most %d", name, length, got, most)
			}
		}
	}
}

// BenchmarkLargeValue decodes the largest value that the KV store takes by default.
func BenchmarkLargeValue(b *testing.B) {
	entry, err := EncodeEntry(&catalog.SetKey{Pair: catalog.KVPair{Key: "k", Value: make([]byte, catalog.MaxValue)}})
	if err != nil {
		b.Fatal(err)
	}
	b.SetBytes(int64(len(entry)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := DecodeEntry(entry); err != nil {
			b.Fatal(err)
		}
	}
}

func FuzzUnmarshal(f *testing.F) {
	for i, noun := range nouns() {
		newFiller(uint64(i)).fill(noun)
		b, err := Marshal(noun)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, noun := range nouns() {
			if err := Unmarshal(b, noun); err != nil {
				if !errors.Is(err, catalog.ErrInvalid) {
					t.Fatalf("%T: %v", noun, err)
				}
				continue
			}
			if _, err := Marshal(noun); err != nil {
				t.Fatalf("%T was decoded and cannot be encoded: %v", noun, err)
			}
		}
	})
}
