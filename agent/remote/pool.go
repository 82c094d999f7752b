package remote

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/catalog/durable"
)

// Server is a server of the cluster.
type Server struct {
	Node string
	ID   string // its node ID
	Addr string // host:port of its RPC
}

// PoolConfig configures a Pool.
type PoolConfig struct {
	// Dial opens a connection to the server at addr. Required.
	Dial func(ctx context.Context, addr string) (net.Conn, error)
	// Secure makes a connection ready to speak gRPC, or closes it. Nil: those of Dial are.
	Secure func(ctx context.Context, c net.Conn) (net.Conn, error)
	// Seeds are asked when no server that is known answers: host:port.
	Seeds []string
	// File keeps the servers known last, for a start with gossip still silent. Empty: nowhere.
	File string
	// Every is how long a server is kept at least before another is chosen: 2 min.
	Every  time.Duration
	Logger *slog.Logger
}

const (
	// stagger is how long one server may keep others from being asked.
	stagger = 300 * time.Millisecond
	// askAgain is how often one of the servers is asked anew while all of them are silent.
	askAgain = time.Second
	// dialTimeout bounds the attempt to reach one server, its handshake included.
	dialTimeout = 4 * time.Second
	// maxServers bounds the list; clusters have three or five.
	maxServers = 64
	// moveRate is how many agents change their server each second, for each server.
	moveRate = 64
	// maxPoolFile bounds what is read back.
	maxPoolFile = 64 << 10
)

// Pool is the list of servers that this host can speak to. It is filled by
// gossip, and by what was known when the process last ended.
type Pool struct {
	cfg  PoolConfig
	news chan struct{} // has a value after a change of the list

	mu      sync.Mutex
	servers []Server
	hosts   int // of the cluster
	seeds   []string
	shaking map[string]int // handshakes of this host, by server
}

// NewPool reads the servers known last.
func NewPool(cfg PoolConfig) (*Pool, error) {
	if cfg.Dial == nil {
		return nil, errors.New("servers: Dial is not set")
	}
	cfg.Every = cmp.Or(cfg.Every, 2*time.Minute)
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	p := &Pool{cfg: cfg, news: make(chan struct{}, 1), shaking: map[string]int{}}
	p.Hint(cfg.Seeds)
	kept, err := readServers(cfg.File)
	if err != nil {
		cfg.Logger.Warn("the servers known last cannot be read; gossip will tell", "file", cfg.File, "err", err)
	}
	p.servers = kept
	return p, nil
}

// Learn replaces the list; hosts is how many members the cluster has. An empty
// list changes nothing: servers that gossip does not see may answer still. Where there
// are too many, which one host of the cluster can bring about, those known before stay.
func (p *Pool) Learn(servers []Server, hosts int) {
	servers = slices.Clone(servers)
	byAddr := func(a, b Server) int { return cmp.Compare(a.Addr, b.Addr) }
	slices.SortFunc(servers, byAddr)
	servers = slices.CompactFunc(servers, func(a, b Server) bool { return a.Addr == b.Addr })
	p.mu.Lock()
	if len(servers) > maxServers {
		slices.SortStableFunc(servers, func(a, b Server) int { return p.strange(a) - p.strange(b) })
		servers = servers[:maxServers]
		slices.SortFunc(servers, byAddr)
	}
	p.hosts = hosts
	changed := len(servers) > 0 && !slices.Equal(servers, p.servers)
	if changed {
		p.servers = servers
	}
	p.mu.Unlock()
	if !changed {
		return
	}
	if err := writeServers(p.cfg.File, servers); err != nil {
		p.cfg.Logger.Warn("the list of servers cannot be kept for the next start", "file", p.cfg.File, "err", err)
	}
	select {
	case p.news <- struct{}{}:
	default:
	}
}

// strange is 1 for a server that was not known before; p.mu is held.
func (p *Pool) strange(s Server) int {
	if slices.Contains(p.seeds, s.Addr) || slices.ContainsFunc(p.servers, func(k Server) bool { return k.Addr == s.Addr }) {
		return 0
	}
	return 1
}

// Hint adds addresses at which a server may be: those that an operator named, or that
// a server told when this host joined.
func (p *Pool) Hint(addrs []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, a := range addrs {
		if !slices.Contains(p.seeds, a) && len(p.seeds) < maxServers {
			p.seeds = append(p.seeds, a)
		}
	}
}

// Servers are the servers known.
func (p *Pool) Servers() []Server {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.servers)
}

// Addrs are the addresses at which to look for a server, those known first, then
// the seeds, each part in random order.
func (p *Pool) Addrs() []string {
	p.mu.Lock()
	out := make([]string, 0, len(p.servers)+len(p.seeds))
	for _, s := range p.servers {
		out = append(out, s.Addr)
	}
	seeds := slices.Clone(p.seeds)
	p.mu.Unlock()
	rand.Shuffle(len(out), func(i, j int) { out[i], out[j] = out[j], out[i] })
	rand.Shuffle(len(seeds), func(i, j int) { seeds[i], seeds[j] = seeds[j], seeds[i] })
	for _, s := range seeds {
		if !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	return out
}

// holds tells whether addr is a server, as far as is known.
func (p *Pool) holds(addr string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.servers) == 0 || slices.ContainsFunc(p.servers, func(s Server) bool { return s.Addr == addr })
}

// stay is how long to stay with a server: so long that all hosts together do not
// open more connections than the servers take with ease, and never in step.
func (p *Pool) stay() time.Duration {
	p.mu.Lock()
	hosts, servers := p.hosts, max(len(p.servers), 1)
	p.mu.Unlock()
	d := max(p.cfg.Every, time.Duration(hosts)*time.Second/time.Duration(servers*moveRate))
	return d + rand.N(d/2+1)
}

// dial connects to any server, to the one at avoid only where no other answers.
// Each is given a short while before the next is asked too, so that one that is
// silent holds up nobody. When all are silent they are asked anew, one after the other,
// until ctx ends: the cable may be back at any time, and the kernel asks ever more rarely.
// A server that took a connection and shakes hands, for whichever search, is not: when it
// has a whole fleet to do so with, each further handshake makes all of them slower.
func (p *Pool) dial(ctx context.Context, avoid string) (net.Conn, string, error) {
	addrs := p.Addrs()
	if i := slices.Index(addrs, avoid); i >= 0 {
		addrs = append(slices.Delete(addrs, i, i+1), avoid)
	}
	if len(addrs) == 0 {
		return nil, "", fmt.Errorf("no server is known: %w; set retry_join", catalog.ErrUnavailable)
	}
	type answer struct {
		conn net.Conn
		addr string
		err  error
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	answers := make(chan answer)
	asked, pending := 0, 0
	ask := func() {
		addr := addrs[asked%len(addrs)]
		asked++
		if p.shakes(addr) {
			return
		}
		pending++
		go func() {
			try, end := context.WithTimeout(ctx, dialTimeout)
			defer end()
			c, err := p.cfg.Dial(try, addr)
			if err == nil && p.cfg.Secure != nil {
				c, err = p.secure(try, addr, c)
			}
			select {
			case answers <- answer{c, addr, err}:
			case <-ctx.Done():
				if err == nil {
					_ = c.Close() // another was quicker
				}
			}
		}()
	}
	ask()
	last := time.Now()
	next := time.NewTicker(stagger)
	defer next.Stop()
	var failed []string // of the first three
	waits := false
	for {
		select {
		case <-ctx.Done():
			failed = append(failed, context.Cause(ctx).Error())
			return nil, "", fmt.Errorf("no server answers: %w (%s)", catalog.ErrUnavailable, strings.Join(failed, "; "))
		case <-next.C:
			if asked < len(addrs) || pending < 2*len(addrs)+2 && time.Since(last) >= askAgain {
				ask()
				last = time.Now()
			}
		case a := <-answers:
			if a.err == nil {
				return a.conn, a.addr, nil
			}
			pending--
			if len(failed) < 3 {
				failed = append(failed, a.addr+": "+a.err.Error())
			}
			// One that was silent, or is busy with a handshake, may answer yet.
			waits = waits || errors.Is(a.err, context.DeadlineExceeded) || slices.ContainsFunc(addrs, p.shakes)
			if asked < len(addrs) {
				ask()
			} else if pending == 0 && !waits {
				return nil, "", fmt.Errorf("no server answers: %w (%s)", catalog.ErrUnavailable, strings.Join(failed, "; "))
			}
		}
	}
}

// secure shakes hands with the server at addr, and is seen to.
func (p *Pool) secure(ctx context.Context, addr string, c net.Conn) (net.Conn, error) {
	p.count(addr, 1)
	defer p.count(addr, -1)
	return p.cfg.Secure(ctx, c)
}

func (p *Pool) count(addr string, n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.shaking[addr] += n; p.shaking[addr] == 0 {
		delete(p.shaking, addr)
	}
}

// shakes tells whether this host shakes hands with the server at addr now.
func (p *Pool) shakes(addr string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.shaking[addr] > 0
}

func readServers(file string) ([]Server, error) {
	if file == "" {
		return nil, nil
	}
	var out []Server
	_, err := durable.File{Path: file, Most: maxPoolFile}.Read(func(b []byte) error {
		var doc struct{ Servers []Server }
		if err := json.Unmarshal(b, &doc); err != nil {
			return err
		}
		for _, s := range doc.Servers {
			if _, _, err := net.SplitHostPort(s.Addr); err == nil && len(out) < maxServers {
				out = append(out, s)
			}
		}
		return nil
	})
	return out, err
}

func writeServers(file string, servers []Server) error {
	if file == "" {
		return nil
	}
	b, err := json.MarshalIndent(struct{ Servers []Server }{servers}, "", "  ")
	if err != nil {
		return err
	}
	return durable.Write(file, append(b, '\n'))
}
