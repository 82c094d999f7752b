package local

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/weftmesh/weft/agent/checks"
	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/catalog/durable"
)

// Folders of the data directory.
const (
	dirServices = "services"
	dirChecks   = "checks"
	dirStates   = "checks/state"

	maxFile = 16 << 20 // of one registration; more is none of ours
)

// staleState is how long the agent may be away before the statuses that it had
// found say nothing any more.
const staleState = 10 * time.Minute

// disk keeps registrations in files named by the hash of their ID, one each,
// written whole or not at all. Without a directory it keeps nothing.
type disk struct {
	dir    string
	log    *slog.Logger
	states map[string]savedState // read at the start, until they are taken
	alive  time.Time             // when the agent last said that it runs, before this start
}

type savedService struct {
	ID        string
	Token     string `json:",omitempty"`
	SidecarOf string `json:",omitempty"`
	Service   *catalog.Service
}

type savedCheck struct {
	ID       string
	Kind     string
	Fact     bool   `json:",omitempty"`
	Interval string // as shown; "0s" and "" differ by how the check was registered
	Timeout  string
	Tags     []string // of the service when the check was registered
	Def      *catalog.CheckDefinition
}

// savedState is what a check had found last.
type savedState struct {
	ID      string
	Status  catalog.Status
	Output  string
	Expires time.Time // of TTL checks
}

// fresh tells whether a saved state still says something: the time of a TTL check
// has not run out, or the agent was not away for long.
func (d *disk) fresh(st savedState, kind string, now time.Time) bool {
	if kind == checks.TypeTTL {
		return now.Before(st.Expires)
	}
	return now.Sub(d.alive) < staleState
}

// aliveFile holds the time at which the agent last ran.
const aliveFile = "alive"

func (d *disk) touch(now time.Time) error {
	if d.dir == "" {
		return nil
	}
	return durable.Swap(filepath.Join(d.dir, dirChecks, aliveFile), []byte(now.UTC().Format(time.RFC3339)))
}

// readAlive leaves the zero time where the agent never ran, or it cannot be told.
func (d *disk) readAlive() {
	if d.dir == "" {
		return
	}
	b, err := durable.File{Path: filepath.Join(d.dir, dirChecks, aliveFile), Most: 64}.Bytes()
	if err != nil {
		return
	}
	if t, err := time.Parse(time.RFC3339, string(b)); err == nil {
		d.alive = t
	}
}

func (d *disk) path(folder, id string) string {
	sum := sha256.Sum256([]byte(id))
	return filepath.Join(d.dir, filepath.FromSlash(folder), hex.EncodeToString(sum[:])+".json")
}

func (d *disk) putService(e *service) error {
	return d.put(dirServices, e.svc.ID, &savedService{ID: e.svc.ID, Token: e.token, SidecarOf: e.sidecarOf, Service: e.svc}, durable.Write)
}

func (d *disk) restoreService(id string, old *service) error {
	if old == nil || old.fromFile {
		return d.remove(dirServices, id)
	}
	return d.putService(old)
}

func (d *disk) putCheck(c *check) error {
	return d.put(dirChecks, c.def.CheckID, &savedCheck{
		ID: c.def.CheckID, Kind: c.kind, Fact: c.fact, Def: c.def,
		Interval: c.row.Interval, Timeout: c.row.Timeout, Tags: c.row.ServiceTags,
	}, durable.Write)
}

func (d *disk) restoreCheck(id string, old *check) error {
	if old == nil || old.fromFile {
		return d.remove(dirChecks, id)
	}
	return d.putCheck(old)
}

// put writes a file whole, by durable.Write or durable.Swap.
func (d *disk) put(folder, id string, v any, write func(file string, b []byte) error) error {
	if d.dir == "" {
		return nil
	}
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("%s %s: %w", folder, id, err)
	}
	if err := write(d.path(folder, id), b); err != nil {
		return fmt.Errorf("%s %s is not saved: %w", folder, id, err)
	}
	return nil
}

func (d *disk) remove(folder, id string) error {
	if d.dir == "" {
		return nil
	}
	if err := durable.Remove(d.path(folder, id)); err != nil {
		return fmt.Errorf("%s %s is not removed: %w", folder, id, err)
	}
	return nil
}

const corruptSuffix = ".corrupt"

// read calls each with the content of every file of a folder. What each refuses is
// moved aside and told, and the rest is read.
func (d *disk) read(folder string, each func(b []byte) (id string, err error)) error {
	if d.dir == "" {
		return nil
	}
	dir := filepath.Join(d.dir, filepath.FromSlash(folder))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("data directory: %w", err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("data directory: %w", err)
	}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		switch {
		case e.IsDir():
			continue
		case filepath.Ext(e.Name()) != ".json":
			continue
		}
		_, err := durable.File{Path: path, Most: maxFile}.Read(func(b []byte) error {
			id, err := each(b)
			if err == nil && d.path(folder, id) != path {
				err = fmt.Errorf("it is not the file of ID %q", id)
			}
			return err
		})
		switch {
		case errors.Is(err, durable.ErrDamaged):
			d.setAside(path, err)
		case err != nil:
			return fmt.Errorf("data directory: %w", err)
		}
	}
	return nil
}

func (d *disk) setAside(path string, cause error) {
	to := path + corruptSuffix
	if err := os.Rename(path, to); err != nil {
		d.log.Error("a registration cannot be read, nor moved aside", "file", path, "err", cause)
		return
	}
	d.log.Error("a registration cannot be read and is moved aside: register it again", "file", to, "err", cause)
}

// takeState gives the saved state of a check, once.
func (d *disk) takeState(id string) (savedState, bool) {
	st, ok := d.states[id]
	delete(d.states, id)
	return st, ok
}
