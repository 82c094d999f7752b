package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"

	"github.com/urfave/cli/v2"

	"github.com/weftmesh/weft/catalog/durable"
	"github.com/weftmesh/weft/catalog/store"
)

func snapshotCommand(s streams) *cli.Command {
	return group("snapshot", "Save, restore and look into the whole state of the servers",
		"A snapshot holds the catalog, keys and values, config entries, intentions, prepared queries,\n"+
			"sessions and the certificate authority. The key of the authority is in it sealed: servers with\n"+
			"the same cluster secret can use it. (Of a server without a secret copy ca.seal from its data\n"+
			"directory as well.)",
		snapshotSave(s), snapshotRestore(s), snapshotInspect(), snapshotDecode())
}

func snapshotSave(s streams) *cli.Command {
	return spec{
		name: "save", usage: "Save a snapshot to a file", args: "FILE", min: 1, max: 1,
		flags: clientFlags(&cli.StringFlag{Name: "append-filename", Usage: "Put these before the extension, separated by commas: version, dc, node, status."}),
		about: "The file is written beside its final name, checked, and moved there when it is whole.\nOnly its owner can read it.",
		examples: []string{
			"weft snapshot save backup.snap",
		},
		action: withClient(s, func(c *cli.Context, cl *client) error {
			file, err := appendToName(c, cl, c.Args().First())
			if err != nil {
				return err
			}
			index, err := saveSnapshot(c, cl, file)
			if err != nil {
				return err
			}
			fmt.Fprintf(c.App.Writer, "Saved and verified snapshot to index %d\n", index)
			return nil
		}),
	}.build()
}

// appendToName puts facts about the agent into the name of a file.
func appendToName(c *cli.Context, cl *client, file string) (string, error) {
	wanted := c.String("append-filename")
	if wanted == "" {
		return file, nil
	}
	self, err := cl.Agent().Self()
	if err != nil {
		return "", err
	}
	text := func(key string) string { v, _ := self["Config"][key].(string); return v }
	name := strings.TrimSuffix(file, filepath.Ext(file))
	for part := range strings.SplitSeq(wanted, ",") {
		switch part {
		case "version":
			name += "-" + text("Version")
		case "dc":
			name += "-" + text("Datacenter")
		case "node":
			name += "-" + text("NodeName")
		case "status":
			leader, err := cl.Status().Leader()
			if err != nil {
				return "", err
			}
			state := "follower"
			if raft, ok := self["Stats"]["raft"].(map[string]any); ok && raft["state"] == "Leader" && leader != "" {
				state = "leader"
			}
			name += "-" + state
		default:
			return "", usagef(c, "-append-filename %q is none of version, dc, node and status", part)
		}
	}
	return name + filepath.Ext(file), nil
}

func saveSnapshot(c *cli.Context, cl *client, file string) (index uint64, err error) {
	resp, err := cl.do(c.Context, http.MethodGet, "/v1/snapshot", nil, nil)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	tmp, err := os.CreateTemp(filepath.Dir(file), ".weft-snapshot-*") // mode 0600
	if err != nil {
		return 0, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, ignoreClosed(tmp.Close()), os.Remove(tmp.Name()))
		}
	}()
	if _, err := io.Copy(tmp, resp.Body); err != nil {
		return 0, fmt.Errorf("the snapshot did not arrive whole: %w", err)
	}
	if err := tmp.Sync(); err != nil {
		return 0, err
	}
	if _, err := tmp.Seek(0, io.SeekStart); err != nil {
		return 0, err
	}
	meta, err := store.ReadArchive(tmp, io.Discard)
	if err != nil {
		return 0, err
	}
	if err := tmp.Close(); err != nil {
		return 0, err
	}
	if err := os.Rename(tmp.Name(), file); err != nil {
		return 0, err
	}
	return meta.Index, durable.SyncDir(filepath.Dir(file))
}

func ignoreClosed(err error) error {
	if errors.Is(err, os.ErrClosed) {
		return nil
	}
	return err
}

func snapshotRestore(s streams) *cli.Command {
	return spec{
		name: "restore", usage: "Replace the state of the servers by a snapshot", args: "FILE", min: 1, max: 1, flags: clientFlags(),
		about: "Everything that is not in the snapshot is gone afterwards, but for what agents say of their\nown hosts, which they say again within a minute. A file that is not whole changes nothing.\n" +
			"What is revoked, nodes, join tokens and certificates, stays revoked; so does what the snapshot\nhas revoked.",
		action: withClient(s, func(c *cli.Context, cl *client) error {
			f, err := os.Open(c.Args().First())
			if err != nil {
				return err
			}
			defer f.Close()
			resp, err := cl.do(c.Context, http.MethodPut, "/v1/snapshot", nil, f)
			if err != nil {
				return fmt.Errorf("%s: %w", f.Name(), cl.explain(err))
			}
			defer resp.Body.Close()
			fmt.Fprintln(c.App.Writer, "Restored snapshot")
			return nil
		}),
	}.build()
}

// snapshotFacts is what `snapshot inspect -format=json` prints.
type snapshotFacts struct {
	Meta      store.ArchiveMeta
	Stats     []snapshotStat
	StatsKV   []snapshotStat `json:",omitempty"`
	TotalSize int64
}

type snapshotStat struct {
	Name  string
	Sum   int64
	Count int
}

func snapshotInspect() *cli.Command {
	return spec{
		name: "inspect", usage: "Show what is in a snapshot", args: "FILE", min: 1, max: 1,
		flags: []cli.Flag{
			&cli.BoolFlag{Name: "kvdetails", Usage: "Show how much lies under each prefix of keys."},
			&cli.IntFlag{Name: "kvdepth", Value: 2, Usage: "With -kvdetails: how many parts of a key make a prefix. 0 is all of them."},
			&cli.StringFlag{Name: "kvfilter", Usage: "With -kvdetails: only keys with this prefix."},
			formatFlag(),
		},
		about: "It needs no agent.",
		action: func(c *cli.Context) error {
			var facts snapshotFacts
			stats, kv := tallies{}, tallies{}
			meta, err := eachRecord(c.Args().First(), func(r store.Record) error {
				stats.add(r.Table, r.Size)
				facts.TotalSize += r.Size
				if !c.Bool("kvdetails") || r.Table != "kv" {
					return nil
				}
				key, err := storedKey(r)
				if err != nil || !strings.HasPrefix(key, c.String("kvfilter")) {
					return err
				}
				kv.add(keyPrefix(key, c.Int("kvdepth")), r.Size)
				return nil
			})
			if err != nil {
				return err
			}
			facts.Meta, facts.Stats, facts.StatsKV = *meta, stats.sorted(), kv.sorted()
			return formatted(c, facts, func() error { return showSnapshot(c.App.Writer, facts, c.Bool("kvdetails")) })
		},
	}.build()
}

func keyPrefix(key string, depth int) string {
	parts := strings.SplitAfter(key, "/")
	if depth > 0 && len(parts) > depth {
		parts = parts[:depth]
	}
	return strings.TrimSuffix(strings.Join(parts, ""), "/")
}

// storedKey is the key of a row of keys and values.
func storedKey(r store.Record) (string, error) {
	row, err := r.Decode()
	if err != nil {
		return "", err
	}
	b, err := json.Marshal(row)
	if err != nil {
		return "", err
	}
	var pair struct{ Key string }
	return pair.Key, json.Unmarshal(b, &pair)
}

// eachRecord reads a snapshot twice: first to check it, so that nothing of a
// damaged one is shown.
func eachRecord(file string, each func(store.Record) error) (*store.ArchiveMeta, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if _, err := store.ReadArchive(f, io.Discard); err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	r, w := io.Pipe()
	type result struct {
		meta *store.ArchiveMeta
		err  error
	}
	read := make(chan result, 1)
	go func() {
		meta, err := store.ReadArchive(f, w)
		_ = w.CloseWithError(err) // nil ends the pipe as a file ends
		read <- result{meta, err}
	}()
	err = store.Records(r, each)
	_ = r.CloseWithError(err) // lets the reader go where the records ended early
	done := <-read
	if err = errors.Join(err, done.err); err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return done.meta, nil
}

type tallies map[string]*snapshotStat

func (t tallies) add(name string, size int64) {
	if t[name] == nil {
		t[name] = &snapshotStat{Name: name}
	}
	t[name].Sum += size
	t[name].Count++
}

func (t tallies) sorted() []snapshotStat {
	out := make([]snapshotStat, 0, len(t))
	for _, s := range t {
		out = append(out, *s)
	}
	slices.SortFunc(out, func(a, b snapshotStat) int {
		if a.Sum != b.Sum {
			return int(b.Sum - a.Sum)
		}
		return strings.Compare(a.Name, b.Name)
	})
	return out
}

func showSnapshot(out io.Writer, f snapshotFacts, kv bool) error {
	w := tabwriter.NewWriter(out, 8, 8, 6, ' ', 0)
	for _, p := range [][2]string{
		{"ID", f.Meta.ID},
		{"Size", strconv.FormatInt(f.Meta.Size, 10)},
		{"Index", strconv.FormatUint(f.Meta.Index, 10)},
		{"Term", strconv.FormatUint(f.Meta.Term, 10)},
		{"Version", strconv.Itoa(f.Meta.Version)},
	} {
		fmt.Fprintf(w, " %s\t%s\n", p[0], p[1])
	}
	section := func(head string, stats []snapshotStat) {
		const rule = " ----\t----\t----\n"
		total := int64(0)
		fmt.Fprintf(w, "\n %s\tCount\tSize\n%s", head, rule)
		for _, s := range stats {
			total += s.Sum
			fmt.Fprintf(w, " %s\t%d\t%s\n", s.Name, s.Count, byteSize(s.Sum))
		}
		fmt.Fprintf(w, "%s Total\t\t%s\n", rule, byteSize(total))
	}
	section("Type", f.Stats)
	if kv {
		section("Key Name", f.StatsKV)
	}
	return w.Flush() // which gives the first error of all writes
}

func byteSize(n int64) string {
	const unit = 1024
	size, names := float64(n), []string{"B", "KB", "MB", "GB", "TB"}
	at := 0
	for size >= unit && at < len(names)-1 {
		size, at = size/unit, at+1
	}
	return strings.TrimSuffix(strconv.FormatFloat(size, 'f', 1, 64), ".0") + names[at]
}

func snapshotDecode() *cli.Command {
	return spec{
		name: "decode", usage: "Print a snapshot as JSON, a line for each row", args: "FILE", min: 1, max: 1,
		about: "It needs no agent. What is printed holds values and tokens: keep it as secret as the snapshot.",
		action: func(c *cli.Context) error {
			enc := json.NewEncoder(c.App.Writer)
			_, err := eachRecord(c.Args().First(), func(r store.Record) error {
				row, err := r.Decode()
				if err != nil {
					return err
				}
				return enc.Encode(struct {
					Type string
					Data any
				}{r.Table, row})
			})
			return err
		},
	}.build()
}
