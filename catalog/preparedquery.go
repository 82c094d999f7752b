package catalog

import (
	"regexp"
	"slices"
	"strings"
	"time"
)

// PreparedQuery is a search for instances that is stored under a name.
type PreparedQuery struct {
	ID       string // UUID
	Name     string
	Session  string // the query ends with it
	Token    string
	Template QueryTemplate
	Service  ServiceQuery
	DNS      QueryDNS
	RaftIndex
}

// QueryTemplate makes a query answer for every name that begins with its own; parts
// of the name asked for are put into its Service.
type QueryTemplate struct {
	Type            string // "" or TemplatePrefix
	Regexp          string
	RemoveEmptyTags bool
}

// TemplatePrefix is the one type of templates.
const TemplatePrefix = "name_prefix_match"

// ServiceQuery says which instances are searched for.
type ServiceQuery struct {
	Service        Name
	SamenessGroup  string
	Failover       QueryFailover
	OnlyPassing    bool
	IgnoreCheckIDs []string
	Near           string
	// Tags must all be there; those that begin with ! must not.
	Tags        []string
	NodeMeta    map[string]string
	ServiceMeta map[string]string
	Connect     bool
	Peer        string
}

// QueryFailover says where to search when nothing was found here.
type QueryFailover struct {
	NearestN    int
	Datacenters []string
	Targets     []FailoverTarget
}

// FailoverTarget is a datacenter or a peer.
type FailoverTarget struct {
	Peer       string
	Datacenter string
}

// QueryDNS is how the query is answered over DNS.
type QueryDNS struct{ TTL string }

// SetPreparedQuery creates the query, or replaces the one with its ID. A name or
// template that another query has is refused with ErrConflict.
// Result: nil.
type SetPreparedQuery struct {
	Query PreparedQuery
	// Update refuses, with ErrNotFound, an ID that there is not; without it one that
	// there is conflicts.
	Update bool
}

// DeletePreparedQuery removes a query. One that is not there is ErrNotFound.
// Result: nil.
type DeletePreparedQuery struct{ ID string }

// CommandType implements Command.
func (*SetPreparedQuery) CommandType() CommandType { return CmdSetPreparedQuery }

// CommandType implements Command.
func (*DeletePreparedQuery) CommandType() CommandType { return CmdDelPreparedQuery }

// Validate implements Command.
func (c *SetPreparedQuery) Validate() error {
	if err := validName("prepared query: ID", c.Query.ID); err != nil {
		return err
	}
	return c.Query.Validate()
}

// Validate implements Command.
func (c *DeletePreparedQuery) Validate() error { return validName("prepared query: ID", c.ID) }

// Bounds of a query.
const (
	maxQueryText = 4096 // bytes of one rendered or stored text
	maxQueryList = 128  // elements of one list or map
)

func badQuery(format string, args ...any) error {
	return Invalidf("Invalid prepared query: "+format, args...)
}

// Validate refuses what could not be executed. Its words are those of Consul.
func (q *PreparedQuery) Validate() error {
	if q.Name == "" && q.Template.Type == "" && q.Session == "" {
		return badQuery("Must be bound to a session")
	}
	if q.Token == "<hidden>" {
		return badQuery("Bad Token '<hidden>', it looks like a query definition with a redacted token was submitted")
	}
	for what, text := range map[string]string{"name": q.Name, "session": q.Session} {
		if err := validOptionalName("prepared query: "+what, text); err != nil {
			return err
		}
	}
	if err := q.validateTemplate(); err != nil {
		return err
	}
	if err := q.Service.validate(); err != nil {
		return err
	}
	return q.DNS.validate()
}

func (d QueryDNS) validate() error {
	if d.TTL == "" {
		return nil
	}
	ttl, err := time.ParseDuration(d.TTL)
	switch {
	case err != nil:
		return badQuery("Bad DNS TTL '%s': %w", d.TTL, err)
	case ttl < 0:
		return badQuery("DNS TTL '%d', must be >=0", ttl)
	}
	return nil
}

func (s *ServiceQuery) validate() error {
	switch {
	case s.Service == "":
		return badQuery("Must provide a Service name to query")
	case s.SamenessGroup != "":
		return badQuery("sameness groups are a Consul Enterprise feature")
	case s.Failover.NearestN < 0:
		return badQuery("Bad NearestN '%d', must be >= 0", s.Failover.NearestN)
	case len(s.Failover.Targets) > 0 && (s.Failover.NearestN != 0 || len(s.Failover.Datacenters) > 0):
		return badQuery("Targets cannot be populated with NearestN or Datacenters")
	}
	for _, n := range []int{
		len(s.Tags), len(s.IgnoreCheckIDs), len(s.NodeMeta), len(s.ServiceMeta), len(s.Failover.Datacenters), len(s.Failover.Targets),
	} {
		if n > maxQueryList {
			return badQuery("a list has %d elements, at most %d are allowed", n, maxQueryList)
		}
	}
	for i, t := range s.Failover.Targets {
		if (t.Peer == "") == (t.Datacenter == "") {
			return badQuery("Targets[%d] must name a peer or a datacenter, and not both", i)
		}
	}
	return nil
}

func (q *PreparedQuery) validateTemplate() error {
	switch q.Template.Type {
	case "":
		if q.Template.Regexp != "" {
			return badQuery("Template.Regexp is given without Template.Type")
		}
		return q.eachText(func(text string) (string, error) {
			if len(text) > maxQueryText {
				return "", badQuery("a text has %d bytes, at most %d are allowed", len(text), maxQueryText)
			}
			return text, nil
		})
	case TemplatePrefix:
	default:
		return badQuery("Bad Template.Type '%s'", q.Template.Type)
	}
	// What renders for some name can be executed for any.
	probe := *q
	probe.Service = q.Service.clone()
	_, err := probe.Render(q.Name, "")
	return err
}

// eachText passes every text of the service through f.
func (q *PreparedQuery) eachText(f func(string) (string, error)) error {
	s := &q.Service
	texts := []*string{&s.Service, &s.Near, &s.Peer}
	for _, list := range [][]string{s.Failover.Datacenters, s.IgnoreCheckIDs, s.Tags} {
		for i := range list {
			texts = append(texts, &list[i])
		}
	}
	for i := range s.Failover.Targets {
		texts = append(texts, &s.Failover.Targets[i].Peer, &s.Failover.Targets[i].Datacenter)
	}
	for _, t := range texts {
		out, err := f(*t)
		if err != nil {
			return err
		}
		*t = out
	}
	for _, m := range []map[string]string{s.NodeMeta, s.ServiceMeta} {
		for k, v := range m {
			out, err := f(v)
			if err != nil {
				return err
			}
			m[k] = out
		}
	}
	return nil
}

func (s ServiceQuery) clone() ServiceQuery {
	s.Failover.Datacenters = slices.Clone(s.Failover.Datacenters)
	s.Failover.Targets = slices.Clone(s.Failover.Targets)
	s.IgnoreCheckIDs, s.Tags = slices.Clone(s.IgnoreCheckIDs), slices.Clone(s.Tags)
	s.NodeMeta, s.ServiceMeta = cloneMap(s.NodeMeta), cloneMap(s.ServiceMeta)
	return s
}

func cloneMap(m map[string]string) map[string]string {
	if m == nil {
		return nil
	}
	out := make(map[string]string, len(m))
	for k, v := range m {
		out[k] = v
	}
	return out
}

// Render gives the query as it is executed for a name: a template with parts of the
// name filled in, any other query as it is. segment is the network segment of who
// asks. The query itself stays as it was.
func (q *PreparedQuery) Render(name, segment string) (*PreparedQuery, error) {
	if q.Template.Type == "" {
		return q, nil
	}
	if len(name) > maxName {
		return nil, badQuery("the name has %d bytes, at most %d are allowed", len(name), maxName)
	}
	v := templateVars{full: name, prefix: q.Name, suffix: suffixOf(name, q.Name), segment: segment}
	if q.Template.Regexp != "" {
		if len(q.Template.Regexp) > maxName {
			return nil, badQuery("Bad Regexp: it has %d bytes, at most %d are allowed", len(q.Template.Regexp), maxName)
		}
		re, err := regexp.Compile(q.Template.Regexp)
		if err != nil {
			return nil, badQuery("Bad Regexp: %w", err)
		}
		v.matches = re.FindStringSubmatch(name)
	}
	out := *q
	out.Service = q.Service.clone()
	if err := out.eachText(v.fill); err != nil {
		return nil, err
	}
	if q.Template.RemoveEmptyTags {
		out.Service.Tags = slices.DeleteFunc(out.Service.Tags, func(t string) bool { return t == "" || t == "!" })
	}
	return &out, nil
}

// suffixOf is what follows prefix in name, whatever the case of either.
func suffixOf(name, prefix string) string {
	if len(name) >= len(prefix) && strings.EqualFold(name[:len(prefix)], prefix) {
		return name[len(prefix):]
	}
	return name
}

// Select gives the instances that the query chooses, in the order of in.
func (s *ServiceQuery) Select(in []*Instance) []*Instance {
	out := make([]*Instance, 0, len(in))
	for _, i := range in {
		if s.chooses(i) {
			out = append(out, i)
		}
	}
	return out
}

func (s *ServiceQuery) chooses(i *Instance) bool {
	if i.Node == nil || i.Service == nil {
		return false
	}
	for _, c := range i.Checks {
		if slices.Contains(s.IgnoreCheckIDs, c.CheckID) {
			continue
		}
		if c.Status == StatusCritical || s.OnlyPassing && c.Status != StatusPassing {
			return false
		}
	}
	for _, t := range s.Tags {
		bare, not := strings.CutPrefix(t, "!")
		has := slices.ContainsFunc(i.Service.Tags, func(tag string) bool { return strings.EqualFold(tag, bare) })
		if has == not {
			return false
		}
	}
	return hasAll(i.Node.Meta, s.NodeMeta) && hasAll(i.Service.Meta, s.ServiceMeta)
}

func hasAll(have, want map[string]string) bool {
	for k, v := range want {
		if got, ok := have[k]; !ok || got != v {
			return false
		}
	}
	return true
}
