package httpapi

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/catalog/acl"
	"github.com/weftmesh/weft/catalog/wire"
)

// txnAPI does transactions over keys and the catalog.
type txnAPI struct{ cfg Config }

func (a txnAPI) routes() []Route {
	return []Route{{
		Method: http.MethodPut, Path: "/v1/txn", MaxBody: orLimit(a.cfg.TxnMaxRequest),
		Summary: fmt.Sprintf("do up to %d operations, all or none of them; 409 when one failed, and all of them were undone", catalog.MaxTxnOps),
		Body:    "JSON, a list of objects with one of KV, Node, Service and Check: a Verb, and what it is about", params: paramsConsistency,
		Permission: Permission{acl.Write, acl.Key, "what each operation names; read where it only reads"},
		invalid:    http.StatusBadRequest, handle: a.do,
	}}
}

// txnOp is one operation as it is sent.
type txnOp struct {
	KV *struct {
		Verb    string
		Key     string
		Value   *string // base64
		Flags   uint64
		Index   uint64
		Session string
		tenancy `mapstructure:",squash"`
	}
	Node *struct {
		Verb string
		Node txnNode
	}
	Service *struct {
		Verb    string
		Node    string
		Service registerService
	}
	Check *struct {
		Verb  string
		Check registerCheck
	}
}

type txnNode struct {
	catalog.Node `mapstructure:",squash"`
	tenancy      `mapstructure:",squash"`
}

func (a txnAPI) do(c *call) (any, error) {
	ops, err := decodeOps(c)
	if err != nil {
		return nil, err
	}
	if len(ops) > catalog.MaxTxnOps {
		return nil, &httpError{http.StatusRequestEntityTooLarge, fmt.Sprintf("Transaction contains too many operations (%d > %d)", len(ops), catalog.MaxTxnOps)}
	}
	req := &wire.TxnRequest{Token: c.token, Consistency: c.opts.consistency}
	for i := range ops {
		op, err := a.operation(&ops[i])
		if err != nil {
			return nil, err
		}
		if op != nil {
			req.Txn.Ops = append(req.Txn.Ops, *op)
		}
	}
	rep, err := a.cfg.Servers.Txn(c.ctx(), req)
	if err != nil {
		return nil, err
	}
	return a.answer(c, rep, req.Txn.ReadOnly()), nil
}

// decodeOps reads the list of operations, strictly.
func decodeOps(c *call) ([]txnOp, error) {
	b, err := c.body()
	if err != nil {
		return nil, err
	}
	failed := func(err error) error {
		text := strings.TrimPrefix(err.Error(), catalog.ErrInvalid.Error()+": ")
		return badRequest("Failed to parse body: " + text)
	}
	// The list is opened here, so that what reads objects, with its bounds, reads them.
	dec := json.NewDecoder(bytes.NewReader(b))
	t, err := dec.Token()
	if err != nil {
		return nil, failed(err)
	}
	if t != json.Delim('[') {
		return nil, failed(errors.New("json: a list of operations is wanted"))
	}
	var out []txnOp
	for dec.More() {
		var one json.RawMessage
		if err := dec.Decode(&one); err != nil {
			return nil, failed(err)
		}
		var op txnOp
		if err := catalog.DecodeJSON(one, &op); err != nil {
			return nil, failed(err)
		}
		out = append(out, op)
		if len(out) > catalog.MaxTxnOps*2 {
			break // too many, however many there are
		}
	}
	if len(out) > catalog.MaxTxnOps {
		return out, nil
	}
	if _, err := dec.Token(); err != nil {
		return nil, failed(err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return nil, failed(errors.New("data after the list"))
	}
	return out, nil
}

// operation gives an operation as the servers take it; nil when it is empty.
func (a txnAPI) operation(in *txnOp) (*catalog.TxnOp, error) {
	out := &catalog.TxnOp{}
	empty := true
	if in.KV != nil {
		empty = false
		if err := in.KV.tenancy.check(); err != nil {
			return nil, err
		}
		op := &catalog.KVOp{Verb: catalog.TxnVerb(in.KV.Verb), Index: in.KV.Index, Pair: catalog.KVPair{
			Key: in.KV.Key, Flags: in.KV.Flags, Session: in.KV.Session,
		}}
		if in.KV.Value != nil {
			v, err := base64.StdEncoding.DecodeString(*in.KV.Value)
			if err != nil {
				return nil, badRequest("Failed to parse body: the value of key " + strconv.Quote(in.KV.Key) + ": " + err.Error())
			}
			op.Pair.Value = v
		}
		if limit := orLimit(a.cfg.KVMaxValueSize); int64(len(op.Pair.Value)) > limit {
			return nil, tooLargeValue(op.Pair.Key, len(op.Pair.Value), limit)
		}
		out.KV = op
	}
	if in.Node != nil {
		empty = false
		if err := in.Node.Node.tenancy.check(); err != nil {
			return nil, err
		}
		out.Node = &catalog.NodeOp{Verb: catalog.TxnVerb(in.Node.Verb), Node: in.Node.Node.Node}
		out.Node.Node.Datacenter = a.cfg.Self.Datacenter
	}
	if in.Service != nil {
		empty = false
		s := in.Service.Service.Service
		if err := in.Service.Service.tenancy.check(); err != nil {
			return nil, err
		}
		s.ID = orString(s.ID, s.Service)
		if s.Weights == nil {
			s.Weights = &catalog.Weights{Passing: 1, Warning: 1}
		}
		out.Service = &catalog.ServiceOp{Verb: catalog.TxnVerb(in.Service.Verb), Node: in.Service.Node, Service: s}
	}
	if in.Check != nil {
		empty = false
		if err := in.Check.Check.tenancy.check(); err != nil {
			return nil, err
		}
		ch := in.Check.Check.check(in.Check.Check.Node)
		ch.Type = in.Check.Check.Type
		ch.ModifyIndex = in.Check.Check.ModifyIndex
		out.Check = &catalog.CheckOp{Verb: catalog.TxnVerb(in.Check.Verb), Check: *ch}
	}
	if empty {
		return nil, nil
	}
	return out, nil
}

// txnView is what a transaction that writes answers.
type txnView struct {
	Results []txnItemView
	Errors  []catalog.TxnError
}

// txnReadView is what one that only reads answers: it says too how good that is.
type txnReadView struct {
	txnView
	Index                 uint64
	LastContact           time.Duration
	KnownLeader           bool
	ConsistencyLevel      string
	NotModified           bool
	Backend               int
	ResultsFilteredByACLs bool
}

type txnItemView struct {
	KV      *pairView    `json:",omitempty"`
	Node    *nodeView    `json:",omitempty"`
	Service *serviceView `json:",omitempty"`
	Check   *checkView   `json:",omitempty"`
}

func (a txnAPI) answer(c *call, rep *wire.TxnReply, readOnly bool) any {
	out := txnView{Errors: rep.Result.Errors}
	status := http.StatusOK
	if len(out.Errors) > 0 {
		status = http.StatusConflict
	} else {
		out.Results = make([]txnItemView, 0, len(rep.Result.Results))
		for i := range rep.Result.Results {
			out.Results = append(out.Results, a.item(&rep.Result.Results[i]))
		}
		out.Errors = nil
	}
	if !readOnly {
		return withStatus{status, out}
	}
	h := c.w.Header()
	h.Set("X-Consul-LastContact", strconv.FormatInt(rep.Meta.LastContact.Milliseconds(), 10))
	h.Set("X-Consul-KnownLeader", strconv.FormatBool(rep.Meta.KnownLeader))
	return withStatus{status, txnReadView{
		txnView: out, Index: rep.Index, LastContact: rep.Meta.LastContact, KnownLeader: rep.Meta.KnownLeader,
	}}
}

func (a txnAPI) item(in *catalog.TxnItem) txnItemView {
	var out txnItemView
	switch {
	case in.KV != nil:
		p := viewPair(in.KV)
		out.KV = &p
	case in.Node != nil:
		n := viewNode(in.Node, a.cfg.Self.Datacenter)
		out.Node = &n
	case in.Service != nil:
		out.Service = viewService(in.Service)
		if len(in.Service.Tags) == 0 {
			out.Service.Tags = nil // here alone Consul tells none from an empty list
		}
	case in.Check != nil:
		ch := viewCheck(in.Check)
		if len(in.Check.ServiceTags) == 0 {
			ch.ServiceTags = nil
		}
		out.Check = &ch
	}
	return out
}
