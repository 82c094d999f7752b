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

// KeyringReport is what came of one, by the names of the members that were asked.
type KeyringReport struct {
	// Keys are what a member has, in base64, the one in use first.
	Keys map[string][]string
	// Errors say what failed there.
	Errors map[string]string
}
