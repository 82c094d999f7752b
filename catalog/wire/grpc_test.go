package wire

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/weftmesh/weft/catalog"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fake answers with err where that is set, and else with what it was asked.
type fake struct {
	err   error
	watch func(ctx context.Context, req *WatchRequest, send func(*WatchEvent) error) error
}

func (f *fake) Sync(_ context.Context, req *SyncRequest) (*SyncReply, error) {
	return &SyncReply{Index: uint64(len(req.State.Services))}, f.err
}

func (f *fake) Apply(_ context.Context, req *ApplyRequest) (*ApplyReply, error) {
	return &ApplyReply{Index: uint64(req.Command.CommandType()), OK: true}, f.err
}

func (f *fake) Read(_ context.Context, req *ReadRequest) (*ReadReply, error) {
	return &ReadReply{View: &catalog.View{Query: req.Query, Index: 3}, Meta: Meta{KnownLeader: true}}, f.err
}

func (f *fake) Watch(ctx context.Context, req *WatchRequest, send func(*WatchEvent) error) error {
	if f.watch == nil {
		return f.err
	}
	return f.watch(ctx, req, send)
}

func (f *fake) Sign(_ context.Context, req *SignRequest) (*SignReply, error) {
	return &SignReply{Leaf: catalog.Leaf{CertPEM: string(req.CSR)}}, f.err
}

func (f *fake) SetCAConfig(_ context.Context, req *SetCAConfigRequest) (*SetCAConfigReply, error) {
	return &SetCAConfigReply{Index: uint64(len(req.Config.Config))}, f.err
}

func (f *fake) Txn(_ context.Context, req *TxnRequest) (*TxnReply, error) {
	return &TxnReply{Index: uint64(len(req.Txn.Ops)), Result: catalog.TxnResult{Errors: []catalog.TxnError{{OpIndex: 2, What: "x"}}}}, f.err
}

func (f *fake) RenewSession(_ context.Context, req *RenewSessionRequest) (*RenewSessionReply, error) {
	return &RenewSessionReply{Session: &catalog.Session{ID: req.ID}}, f.err
}

func (f *fake) Status(context.Context, *StatusRequest) (*StatusReply, error) {
	return &StatusReply{Leader: "a:1"}, f.err
}

// connect serves impl on loopback and gives the client side.
func connect(t *testing.T, impl Servers) Servers {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer()
	Register(s, impl)
	done := make(chan struct{})
	go func() { defer close(done); _ = s.Serve(ln) }()
	cc, err := grpc.NewClient(ln.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cc.Close(); s.Stop(); <-done })
	return NewClient(cc)
}

func TestCalls(t *testing.T) {
	c, ctx := connect(t, &fake{}), t.Context()
	if r, err := c.Sync(ctx, &SyncRequest{State: catalog.NodeState{Services: make([]*catalog.Service, 2)}}); err != nil || r.Index != 2 {
		t.Error(r, err)
	}
	if r, err := c.Apply(ctx, &ApplyRequest{Command: Command{&catalog.Deregister{Node: "n"}}}); err != nil || r.Index != uint64(catalog.CmdDeregister) {
		t.Error(r, err)
	}
	q := catalog.Query{Kind: catalog.QueryService, Name: "web"}
	if r, err := c.Read(ctx, &ReadRequest{Query: q}); err != nil || r.View.Query != q || !r.Meta.KnownLeader {
		t.Error(r, err)
	}
	if r, err := c.Sign(ctx, &SignRequest{CSR: []byte("csr")}); err != nil || r.Leaf.CertPEM != "csr" {
		t.Error(r, err)
	}
	if r, err := c.SetCAConfig(ctx, &SetCAConfigRequest{Config: catalog.CAConfig{Config: map[string]any{"a": 1.0}}}); err != nil || r.Index != 1 {
		t.Error(r, err)
	}
	if r, err := c.Txn(ctx, &TxnRequest{Txn: catalog.Txn{Ops: make([]catalog.TxnOp, 3)}}); err != nil || r.Index != 3 || r.Result.Errors[0].OpIndex != 2 {
		t.Error(r, err)
	}
	if r, err := c.RenewSession(ctx, &RenewSessionRequest{ID: "s"}); err != nil || r.Session.ID != "s" {
		t.Error(r, err)
	}
	if r, err := c.Status(ctx, &StatusRequest{}); err != nil || r.Leader != "a:1" {
		t.Error(r, err)
	}
}

func TestErrorsCross(t *testing.T) {
	for _, row := range table {
		f := &fake{err: fmt.Errorf("intention web → db: %w", row.sentinel)}
		c := connect(t, f)
		_, err := c.Read(t.Context(), &ReadRequest{})
		if !errors.Is(err, row.sentinel) || err.Error() != f.err.Error() {
			t.Errorf("%v became %v", f.err, err)
		}
		err = c.Watch(t.Context(), &WatchRequest{}, func(*WatchEvent) error { return nil })
		if !errors.Is(err, row.sentinel) || err.Error() != f.err.Error() {
			t.Errorf("stream: %v became %v", f.err, err)
		}
	}
	c := connect(t, &fake{err: catalog.Conflictf("Sources[%d] twice", 1)})
	if _, err := c.Status(t.Context(), &StatusRequest{}); !errors.Is(err, catalog.ErrConflict) || err.Error() != "Sources[1] twice" {
		t.Error(err)
	}
	c = connect(t, &fake{err: errors.New("no row for this")})
	if _, err := c.Status(t.Context(), &StatusRequest{}); err == nil || err.Error() != "no row for this" {
		t.Error(err)
	}
}

func TestErrorsOfTransport(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	c := connect(t, &fake{})
	if _, err := c.Status(ctx, &StatusRequest{}); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	big := &SignRequest{CSR: make([]byte, MaxRequest+1)}
	if _, err := c.Sign(t.Context(), big); !errors.Is(err, catalog.ErrTooLarge) {
		t.Error(err)
	}
	cc, err := grpc.NewClient("passthrough:///x", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(context.Context, string) (net.Conn, error) { return nil, errors.New("nobody there") }))
	if err != nil {
		t.Fatal(err)
	}
	defer cc.Close()
	_, err = NewClient(cc).Status(t.Context(), &StatusRequest{})
	if !errors.Is(err, catalog.ErrUnavailable) || !strings.Contains(err.Error(), "nobody there") {
		t.Error(err)
	}
	if ToStatus(nil) != nil || FromStatus(nil) != nil {
		t.Error("nil is no error")
	}
	if s := status.Convert(ToStatus(status.Error(codes.Aborted, "x"))); s.Code() != codes.Aborted {
		t.Error(s)
	}
	if err := ToStatus(fmt.Errorf("bad \xff byte: %w", catalog.ErrInvalid)); !strings.Contains(err.Error(), "bad \uFFFD byte") {
		t.Error(err)
	}
}

func TestWatch(t *testing.T) {
	ended := make(chan struct{})
	c := connect(t, &fake{watch: func(ctx context.Context, req *WatchRequest, send func(*WatchEvent) error) error {
		defer close(ended)
		for i := req.After + 1; i < req.After+3; i++ {
			if err := send(&WatchEvent{View: &catalog.View{Query: req.Query, Index: i}, Current: i}); err != nil {
				return err
			}
		}
		if err := send(&WatchEvent{Current: 99, Epoch: req.Epoch}); err != nil {
			return err
		}
		<-ctx.Done()
		return ctx.Err()
	}})
	var got []uint64
	stop := errors.New("enough")
	err := c.Watch(t.Context(), &WatchRequest{After: 7, Epoch: "e", Query: catalog.Query{Kind: catalog.QueryRoots}}, func(e *WatchEvent) error {
		got = append(got, e.Current)
		if e.View == nil {
			if e.Epoch != "e" {
				t.Errorf("epoch %q", e.Epoch)
			}
			return stop
		}
		return nil
	})
	if !errors.Is(err, stop) || fmt.Sprint(got) != "[8 9 99]" {
		t.Fatal(got, err)
	}
	<-ended // the server's side ends with the reader's
	end := connect(t, &fake{watch: func(context.Context, *WatchRequest, func(*WatchEvent) error) error { return nil }})
	if err := end.Watch(t.Context(), &WatchRequest{}, func(*WatchEvent) error { return nil }); !errors.Is(err, catalog.ErrUnavailable) {
		t.Fatal(err)
	}
}

// BenchmarkWatchEvent shows that a view costs one encoding however many read it.
func BenchmarkWatchEvent(b *testing.B) {
	v := &catalog.View{Index: 1}
	for i := range 100 {
		in := &catalog.Instance{}
		newFiller(uint64(i)).fill(in)
		v.Instances = append(v.Instances, in)
	}
	b.Run("shared", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := (grpcCodec{}).Marshal(&WatchEvent{View: v}); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("decode", func(b *testing.B) {
		buf, err := Marshal(&WatchEvent{View: v})
		if err != nil {
			b.Fatal(err)
		}
		b.SetBytes(int64(len(buf)))
		b.ReportAllocs()
		for b.Loop() {
			if err := Unmarshal(buf, &WatchEvent{}); err != nil {
				b.Fatal(err)
			}
		}
	})
}
