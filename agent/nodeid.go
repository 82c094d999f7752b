package agent

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/google/uuid"

	"github.com/weftmesh/weft/catalog"
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
	if err := os.MkdirAll(dataDir, 0o700); err != nil {
		return "", fmt.Errorf("node ID: %w", err)
	}
	if err := writeFile(file, id); err != nil {
		return "", fmt.Errorf("node ID: %w", err)
	}
	return id, nil
}

func readNodeID(file string) (string, error) {
	b, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("node ID: %w", err)
	}
	id, err := uuid.Parse(strings.TrimSpace(string(b)))
	if err != nil {
		return "", fmt.Errorf("%s: %w: it does not hold a UUID; restore it, or remove it to become a new node", file, catalog.ErrInvalid)
	}
	return id.String(), nil
}

func newUUID() (string, error) {
	id, err := uuid.NewRandomFromReader(rand.Reader)
	if err != nil {
		return "", fmt.Errorf("node ID: %w", err)
	}
	return id.String(), nil
}

// writeFile replaces a file in one step, so that a crash leaves the old text or
// the new one.
func writeFile(file, text string) error {
	f, err := os.CreateTemp(filepath.Dir(file), filepath.Base(file)+".*.tmp") // made with mode 0600
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(f.Name()) }() // fails after the rename, as it should
	_, err = f.WriteString(text)
	if err == nil {
		err = f.Sync()
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), file)
}
