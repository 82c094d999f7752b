package gossip

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"
	"golang.org/x/time/rate"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/catalog/durable"
)

// keyring holds the keys of gossip, and the file that keeps them.
type keyring struct {
	ring *memberlist.Keyring
	file string

	change  sync.Mutex // held while the ring is changed and written
	changed int64      // when it was last, in milliseconds; 0: as at the cluster's begin

	mu      sync.Mutex
	waiting map[string]chan keysReply // by the ID of the question
	done    map[string]time.Time      // changes that others asked for, by ID

	// Answers under way: whoever has the key may ask, for an address where nobody takes
	// the answer. Those to servers have places of their own.
	answers, refusals chan struct{}
	refused           rate.Sometimes // is logged
}

const (
	// neverShared is the time of change of a ring that has a key of this host alone.
	neverShared = -1
	// maxAhead is by how much the clock of who changed a ring may be ahead of ours.
	maxAhead = 24 * time.Hour
	// maxAnswers and maxRefusals bound the answers to servers, and to others, under way.
	maxAnswers, maxRefusals = 16, 2
)

func openKeyring(cfg Config) (*keyring, error) {
	keys := cfg.SecretKeys
	saved, err := loadKeys(cfg.KeyringFile)
	if err != nil {
		return nil, err
	}
	if len(saved) > 0 {
		if len(keys) > 0 && !slices.Equal(keys[0], saved[0]) {
			cfg.Logger.Warn("gossip uses the keys that were saved, not the one of the configuration",
				"file", cfg.KeyringFile, "hint", "weft keyring -list shows them; delete the file to begin anew")
		}
		keys = saved
	}
	provisional := len(keys) == 0 && cfg.AwaitKeys
	if provisional {
		key := make([]byte, 32)
		_, _ = rand.Read(key) // never fails; nobody else has it
		keys = [][]byte{key}
	}
	if len(keys) == 0 {
		return nil, nil
	}
	ring, err := memberlist.NewKeyring(keys, keys[0])
	if err != nil {
		return nil, fmt.Errorf("gossip: %w: encryption key: %w", catalog.ErrInvalid, err)
	}
	k := &keyring{
		ring: ring, file: cfg.KeyringFile, waiting: map[string]chan keysReply{},
		answers: make(chan struct{}, maxAnswers), refusals: make(chan struct{}, maxRefusals), refused: rate.Sometimes{First: 8, Interval: time.Second},
	}
	switch {
	case provisional:
		k.changed = neverShared
	case len(saved) > 0:
		k.changed = readStamp(cfg.KeyringFile)
	}
	if len(saved) == 0 && !provisional {
		return k, k.save()
	}
	return k, nil
}

// maxKeyringFile bounds what is read of a keyring.
const maxKeyringFile = 1 << 20

func loadKeys(file string) ([][]byte, error) {
	if file == "" {
		return nil, nil
	}
	var keys [][]byte
	ring := durable.File{Path: file, Most: maxKeyringFile, Remedy: "restore the file, or delete it to use the key of the configuration"}
	_, err := ring.Read(func(b []byte) error {
		var texts []string
		if err := json.Unmarshal(b, &texts); err != nil {
			return catalog.Invalidf("%w", err)
		}
		for i, t := range texts {
			key, err := parseKey(t)
			if err != nil {
				return fmt.Errorf("key %d: %w", i+1, err)
			}
			keys = append(keys, key)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("gossip: keyring: %w", err)
	}
	return keys, nil
}

func parseKey(text string) ([]byte, error) {
	key, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		return nil, catalog.Invalidf("the key is not base64; `weft keygen` makes one")
	}
	if err := memberlist.ValidateKey(key); err != nil {
		return nil, catalog.Invalidf("the key has %d bytes, want 16, 24 or 32; `weft keygen` makes one", len(key))
	}
	return key, nil
}

func stampFile(file string) string { return file + ".changed" }

// readStamp is when a saved ring was changed last. A file that is lost or damaged
// makes the ring old, and the servers' keys are taken over.
func readStamp(file string) int64 {
	b, err := durable.File{Path: stampFile(file), Most: 32}.Bytes()
	if err != nil {
		return 0
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
	if err != nil || n < 0 {
		return 0
	}
	return n
}

// save writes the keys, the one in use first, for the next start, and then when they
// changed: what is cut off between the two is taken over again.
func (k *keyring) save() error {
	if k.file == "" {
		return nil
	}
	b, err := json.MarshalIndent(k.texts(), "", "  ")
	if err != nil {
		return fmt.Errorf("gossip: keyring: %w", err)
	}
	if err := durable.Write(k.file, append(b, '\n')); err != nil {
		return fmt.Errorf("gossip: keyring: %w", err)
	}
	if err := durable.Write(stampFile(k.file), fmt.Appendln(nil, k.changed)); err != nil {
		return fmt.Errorf("gossip: keyring: %w", err)
	}
	return nil
}

// texts are the keys in base64, the one in use first.
func (k *keyring) texts() []string {
	keys := k.ring.GetKeys()
	out := make([]string, 0, len(keys))
	for _, key := range keys {
		out = append(out, base64.StdEncoding.EncodeToString(key))
	}
	return out
}

// do carries out op on this host's ring.
func (k *keyring) do(op catalog.KeyringOp, text string, at int64) error {
	if op == catalog.KeyringList {
		return nil
	}
	key, err := parseKey(text)
	if err != nil {
		return err
	}
	k.change.Lock()
	defer k.change.Unlock()
	known := slices.ContainsFunc(k.ring.GetKeys(), func(have []byte) bool { return slices.Equal(have, key) })
	switch op {
	case catalog.KeyringInstall:
		if !known && len(k.ring.GetKeys()) >= maxRing {
			return catalog.Conflictf("the keyring has %d keys, the most allowed: remove one first", maxRing)
		}
		err = k.ring.AddKey(key)
	case catalog.KeyringUse:
		if !known {
			return catalog.NotFoundf("Requested key is not in the keyring: install it first")
		}
		err = k.ring.UseKey(key)
	case catalog.KeyringRemove:
		if known && slices.Equal(k.ring.GetPrimaryKey(), key) {
			return catalog.Conflictf("Removing the primary key is not allowed: use another key first")
		}
		err = k.ring.RemoveKey(key)
	default:
		return catalog.Invalidf("keyring operation %q is not known", op)
	}
	if err != nil {
		return catalog.Conflictf("%w", err)
	}
	// Each change is newer than the one before, whatever the clocks of those say who
	// asked for them: who missed it takes over only what is newer than what he has.
	if k.changed != neverShared {
		k.changed++
	}
	if at <= time.Now().Add(maxAhead).UnixMilli() {
		k.changed = max(k.changed, at)
	}
	return k.save()
}

// stampLen is the length of the last element of an exported ring: when it was
// changed last, in milliseconds. No key is so short.
const stampLen = 8

// Export gives the ring for hosts that do not have it: the key that encrypts, the
// others, and when the ring was changed last. Only Import reads it; nil without
// encryption, and while there is but a key that nobody else has.
func (g *Gossip) Export() [][]byte {
	if g.keys == nil {
		return nil
	}
	g.keys.change.Lock()
	defer g.keys.change.Unlock()
	if g.keys.changed == neverShared {
		return nil
	}
	return append(g.keys.ring.GetKeys(), binary.BigEndian.AppendUint64(nil, uint64(g.keys.changed)))
}

// Import takes over a ring that another host exported, when it was changed later than
// the one at hand. It is how a host that was down while keys changed, or that never
// had one, comes to speak with the others.
func (g *Gossip) Import(ring [][]byte) error {
	if g.keys == nil || len(ring) == 0 {
		return nil
	}
	keys, changed := ring, int64(0)
	if last := ring[len(ring)-1]; len(last) == stampLen {
		keys, changed = ring[:len(ring)-1], int64(binary.BigEndian.Uint64(last))
	}
	for i, k := range keys {
		if err := memberlist.ValidateKey(k); err != nil {
			return fmt.Errorf("gossip: key %d of the servers: %w: %w", i+1, catalog.ErrInvalid, err)
		}
	}
	took, err := g.keys.replace(keys, changed)
	if took {
		g.log.Info("gossip took over the servers' keys", "keys", len(keys))
	}
	return err
}

// replace makes the ring consist of keys, unless it was changed later than they.
func (k *keyring) replace(keys [][]byte, changed int64) (took bool, err error) {
	k.change.Lock()
	defer k.change.Unlock()
	if len(keys) == 0 || changed < 0 || changed <= k.changed || changed > time.Now().Add(maxAhead).UnixMilli() {
		return false, nil
	}
	for _, key := range keys {
		err = errors.Join(err, k.ring.AddKey(key))
	}
	err = errors.Join(err, k.ring.UseKey(keys[0]))
	for _, had := range k.ring.GetKeys() {
		if !slices.ContainsFunc(keys, func(key []byte) bool { return slices.Equal(key, had) }) {
			err = errors.Join(err, k.ring.RemoveKey(had))
		}
	}
	if err != nil {
		return false, fmt.Errorf("gossip: keyring: %w", err)
	}
	k.changed = changed
	return true, k.save()
}

// Kinds of messages about the keyring, beside those of delegate.go, and their bound.
const (
	msgKeys        = 10 // a change, or a question
	msgKeysDone    = 11 // the answer to that
	maxKeysMessage = 16 << 10
)

// keysMessage asks a member to do something with its keyring, or answers that.
// Who can send one has a key of gossip already; being answered takes more: see Warrant.
type keysMessage struct {
	ID   string
	From string
	Op   catalog.KeyringOp
	Key  string `json:",omitempty"`
	At   int64  `json:",omitempty"` // milliseconds, of who changes
	// Proof is that a server asks: see Warrant.
	Proof []byte `json:",omitempty"`
}

type keysReply struct {
	ID   string
	From string
	Keys []string
	Err  string `json:",omitempty"`
}

const (
	// keysWait is how long members have to answer.
	keysWait = 5 * time.Second
	// keysLook is between two looks at which of them are alive still.
	keysLook = 100 * time.Millisecond
)

// Keyring carries out op on the keyring of every member that is alive, and tells
// what came of it. A host that may not change keys lists its own alone: see Warrant. A member that turns out to have failed meanwhile does not count:
// it is given the keys when it is back. The error is of this host alone: see
// KeyringReport.Errors.
func (g *Gossip) Keyring(ctx context.Context, op catalog.KeyringOp, key string) (*catalog.KeyringReport, error) {
	if g.keys == nil {
		return nil, catalog.Conflictf("the keyring is empty: gossip is not encrypted; set encrypt to a key of `weft keygen` and restart the agents")
	}
	if op != catalog.KeyringList {
		if _, err := parseKey(key); err != nil {
			return nil, err
		}
	}
	id := make([]byte, 16)
	_, _ = rand.Read(id) // never fails
	q := keysMessage{ID: hex.EncodeToString(id), From: g.cfg.NodeName, Op: op, Key: key, At: time.Now().UnixMilli()}
	unsigned := g.sign(&q)
	if unsigned != nil && op != catalog.KeyringList {
		return nil, unsigned
	}
	others := slices.DeleteFunc(g.table.alive(), func(m catalog.Member) bool { return m.Name == g.cfg.NodeName })
	if unsigned != nil {
		others = nil // they would not say
	}
	replies := g.keys.expect(q.ID, len(others)+1)
	defer g.keys.forget(q.ID)

	report := &catalog.KeyringReport{Keys: map[string][]string{}, Errors: map[string]string{}}
	add := func(node string, keys []string, failure string) {
		report.Keys[node] = keys
		if failure != "" {
			report.Errors[node] = failure
		}
	}
	missing := map[string]string{} // why, by member
	for _, m := range others {
		missing[m.Name] = "no answer"
		if err := g.sendTo(m.Name, msgKeys, q); err != nil {
			missing[m.Name] = err.Error()
		}
	}
	// This host last: a key that it no longer has could not carry the question.
	add(g.keys.answer(g.cfg.NodeName, q))
	wait, cancel := context.WithTimeout(ctx, keysWait)
	defer cancel()
	look := time.NewTicker(keysLook)
	defer look.Stop()
	for len(missing) > 0 {
		select {
		case r := <-replies:
			if _, asked := missing[r.From]; asked {
				delete(missing, r.From)
				add(r.From, r.Keys, r.Err)
			}
		case <-look.C:
			alive := g.table.alive()
			maps.DeleteFunc(missing, func(name, _ string) bool {
				return !slices.ContainsFunc(alive, func(m catalog.Member) bool { return m.Name == name })
			})
		case <-wait.Done():
			maps.Copy(report.Errors, missing)
			return report, nil
		}
	}
	return report, nil
}

func (k *keyring) expect(id string, n int) <-chan keysReply {
	k.mu.Lock()
	defer k.mu.Unlock()
	ch := make(chan keysReply, n)
	k.waiting[id] = ch
	return ch
}

func (k *keyring) forget(id string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.waiting, id)
}

// answer does what is asked, and says what the ring is then.
func (k *keyring) answer(node string, q keysMessage) (string, []string, string) {
	if err := k.do(q.Op, q.Key, q.At); err != nil {
		return node, k.texts(), err.Error()
	}
	return node, k.texts(), ""
}

// keysMessage takes a message about the keyring; false for any other. It must not
// block memberlist.
func (g *Gossip) keysMessage(b []byte) bool {
	if len(b) == 0 || b[0] != msgKeys && b[0] != msgKeysDone {
		return false
	}
	switch {
	case g.keys == nil || len(b) > maxKeysMessage:
	case b[0] == msgKeysDone:
		g.keys.answered(b[1:])
	default:
		g.keysAsked(b[1:])
	}
	return true
}

func (k *keyring) answered(b []byte) {
	var r keysReply
	if json.Unmarshal(b, &r) != nil {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	select {
	case k.waiting[r.ID] <- r:
	default: // nobody waits for it
	}
}

func (g *Gossip) keysAsked(b []byte) {
	var q keysMessage
	if json.Unmarshal(b, &q) != nil || q.From == g.cfg.NodeName {
		return
	}
	reply, places := keysReply{ID: q.ID, From: g.cfg.NodeName}, g.keys.refusals
	if err := g.warranted(&q, time.Now()); err != nil {
		reply.Err = err.Error()
		g.keys.refused.Do(func() { g.log.Warn("gossip keyring", "peer", q.From, "rule", string(q.Op), "err", reply.Err) })
	} else {
		places = g.keys.answers
		reply.From, reply.Keys, reply.Err = g.keys.answer(g.cfg.NodeName, q)
		if q.Op != catalog.KeyringList {
			g.log.Info("gossip keyring", "peer", q.From, "rule", string(q.Op), "err", reply.Err)
		}
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.ended {
		return
	}
	select {
	case places <- struct{}{}:
	default:
		return // who asked does not wait for ever
	}
	g.talks.Go(func() {
		defer func() { <-places }()
		if err := g.sendTo(q.From, msgKeysDone, reply); err != nil {
			g.log.Debug("an answer about the keyring was not sent", "node", q.From, "err", err)
		}
	})
}

// sendTo sends a message to one member, over TCP.
func (g *Gossip) sendTo(name string, kind byte, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("gossip: %w", err)
	}
	if len(b) >= maxKeysMessage {
		return fmt.Errorf("gossip: a message of %d bytes: %w", len(b), catalog.ErrTooLarge)
	}
	claim := g.table.claim(name)
	for _, n := range g.list.Members() {
		if n.Name == claim {
			return g.list.SendReliable(n, append([]byte{kind}, b...))
		}
	}
	return catalog.NotFoundf("member %s is not alive", name)
}
