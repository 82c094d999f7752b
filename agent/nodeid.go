package agent

import (
	"crypto/rand"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/google/uuid"

	"github.com/weftmesh/weft/catalog"
	"github.com/weftmesh/weft/catalog/durable"
)

// NodeID gives the ID of this host: want when that is set, else the one in the
// file node-id of dataDir, which is made on the first start and never changes.
// With neither it is another one at every start.
func NodeID(dataDir, want string) (string, error) {
	if want != "" {
		id, err := uuid.Parse(want)
		if err != nil {
			return "", fmt.Errorf("node_id %q: %w: it must be a UUID", want, catalog.ErrInvalid)
		}
		want = id.String()
	}
	if dataDir == "" {
		if want != "" {
			return want, nil
		}
		return newUUID()
	}
	file := filepath.Join(dataDir, "node-id")
	kept, err := readNodeID(file)
	if err != nil {
		return "", err
	}
	id := want
	if id == "" {
		id = kept
	}
	if id == kept && id != "" {
		return id, nil
	}
	if id == "" {
		if id, err = newUUID(); err != nil {
			return "", err
		}
	}
	if err := durable.Write(file, []byte(id)); err != nil {
		return "", fmt.Errorf("node ID: %w", err)
	}
	return id, nil
}

func readNodeID(file string) (string, error) {
	var id string
	_, err := durable.File{Path: file, Most: 64, Remedy: "restore it, or remove it to become a new node"}.Read(func(b []byte) error {
		u, err := uuid.Parse(strings.TrimSpace(string(b)))
		if err != nil {
			return catalog.Invalidf("it does not hold a UUID")
		}
		id = u.String()
		return nil
	})
	if err != nil {
		return "", fmt.Errorf("node ID: %w", err)
	}
	return id, nil
}

func newUUID() (string, error) {
	id, err := uuid.NewRandomFromReader(rand.Reader)
	if err != nil {
		return "", fmt.Errorf("node ID: %w", err)
	}
	return id.String(), nil
}
