package consensus

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/google/uuid"
	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"

	"github.com/weftmesh/weft/catalog/durable"
	"github.com/weftmesh/weft/catalog/wire"
)

// historyKey is the place of the log's ID in the log file.
var historyKey = []byte("weft_history")

// errLost is a log that was here and is not here any more. A server that went on
// without it would begin an empty cluster in place of the one that it was.
var errLost = errors.New("the log of this server is gone")

// recognise compares the mark with the log. past tells whether the log has
// anything in it.
func (d *disk) recognise(past bool) error {
	marked, err := d.readMark()
	if err != nil || marked == "" {
		return err
	}
	switch own, err := d.history(); {
	case err != nil:
		return err
	case !past:
		return fmt.Errorf("%w: %s says that it began one with the ID %s, and there is nothing in %s",
			errLost, d.mark, marked, filepath.Join(d.dir, logFile))
	case own != marked:
		return fmt.Errorf("%w: %s says that its ID is %s, and the log in %s has the ID %q",
			errLost, d.mark, marked, filepath.Join(d.dir, logFile), own)
	}
	return nil
}

// remember gives the log an ID, unless it has one, and writes the mark. Whatever
// the point at which the process is killed, there is no mark without a log.
func (d *disk) remember() error {
	if d.mark == "" {
		return nil
	}
	own, err := d.history()
	if err != nil {
		return err
	}
	if own == "" {
		own = uuid.NewString()
		if err := d.stable.Set(historyKey, []byte(own)); err != nil {
			return err
		}
	}
	if marked, err := d.readMark(); err != nil || marked == own {
		return err
	}
	return durable.Write(d.mark, []byte(own+"\n"))
}

func (d *disk) history() (string, error) {
	b, err := d.stable.Get(historyKey)
	if errors.Is(err, raftboltdb.ErrKeyNotFound) {
		return "", nil
	}
	return string(b), err
}

// readMark gives the ID of the log that this server began, "" when there is none.
func (d *disk) readMark() (string, error) {
	if d.mark == "" {
		return "", nil
	}
	var id string
	_, err := durable.File{Path: d.mark, Most: 64}.Read(func(b []byte) error {
		id = strings.TrimSpace(string(b))
		if _, err := uuid.Parse(id); err != nil {
			return errors.New("it does not hold a UUID")
		}
		return nil
	})
	if errors.Is(err, durable.ErrDamaged) {
		err = fmt.Errorf("%w: %w", errCorrupt, err)
	}
	return id, err
}

// verify reads the whole log: what was changed on the disk since it was written
// must not be applied as something else.
func (d *disk) verify() error {
	file := filepath.Join(d.dir, logFile)
	first, err := d.bolt.FirstIndex()
	if err != nil {
		return fmt.Errorf("%s: %w: %w", file, errCorrupt, err)
	}
	last, err := d.bolt.LastIndex()
	if err != nil {
		return fmt.Errorf("%s: %w: %w", file, errCorrupt, err)
	}
	backed, err := d.backedUp()
	if err != nil || last == 0 {
		return err
	}
	if first > backed+1 {
		return fmt.Errorf("%s: %w: it begins at entry %d, and the newest backup in %s ends at %d",
			file, errCorrupt, first, filepath.Join(d.dir, "snapshots"), backed)
	}
	var term uint64
	for i := first; i <= last; i++ {
		var l raft.Log
		err := d.bolt.GetLog(i, &l)
		if errors.Is(err, raft.ErrLogNotFound) && i <= backed {
			i = backed // a backup from the leader came in place of these
			continue
		}
		if err == nil {
			err = verifyLog(&l, i, term)
		}
		if err == nil && i > backed {
			err = d.tell(&l)
		}
		if err != nil {
			return fmt.Errorf("%s: %w: entry %d: %w", file, errCorrupt, i, err)
		}
		term = l.Term
	}
	return nil
}

// tell hands on a command that is in the log and in no backup, where it is wanted.
func (d *disk) tell(l *raft.Log) error {
	if l.Type != raft.LogCommand || d.ahead[wire.EntryType(l.Data)] == nil {
		return nil
	}
	cmd, err := wire.DecodeEntry(l.Data)
	if err == nil {
		d.ahead[cmd.CommandType()](cmd)
	}
	return err
}

// backedUp is the index at which the newest backup ends.
func (d *disk) backedUp() (uint64, error) {
	list, err := d.snapshots.List()
	if err != nil || len(list) == 0 {
		return 0, err
	}
	return list[0].Index, nil
}

func verifyLog(l *raft.Log, index, term uint64) error {
	switch {
	case l.Index != index:
		return fmt.Errorf("it says that it is entry %d", l.Index)
	case l.Term < term:
		return fmt.Errorf("its term is %d, the one before has %d", l.Term, term)
	}
	switch l.Type {
	case raft.LogCommand:
		return wire.VerifyEntry(l.Data)
	case raft.LogNoop, raft.LogBarrier:
		if len(l.Data) != 0 {
			return fmt.Errorf("%d bytes where there should be none", len(l.Data))
		}
		return nil
	case raft.LogConfiguration:
		return verifyServers(l.Data)
	}
	return fmt.Errorf("its type %d is not known", l.Type)
}

// verifyServers decodes a list of servers, at which Raft panics.
func verifyServers(b []byte) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("not a list of servers: %v", r)
		}
	}()
	if len(raft.DecodeConfiguration(b).Servers) == 0 {
		return errors.New("a list of no servers")
	}
	return nil
}
