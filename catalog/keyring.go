package catalog

// KeyringOp is what may be done with the keys that encrypt gossip.
type KeyringOp string

// Operations on the keyring.
const (
	KeyringList    KeyringOp = "list"
	KeyringInstall KeyringOp = "install"
	KeyringUse     KeyringOp = "use"
	KeyringRemove  KeyringOp = "remove"
)

// KeyringReport is what came of one on all members. Keys count on how many members
// a key, in base64, is installed; PrimaryKeys where it is the one that encrypts.
type KeyringReport struct {
	NumNodes    int
	Keys        map[string]int
	PrimaryKeys map[string]int
	// Errors are those of members by name.
	Errors map[string]string
}

// Add counts what one member said: its keys, that in use first, and what failed.
func (r *KeyringReport) Add(node string, keys []string, failure string) {
	for i, k := range keys {
		r.Keys[k]++
		if i == 0 {
			r.PrimaryKeys[k]++
		}
	}
	if failure != "" {
		r.Errors[node] = failure
	}
}
