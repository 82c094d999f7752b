package consensus

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// vnet is a network in memory and in virtual time: it delays, cuts in one or both
// directions, and loses questions and answers, as a seed says.
type vnet struct {
	mu      sync.Mutex
	rng     *rand.Rand
	up      map[raft.ServerAddress]*vtransport
	cut     map[[2]raft.ServerAddress]bool
	slow    map[raft.ServerAddress]time.Duration
	leaders map[uint64]string // who sent entries in which term
	faults  []string          // what must never be
}

func newVnet(seed uint64) *vnet {
	return &vnet{
		rng: rand.New(rand.NewPCG(seed, 1)), up: map[raft.ServerAddress]*vtransport{}, cut: map[[2]raft.ServerAddress]bool{},
		slow: map[raft.ServerAddress]time.Duration{}, leaders: map[uint64]string{},
	}
}

const vtimeout = 500 * time.Millisecond

var errUnreachable = errors.New("unreachable")

// way says how long a message is on its way, and whether it arrives.
func (v *vnet) way(from, to raft.ServerAddress) (time.Duration, bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	d := 200*time.Microsecond + time.Duration(v.rng.ExpFloat64()*float64(time.Millisecond))
	return d + v.slow[from] + v.slow[to], !v.cut[[2]raft.ServerAddress{from, to}]
}

// carry takes a message there, or fails after the time in which one gives up.
func (v *vnet) carry(from, to raft.ServerAddress) error {
	d, ok := v.way(from, to)
	if !ok {
		time.Sleep(vtimeout)
		return fmt.Errorf("%s to %s: %w", from, to, errUnreachable)
	}
	time.Sleep(d)
	return nil
}

func (v *vnet) at(addr raft.ServerAddress) *vtransport {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.up[addr]
}

func (v *vnet) heal() {
	v.mu.Lock()
	defer v.mu.Unlock()
	clear(v.cut)
	clear(v.slow)
}

func (v *vnet) leads(term uint64, id string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if was, ok := v.leaders[term]; ok && was != id {
		v.faults = append(v.faults, fmt.Sprintf("%s and %s both lead in term %d", was, id, term))
	}
	v.leaders[term] = id
}

// vtransport is the end of the network at one run of one server.
type vtransport struct {
	net     *vnet
	addr    raft.ServerAddress
	consume chan raft.RPC
	down    chan struct{}
	once    sync.Once

	mu   sync.Mutex
	beat func(raft.RPC)
}

var _ Transport = (*vtransport)(nil)

func (v *vnet) attach(addr raft.ServerAddress) *vtransport {
	t := &vtransport{net: v, addr: addr, consume: make(chan raft.RPC), down: make(chan struct{})}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.up[addr] = t
	return t
}

func (t *vtransport) Close() error {
	t.once.Do(func() {
		close(t.down)
		t.net.mu.Lock()
		defer t.net.mu.Unlock()
		if t.net.up[t.addr] == t {
			delete(t.net.up, t.addr)
		}
	})
	return nil
}

func (t *vtransport) Consumer() <-chan raft.RPC                               { return t.consume }
func (t *vtransport) LocalAddr() raft.ServerAddress                           { return t.addr }
func (t *vtransport) EncodePeer(_ raft.ServerID, a raft.ServerAddress) []byte { return []byte(a) }
func (t *vtransport) DecodePeer(b []byte) raft.ServerAddress                  { return raft.ServerAddress(b) }

func (t *vtransport) AppendEntriesPipeline(raft.ServerID, raft.ServerAddress) (raft.AppendPipeline, error) {
	return nil, raft.ErrPipelineReplicationNotSupported // as with MaxRPCsInFlight 1
}

func (t *vtransport) SetHeartbeatHandler(f func(raft.RPC)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.beat = f
}

func (t *vtransport) AppendEntries(id raft.ServerID, to raft.ServerAddress, args *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) error {
	t.net.leads(args.Term, string(args.ID))
	r := *args
	r.Entries = make([]*raft.Log, len(args.Entries))
	for i, l := range args.Entries {
		c := *l
		r.Entries[i] = &c
	}
	return ask(t, to, &r, nil, resp)
}

func (t *vtransport) RequestVote(_ raft.ServerID, to raft.ServerAddress, args *raft.RequestVoteRequest, resp *raft.RequestVoteResponse) error {
	r := *args
	return ask(t, to, &r, nil, resp)
}

func (t *vtransport) RequestPreVote(_ raft.ServerID, to raft.ServerAddress, args *raft.RequestPreVoteRequest, resp *raft.RequestPreVoteResponse) error {
	r := *args
	return ask(t, to, &r, nil, resp)
}

func (t *vtransport) TimeoutNow(_ raft.ServerID, to raft.ServerAddress, args *raft.TimeoutNowRequest, resp *raft.TimeoutNowResponse) error {
	r := *args
	return ask(t, to, &r, nil, resp)
}

func (t *vtransport) InstallSnapshot(_ raft.ServerID, to raft.ServerAddress, args *raft.InstallSnapshotRequest, resp *raft.InstallSnapshotResponse, data io.Reader) error {
	b, err := io.ReadAll(data)
	if err != nil {
		return err
	}
	r := *args
	return ask(t, to, &r, bytes.NewReader(b), resp)
}

// ask carries a question and its answer. As on a real connection, a heartbeat is
// handled beside whatever the other is busy with.
func ask[T any](t *vtransport, to raft.ServerAddress, command any, data io.Reader, resp *T) error {
	if err := t.net.carry(t.addr, to); err != nil {
		return err
	}
	other := t.net.at(to)
	if other == nil || t.net.at(t.addr) != t {
		return errUnreachable
	}
	answers := make(chan raft.RPCResponse, 1)
	rpc := raft.RPC{Command: command, Reader: data, RespChan: answers}
	timeout := time.NewTimer(vtimeout)
	defer timeout.Stop()
	other.mu.Lock()
	beat := other.beat
	other.mu.Unlock()
	if a, ok := command.(*raft.AppendEntriesRequest); ok && beat != nil && a.PrevLogEntry == 0 && len(a.Entries) == 0 && a.LeaderCommitIndex == 0 {
		go beat(rpc)
	} else {
		select {
		case other.consume <- rpc:
		case <-other.down:
			return errUnreachable
		case <-timeout.C:
			return errUnreachable
		}
	}
	select {
	case a := <-answers:
		if err := t.net.carry(to, t.addr); err != nil {
			return err
		}
		if a.Error != nil {
			return a.Error
		}
		got, ok := a.Response.(*T)
		if !ok {
			return fmt.Errorf("answered with %T", a.Response)
		}
		*resp = *got
		return nil
	case <-other.down:
		return errUnreachable
	case <-timeout.C:
		return errUnreachable
	}
}

// vdisk is what stays of a server when it is killed.
type vdisk struct {
	mu     sync.Mutex
	rng    *rand.Rand
	log    *raft.InmemStore
	backup []*vbackup
	frozen chan struct{} // nil when it is not; closed when it thaws
	wall   error         // of every write
	free   uint64
}

func newVdisk(seed uint64) *vdisk {
	return &vdisk{rng: rand.New(rand.NewPCG(seed, 2)), log: raft.NewInmemStore(), free: 10 << 30}
}

func (d *vdisk) setFree(free uint64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.free = free
}

func (d *vdisk) setWall(err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.wall = err
}

func (d *vdisk) space() (free, total uint64, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.free, 100 << 30, nil
}

func (d *vdisk) freeze() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.frozen == nil {
		d.frozen = make(chan struct{})
	}
}

func (d *vdisk) thaw() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.frozen != nil {
		close(d.frozen)
		d.frozen = nil
	}
}

// vrun is the disk as one run of the server sees it: after the kill it writes
// nothing any more.
type vrun struct {
	raft.LogStore
	raft.StableStore
	d    *vdisk
	dead chan struct{}
}

var errKilled = errors.New("killed")

// mount gives the disk to a new run of the server.
func (d *vdisk) mount() *vrun { return &vrun{d.log, d.log, d, make(chan struct{})} }

// kill ends a run in whatever it is doing.
func (r *vrun) kill() {
	r.d.mu.Lock()
	defer r.d.mu.Unlock()
	close(r.dead)
}

// sync is the time that a write takes, a freeze included.
func (r *vrun) sync() error {
	for {
		r.d.mu.Lock()
		frozen := r.d.frozen
		took := time.Duration(r.d.rng.ExpFloat64() * float64(time.Millisecond))
		r.d.mu.Unlock()
		if frozen == nil {
			time.Sleep(took)
			return nil
		}
		select {
		case <-frozen:
		case <-r.dead:
			return errKilled
		}
	}
}

func (r *vrun) write(do func() error) error {
	if err := r.sync(); err != nil {
		return err
	}
	r.d.mu.Lock()
	defer r.d.mu.Unlock()
	select {
	case <-r.dead:
		return errKilled
	default:
	}
	if r.d.wall != nil {
		return r.d.wall
	}
	return do()
}

func (r *vrun) StoreLog(l *raft.Log) error { return r.StoreLogs([]*raft.Log{l}) }
func (r *vrun) StoreLogs(l []*raft.Log) error {
	return r.write(func() error { return r.d.log.StoreLogs(l) })
}

func (r *vrun) DeleteRange(low, high uint64) error {
	return r.write(func() error { return r.d.log.DeleteRange(low, high) })
}

func (r *vrun) Set(k, b []byte) error {
	return r.write(func() error { return r.d.log.Set(k, b) })
}

func (r *vrun) SetUint64(k []byte, n uint64) error {
	return r.write(func() error { return r.d.log.SetUint64(k, n) })
}

// vbackup is a backup of the store; it is there once it is whole.
type vbackup struct {
	run  *vrun
	meta raft.SnapshotMeta
	b    bytes.Buffer
}

func (r *vrun) Create(version raft.SnapshotVersion, index, term uint64, c raft.Configuration, at uint64, _ raft.Transport) (raft.SnapshotSink, error) {
	id := fmt.Sprintf("%d-%d-%d", term, index, time.Now().UnixNano())
	return &vbackup{run: r, meta: raft.SnapshotMeta{
		Version: version, ID: id, Index: index, Term: term, Configuration: c, ConfigurationIndex: at,
	}}, nil
}

func (r *vrun) List() ([]*raft.SnapshotMeta, error) {
	r.d.mu.Lock()
	defer r.d.mu.Unlock()
	var out []*raft.SnapshotMeta
	for i := len(r.d.backup) - 1; i >= 0; i-- {
		m := r.d.backup[i].meta
		out = append(out, &m)
	}
	return out, nil
}

func (r *vrun) Open(id string) (*raft.SnapshotMeta, io.ReadCloser, error) {
	r.d.mu.Lock()
	defer r.d.mu.Unlock()
	for _, b := range r.d.backup {
		if b.meta.ID == id {
			m := b.meta
			return &m, io.NopCloser(bytes.NewReader(b.b.Bytes())), nil
		}
	}
	return nil, nil, fmt.Errorf("no backup %s", id)
}

func (b *vbackup) Write(p []byte) (int, error) { return b.b.Write(p) }
func (b *vbackup) ID() string                  { return b.meta.ID }
func (b *vbackup) Cancel() error               { return nil }
func (b *vbackup) Close() error {
	return b.run.write(func() error {
		b.meta.Size = int64(b.b.Len())
		b.run.d.backup = append(b.run.d.backup, b)
		return nil
	})
}
