package events

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/google/uuid"
	"go.uber.org/goleak"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/catalog/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// wireBetween is a courier to one other host.
type wireBetween struct {
	out, in chan []byte
}

func (w wireBetween) Send(_ string, msg []byte) error {
	select {
	case w.out <- msg:
		return nil
	default:
		return errors.New("full")
	}
}

func (w wireBetween) Received() <-chan []byte { return w.in }

func host(t *testing.T, name string, c Courier, services ...*catalog.Service) *Events {
	t.Helper()
	e, err := New(Config{NodeName: name, Courier: c, Services: func() map[string]*catalog.Service {
		out := map[string]*catalog.Service{}
		for _, s := range services {
			out[s.ID] = s
		}
		return out
	}})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func run(t *testing.T, e *Events) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- e.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// next waits for the version of the list after that of index after.
func next(t *testing.T, e *Events, after uint64) ([]*catalog.UserEvent, uint64) {
	t.Helper()
	list, at, err := e.Watch().Next(t.Context(), after)
	if err != nil {
		t.Fatal(err)
	}
	return list, at
}

func TestEventsCross(t *testing.T) {
	ab, ba := make(chan []byte, 10), make(chan []byte, 10)
	a := host(t, "a", wireBetween{ab, ba})
	b := host(t, "b", wireBetween{ba, ab}, &catalog.Service{ID: "1", Service: "web", Tags: []string{"blue"}})
	run(t, b)
	fire := func(e catalog.UserEvent) *catalog.UserEvent {
		t.Helper()
		if err := a.Fire(t.Context(), &e); err != nil {
			t.Fatal(err)
		}
		return &e
	}
	_, at := next(t, b, 0)
	for i, e := range []catalog.UserEvent{
		{Name: "deploy", Payload: []byte{0, 255}},
		{Name: "deploy", NodeFilter: "^a$"}, // not for b
		{Name: "deploy", ServiceFilter: "^web$", TagFilter: "blue|green"},
		{Name: "deploy", ServiceFilter: "^web$", TagFilter: "green"}, // not for b
		{Name: "deploy", ServiceFilter: "we"},
	} {
		sent := fire(e)
		if i == 1 || i == 3 {
			continue
		}
		var list []*catalog.UserEvent
		list, at = next(t, b, at)
		got := list[len(list)-1]
		if got.ID != sent.ID || string(got.Payload) != string(e.Payload) || got.LTime != uint64(i+2) {
			t.Fatalf("got %+v of %+v", got, sent)
		}
	}
	// The time of an answer is later than that of what it answers.
	list, at := next(t, a, 0)
	if len(list) != 2 { // those that need a service are not for a
		t.Fatalf("a heard %d of its own", len(list))
	}
	answer := catalog.UserEvent{Name: "done"}
	if err := b.Fire(t.Context(), &answer); err != nil || answer.LTime != 7 {
		t.Fatalf("%+v: %v", answer, err)
	}
	a.receive(<-ba)
	if list, _ = next(t, a, at); list[len(list)-1].Name != "done" {
		t.Fatalf("%+v", list[len(list)-1])
	}
}

func TestOnlyTheLastAreKept(t *testing.T) {
	e := host(t, "a", nil)
	for i := range maxSeen + maxKept {
		if err := e.Fire(t.Context(), &catalog.UserEvent{Name: fmt.Sprint(i)}); err != nil {
			t.Fatal(err)
		}
	}
	list, at := next(t, e, 0)
	if len(list) != maxKept || list[0].Name != fmt.Sprint(maxSeen) || len(e.seen) != maxSeen || len(e.order) != maxSeen {
		t.Fatalf("%d are kept from %s on, %d remembered", len(list), list[0].Name, len(e.seen))
	}
	again := *list[5]
	e.take(&again)
	if _, now := e.latest.Get(); now != at {
		t.Fatal("an event was heard twice")
	}
}

func TestWhatIsWrongIsDropped(t *testing.T) {
	e := host(t, "a", nil)
	encode := func(ev catalog.UserEvent) []byte {
		b, err := wire.Marshal(&ev)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	id := uuid.NewString()
	for _, msg := range [][]byte{
		nil,
		{0xff},
		make([]byte, maxMessage+1), encode(catalog.UserEvent{}), encode(catalog.UserEvent{Name: "x"}),
		encode(catalog.UserEvent{ID: "{" + id + "}", Name: "x"}), encode(catalog.UserEvent{ID: id}),
		encode(catalog.UserEvent{ID: id, Name: "x", NodeFilter: "("}), encode(catalog.UserEvent{ID: id, Name: "x", TagFilter: "a"}),
		encode(catalog.UserEvent{ID: id, Name: "x", Version: 2}), encode(catalog.UserEvent{ID: id, Name: "x\n"}),
	} {
		e.receive(msg)
	}
	if list, _ := next(t, e, 0); len(list) != 0 {
		t.Fatalf("%+v", list[0])
	}
	// A clock that is far off is followed, but not by much.
	e.receive(encode(catalog.UserEvent{ID: id, Name: "x", LTime: 1 << 63}))
	if e.clock > 1<<21 {
		t.Fatalf("the clock is %d", e.clock)
	}
	if err := e.Fire(t.Context(), &catalog.UserEvent{Name: "x", Payload: make([]byte, catalog.MaxEvent)}); !errors.Is(err, catalog.ErrTooLarge) {
		t.Fatal(err)
	}
	largest := catalog.UserEvent{ID: id, Name: "x", Payload: make([]byte, catalog.MaxEvent-1), Version: 1, LTime: 1 << 62}
	if err := largest.Validate(); err != nil || len(encode(largest)) > maxMessage {
		t.Fatalf("the largest event has %d bytes: %v", len(encode(largest)), err)
	}
}
