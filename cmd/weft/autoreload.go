package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// reloadPoll is the time between looks at the configuration files.
const reloadPoll = time.Second

// onChange calls f each time that the files under paths differ from what they were,
// and were the same at two looks: editors and tools write in several steps. It ends
// with ctx.
func onChange(ctx context.Context, paths []string, looks <-chan time.Time, f func()) {
	known := stateOf(paths)
	last := known
	for {
		select {
		case <-ctx.Done():
			return
		case <-looks:
		}
		now := stateOf(paths)
		if now == last && now != known {
			known = now
			f()
		}
		last = now
	}
}

// stateOf tells files apart by name, size, time and inode, without reading them.
func stateOf(paths []string) string {
	var b strings.Builder
	note := func(path string) {
		info, err := os.Stat(path)
		if err != nil {
			fmt.Fprintf(&b, "%s gone\n", path)
			return
		}
		fmt.Fprintf(&b, "%s %d %d %s\n", path, info.Size(), info.ModTime().UnixNano(), inode(info))
	}
	for _, p := range paths {
		entries, err := os.ReadDir(p)
		if err != nil {
			note(p) // a file
			continue
		}
		var names []string
		for _, e := range entries {
			if ext := filepath.Ext(e.Name()); ext == ".hcl" || ext == ".json" {
				names = append(names, e.Name())
			}
		}
		slices.Sort(names)
		for _, name := range names {
			note(filepath.Join(p, name))
		}
	}
	return b.String()
}

// autoReload reloads when files change, where the configuration wants that.
func (h *host) autoReload(ctx context.Context) {
	if !h.cfg.AutoReload || len(h.paths) == 0 {
		return
	}
	tick := time.NewTicker(reloadPoll)
	defer tick.Stop()
	onChange(ctx, h.paths, tick.C, func() {
		h.log.Info("a configuration file changed", "files", strings.Join(h.paths, " "))
		h.hangup(ctx)
	})
}
