package gossip

import (
	"cmp"
	"encoding/json"
	"errors"
	"io/fs"
	"maps"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/catalog/durable"
)

const (
	// maxPeers bounds the members that are kept for the next start: all servers, and
	// some of the others.
	maxPeers     = 128
	maxPeersFile = 256 << 10
)

// peer is a member as it is kept on disk.
type peer struct {
	Name   string
	Addr   string // host:port of gossip
	Server bool   `json:",omitempty"`
	Seen   int64  // alive, in seconds
}

type peersFile struct {
	Members []peer
	From    int64 // as in peers
}

// peers keeps where members were last, for a start that has nobody to ask.
type peers struct {
	file string

	mu   sync.Mutex
	last []peer
	from int64 // from when on time does not count, in seconds, unless they are looked at before
}

func openPeers(file string) (*peers, error) {
	p := &peers{file: file}
	if file == "" {
		return p, nil
	}
	_, err := durable.File{Path: file, Most: maxPeersFile}.Read(func(b []byte) error {
		var doc peersFile
		if err := json.Unmarshal(b, &doc); err != nil {
			return err
		}
		for _, m := range doc.Members {
			if _, _, err := net.SplitHostPort(m.Addr); err == nil && len(p.last) < maxPeers {
				p.last = append(p.last, m)
				p.from = max(p.from, m.Seen+seenStep) // where an earlier version wrote it
			}
		}
		p.from = cmp.Or(doc.From, p.from)
		return nil
	})
	return p, err
}

// addrs are where members were, servers first, each part in random order.
func (p *peers) addrs() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	list := slices.Clone(p.last)
	rand.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
	slices.SortStableFunc(list, func(a, b peer) int { return after(a.Server) - after(b.Server) })
	out := make([]string, 0, len(list))
	for _, m := range list {
		out = append(out, m.Addr)
	}
	return out
}

// after sorts what holds before what does not.
func after(first bool) int {
	if first {
		return 0
	}
	return 1
}

// keep writes those of the members that are alive, and those that were there before
// and said nothing of leaving: they are what the way back from a partition begins with.
func (p *peers) keep(members []catalog.Member, self string, forget time.Duration, clock time.Time) error {
	p.mu.Lock()
	p.age(clock.Unix(), p.inTouch(members, self))
	next := p.merge(members, self, clock.Add(-forget).Unix(), clock.Unix())
	same := slices.Equal(next, p.last)
	p.last = next
	doc := peersFile{Members: next, From: p.from}
	p.mu.Unlock()
	if same || p.file == "" {
		return nil
	}
	return p.write(doc)
}

// age lets only time count in which this host could have seen the others. It may have been
// off or cut off for months, and what it knows of them is its way back, the only one where
// no retry_join names any. While it is in touch the next step counts, also when it is
// restarted within: when it stopped is not kept.
func (p *peers) age(now int64, inTouch bool) {
	for i := range p.last {
		p.last[i].Seen += max(now-p.from, 0)
	}
	p.from = now
	if inTouch {
		p.from += seenStep
	}
}

// seenStep is how coarsely it is kept when a member was seen: each step is a write.
const seenStep = 3600

func (p *peers) merge(members []catalog.Member, self string, oldest, now int64) []peer {
	byAddr := make(map[string]peer, len(p.last))
	for _, old := range p.last {
		if old.Seen >= oldest {
			byAddr[old.Addr] = old
		}
	}
	alive := map[string]bool{}
	for _, m := range members {
		addr := addrOf(m)
		switch {
		case m.Name == self:
		case m.Status == catalog.MemberAlive:
			alive[addr] = true
			byAddr[addr] = peer{Name: m.Name, Addr: addr, Server: m.Tags["role"] == "consul", Seen: now - now%seenStep}
		case m.Status == catalog.MemberLeft:
			delete(byAddr, addr)
		}
	}
	next := slices.Collect(maps.Values(byAddr))
	slices.SortFunc(next, func(a, b peer) int {
		return cmp.Or(after(a.Server)-after(b.Server), after(alive[a.Addr])-after(alive[b.Addr]), cmp.Compare(a.Addr, b.Addr))
	})
	return next[:min(len(next), maxPeers)]
}

// inTouch tells whether this host is with others, and with more of the servers than it
// misses: who is cut off with fewer, and however many agents, keeps the rest. A server that
// moved or left is not missed.
func (p *peers) inTouch(members []catalog.Member, self string) bool {
	other, servers, known := false, 0, map[string]bool{}
	for _, m := range members {
		if m.Status == catalog.MemberAlive {
			other = other || m.Name != self
			if m.Tags["role"] == "consul" {
				servers++
			}
		}
		known[m.Name] = m.Status == catalog.MemberAlive || m.Status == catalog.MemberLeft
	}
	missed := map[string]bool{}
	for _, q := range p.last {
		if q.Server && !known[q.Name] {
			missed[q.Name] = true
		}
	}
	return other && servers > len(missed)
}

// without are the peers whose addresses are none of those of alive members.
func (p *peers) without(members []catalog.Member) []peer {
	there := map[string]bool{}
	for _, m := range members {
		if m.Status == catalog.MemberAlive {
			there[addrOf(m)] = true
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(p.last), func(q peer) bool { return there[q.Addr] })
}

func (p *peers) write(doc peersFile) error {
	b, err := json.MarshalIndent(doc, "", "  ")
	if err != nil {
		return err
	}
	return durable.Write(p.file, append(b, '\n'))
}

// forget removes what is kept, for a host that leaves for good.
func (p *peers) forget() error {
	p.mu.Lock()
	p.last = nil
	p.mu.Unlock()
	if p.file == "" {
		return nil
	}
	if err := os.Remove(p.file); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
