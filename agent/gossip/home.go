package gossip

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/catalog/durable"
)

// homeTag says since when a member lives where it does, over its restarts, so that of a
// host and its copy all take the same for the original, whichever of them was started
// last. It is not shown.
const homeTag = "home"

const maxHomeFile = 4 << 10

// home is what a host keeps of itself. A copy of it, elsewhere, reads there that it lives
// at another address now, and is younger.
type home struct {
	Name, ID string
	Addr     string // as others are told
	Since    int64  // milliseconds
	// Original is where the host lived of which this one was found to be a copy. It stays
	// one: the original may only be down for a moment.
	Original string `json:",omitempty"`

	file string
	kept bool // it was here when it last ran
}

// openHome reads what is kept. Where the port is any that is free no address is a home.
func openHome(cfg *Config, addr string, now time.Time) home {
	h := home{Name: cfg.NodeName, ID: cfg.NodeID, Addr: addr, Since: now.UnixMilli(), file: cfg.HomeFile}
	if h.file == "" || addr == "" {
		return home{Name: h.Name, ID: h.ID, Addr: addr, Since: h.Since}
	}
	var old home
	_, err := durable.File{Path: h.file, Most: maxHomeFile}.Read(func(b []byte) error { return json.Unmarshal(b, &old) })
	if err != nil {
		cfg.Logger.Warn("it cannot be read since when this host lives here: it counts as new", "file", h.file, "err", err)
	}
	if strings.EqualFold(old.ID, h.ID) {
		h.Original = old.Original
		h.Since = max(h.Since, old.Since+1) // a copy is younger, by whatever clock
		if h.kept = old.Name == h.Name && old.Addr == h.Addr && old.Since > 0; h.kept {
			h.Since = old.Since
		}
	}
	return h
}

// settle keeps what is new, once the host could listen there.
func (h *home) settle(log *slog.Logger) {
	if h.file != "" && !h.kept {
		h.write(log)
	}
}

func (h *home) write(log *slog.Logger) {
	if h.file == "" {
		return
	}
	b, err := json.MarshalIndent(h, "", "  ")
	if err == nil {
		err = durable.Write(h.file, append(b, '\n'))
	}
	if err != nil {
		log.Warn("it is not kept since when this host lives here: after a restart it may be taken for a copy of itself", "file", h.file, "err", err)
	}
}

// homeOf is since when a node lives where it does; one of an earlier version says only
// when it was started.
func homeOf(n *memberlist.Node) int64 {
	return cmp.Or(timeTag(n, homeTag), timeTag(n, startTag))
}

func timeTag(n *memberlist.Node, tag string) int64 {
	tags, err := decodeTags(n.Meta)
	if err != nil {
		return 0
	}
	ms, err := strconv.ParseInt(tags[tag], 36, 64)
	if err != nil {
		return 0 // of another version
	}
	return ms
}

// elderAsks is how often an elder is asked whether it lives: a packet may be lost.
const elderAsks = 3

// Elder is the address of a living host that has the name and ID of this one and
// was there before it: of the original, then, and this host is a copy of it. It is ""
// for none, also where that host does not answer any more, as when this host moved.
func (g *Gossip) Elder() string {
	for _, n := range g.table.elders() {
		addr := &net.UDPAddr{IP: net.ParseIP(n.member.Addr), Port: int(n.member.Port)}
		for range elderAsks {
			if _, err := g.list.Ping(n.claim, addr); err == nil {
				return addrOf(n.member)
			}
		}
	}
	return ""
}

// ErrCopy is that this host is a copy of another and must not go on as it.
var ErrCopy = fmt.Errorf("%w: this host is a copy", catalog.ErrConflict)

// Disown has a host that is a copy say so, now and after each restart: a server, that
// must not take the place of the original when that is down for a moment.
func (g *Gossip) Disown(original string) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if original != "" && g.home.Original != original {
		g.home.Original = original
		g.home.write(g.log)
	}
	if g.home.Original == "" {
		return nil
	}
	remedy := "Stop it, and remove its data directory to make it a host of its own"
	if g.home.file != "" {
		remedy += "; if the other is gone for good and this one is to take its place, remove " + g.home.file
	}
	return fmt.Errorf("%w: the original, with the name %s and the ID %s, lives at %s and this one at %s. %s",
		ErrCopy, g.home.Name, g.home.ID, g.home.Original, g.home.Addr, remedy)
}

// copyWait is how long is waited for others who may know the original.
const copyWait = 3 * time.Second

// Original asks the members at some addresses, and those known before, whether this host
// is a copy of one that lives, and returns an error that wraps ErrCopy if so. One that is
// where it was when it last ran, or that never knew others, is none.
func (g *Gossip) Original(ctx context.Context, addrs []string) error {
	if err := g.Disown(""); err != nil {
		return err
	}
	if g.home.kept || len(g.Peers()) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, copyWait)
	defer cancel()
	addrs = append(g.Peers(), addrs...)
	tried := make(chan struct{}, len(addrs))
	for _, a := range addrs {
		go func() {
			_, _ = g.Join(ctx, []string{a}) // who does not answer knows nothing
			tried <- struct{}{}
		}()
	}
	for range addrs {
		<-tried // at the latest when ctx ends
		if !g.Alone() {
			break
		}
	}
	return g.Disown(g.Elder())
}
