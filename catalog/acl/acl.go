// Package acl owns who may do what to which noun. Until tokens land, the only
// Authorizer allows everything; every handler asks one all the same, so that
// none has to be found later.
package acl

// Verb is what a caller wants to do.
type Verb string

// Verbs.
const (
	Read  Verb = "read"
	Write Verb = "write"
)

// Resource is a family of things that a rule speaks of.
type Resource string

// Resources, named as in Consul's rules.
const (
	Agent     Resource = "agent"
	Node      Resource = "node"
	Service   Resource = "service"
	Intention Resource = "intention"
	Mesh      Resource = "mesh"
	Peering   Resource = "peering"
	Operator  Resource = "operator"
	Keyring   Resource = "keyring"
	Query     Resource = "query" // prepared queries
	Key       Resource = "key"
	Session   Resource = "session"
	Event     Resource = "event"
)

// Authorizer answers whether its caller may do verb to the named thing. An empty
// name asks for the whole family.
type Authorizer interface {
	Allowed(verb Verb, res Resource, name string) bool
}

type allowAll struct{}

func (allowAll) Allowed(Verb, Resource, string) bool { return true }

// AllowAll is the authorizer of a cluster without ACLs.
func AllowAll() Authorizer { return allowAll{} }
