package config

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/weftmesh/weft/catalog"
)

// Options say which sources there are. They are merged in Consul's order: files
// and folders as they stand on the command line, then fragments, then flags.
// Later scalars replace earlier ones, maps are merged, lists are appended.
type Options struct {
	Dev bool
	// Paths are files, and folders of which *.hcl and *.json are read in lexical
	// order, without their folders.
	Paths []string
	// Format is "hcl" or "json" for files whose names do not say.
	Format string
	// Fragments are pieces of HCL or JSON.
	Fragments []string
	// Flags are values by key.
	Flags []FlagValue
	// Hostname names the host when nothing else does; os.Hostname when nil.
	Hostname func() (string, error)
}

// FlagValue is what a flag says of its key: a bool, int, string, []string or
// map[string]string.
type FlagValue struct {
	Flag  string // "-node"
	Key   string // "node_name"
	Value any
}

// Load reads, merges and checks all sources.
func Load(o Options) (*Config, error) {
	c := Default()
	if o.Dev {
		c.dev()
	}
	m := &merger{config: c, fields: fieldsOf(c), warned: map[string]bool{}}
	for _, path := range o.Paths {
		m.note(m.path(path, o.Format))
	}
	for _, f := range o.Fragments {
		m.note(m.source("-hcl", formatOf(f), []byte(f)))
	}
	for _, f := range o.Flags {
		m.note(m.flag(f))
	}
	m.definitions()
	if err := m.mistakes.Err(); err != nil {
		return nil, err // what follows would only complain of what is missing
	}
	if err := c.finish(o.Hostname); err != nil {
		return nil, err
	}
	return c, c.validate()
}

// maxMistakes bounds how many mistakes are told at once.
const maxMistakes = 50

// Mistakes is more than one mistake in the sources, in the order in which they stand.
type Mistakes []error

func (l Mistakes) Error() string {
	lines := make([]string, len(l))
	for i, err := range l {
		lines[i] = err.Error()
	}
	return strings.Join(lines, "\n")
}

// Unwrap gives each mistake.
func (l Mistakes) Unwrap() []error { return l }

// Add takes an error, or each of several.
func (l *Mistakes) Add(err error) {
	if err == nil || len(*l) >= maxMistakes {
		return
	}
	var many Mistakes
	if errors.As(err, &many) {
		*l = append(*l, many[:min(len(many), maxMistakes-len(*l))]...)
		return
	}
	*l = append(*l, err)
}

// Err is nil for none, and one alone as it is.
func (l Mistakes) Err() error {
	switch len(l) {
	case 0:
		return nil
	case 1:
		return l[0]
	default:
		return l
	}
}

// note takes a mistake down and lets the search for others go on.
func (m *merger) note(err error) { m.mistakes.Add(err) }

// Services reads a file that holds nothing but `service` and `services`, for
// registration over the API.
func Services(file string, src []byte) ([]*catalog.ServiceRegistration, error) {
	n, err := parse(file, formatByName(file, string(src)), src)
	if err != nil {
		return nil, err
	}
	m := &merger{config: Default(), warned: map[string]bool{}}
	for i := range n.fields {
		f := &n.fields[i]
		k, ok := table().keys[normalize(f.name)]
		if !ok || (k.Name != "service" && k.Name != "services") {
			return nil, errorAt(f.pos, f.name, "does not belong here: only service and services do")
		}
		m.note(m.value(k, f))
	}
	m.definitions()
	if err := m.mistakes.Err(); err != nil {
		return nil, err
	}
	if len(m.config.Services) == 0 {
		return nil, errorAt(Pos{File: file}, "", "there is no service in it")
	}
	return m.config.Services, nil
}

// Entry reads a file that holds one config entry.
func Entry(file string, src []byte) (catalog.ConfigEntry, error) {
	n, err := parse(file, formatByName(file, string(src)), src)
	if err != nil {
		return nil, err
	}
	e, err := catalog.DecodeConfigEntry(n.object())
	if err != nil {
		return nil, explain(n, "", err)
	}
	e.Normalize()
	if err := e.Validate(); err != nil {
		return nil, explain(n, "", err)
	}
	return e, nil
}

// Map reads a file that holds one free object.
func Map(file string, src []byte) (map[string]any, error) {
	n, err := parse(file, formatByName(file, string(src)), src)
	if err != nil {
		return nil, err
	}
	m, _ := native(n.object()).(map[string]any)
	return m, nil
}

func parse(file, format string, src []byte) (*node, error) {
	if len(src) > maxSource {
		return nil, errorAt(Pos{File: file}, "", "larger than %d MiB", maxSource>>20)
	}
	src = []byte(strings.TrimPrefix(string(src), "\ufeff"))
	switch format {
	case "json":
		return parseJSON(file, src)
	case "hcl":
		return parseHCL(file, src)
	default:
		return nil, errorAt(Pos{File: file}, "", "the name ends neither in .hcl nor in .json; say which with -config-format")
	}
}

// formatOf tells JSON from HCL by the first character.
func formatOf(src string) string {
	if strings.HasPrefix(strings.TrimSpace(src), "{") {
		return "json"
	}
	return "hcl"
}

func formatByName(file, src string) string {
	switch filepath.Ext(file) {
	case ".json":
		return "json"
	case ".hcl":
		return "hcl"
	default:
		return formatOf(src)
	}
}

func (m *merger) path(path, format string) error {
	info, err := os.Stat(path)
	if err != nil {
		return readError(path, err)
	}
	if !info.IsDir() {
		return m.file(path, format)
	}
	entries, err := os.ReadDir(path) // sorted by name
	if err != nil {
		return readError(path, err)
	}
	for _, e := range entries {
		name := filepath.Join(path, e.Name())
		if ext := filepath.Ext(name); ext != ".hcl" && ext != ".json" {
			continue
		}
		if info, err := os.Stat(name); err != nil {
			return readError(name, err)
		} else if info.IsDir() {
			continue
		}
		m.note(m.file(name, format))
	}
	return nil
}

func (m *merger) file(name, format string) error {
	f, err := os.Open(name)
	if err != nil {
		return readError(name, err)
	}
	defer f.Close()
	src, err := io.ReadAll(io.LimitReader(f, maxSource+1))
	if err != nil {
		return readError(name, err)
	}
	switch filepath.Ext(name) {
	case ".json":
		format = "json"
	case ".hcl":
		format = "hcl"
	}
	m.config.Files = append(m.config.Files, name)
	return m.source(name, format, src)
}

func readError(path string, err error) error {
	var pe *fs.PathError
	if errors.As(err, &pe) {
		err = pe.Err
	}
	return &Error{Pos: Pos{File: path}, Msg: fmt.Sprintf("cannot be read: %v", err)}
}

func (m *merger) source(file, format string, src []byte) error {
	n, err := parse(file, format, src)
	if err != nil {
		return err
	}
	return m.object("", n)
}

// flag turns a flag into a value as a file would hold it.
func (m *merger) flag(f FlagValue) error {
	pos := Pos{File: f.Flag}
	k, ok := table().keys[normalize(f.Key)]
	if !ok {
		return errorAt(pos, f.Key, "unknown key")
	}
	return m.value(k, &field{name: k.Name, pos: pos, node: flagNode(pos, f.Value)})
}

func flagNode(pos Pos, v any) *node {
	n := &node{pos: pos}
	switch x := v.(type) {
	case bool:
		n.kind, n.scalar = kindBool, x
	case int:
		n.kind, n.scalar = kindNumber, number(int64(x))
	case []string:
		n.kind = kindList
		for _, s := range x {
			n.items = append(n.items, flagNode(pos, s))
		}
	case map[string]string:
		n.kind = kindObject
		names := make([]string, 0, len(x))
		for name := range x {
			names = append(names, name)
		}
		slices.Sort(names)
		for _, name := range names {
			n.fields = append(n.fields, field{name: name, pos: pos, node: flagNode(pos, x[name])})
		}
	default:
		n.kind, n.scalar = kindString, fmt.Sprint(v)
	}
	return n
}

// definitions decodes the blocks that package catalog owns.
func (m *merger) definitions() {
	services, checks := map[string]Pos{}, map[string]Pos{}
	for _, d := range m.blocks {
		var err error
		switch d.key {
		case "service", "services":
			err = m.service(d, services)
		case "check", "checks":
			err = m.checkDefinition(d, checks)
		case "watches":
			err = m.watch(d)
		default:
			err = m.configEntry(d)
		}
		m.note(err)
	}
}

func (m *merger) service(d definition, seen map[string]Pos) error {
	reg := new(catalog.ServiceRegistration)
	if err := catalog.Decode(d.node.object(), reg); err != nil {
		return explain(d.node, d.key, err)
	}
	if reg.Name == "" && (reg.Kind == catalog.KindTypical || reg.ID == "") {
		return errorAt(d.pos, d.key, "the service has no name")
	}
	m.config.Services = append(m.config.Services, reg)
	return once(d, "service", cmp.Or(reg.ID, reg.Name), seen)
}

func (m *merger) checkDefinition(d definition, seen map[string]Pos) error {
	def := new(catalog.CheckDefinition)
	if err := catalog.Decode(d.node.object(), def); err != nil {
		return explain(d.node, d.key, err)
	}
	id := cmp.Or(def.CheckID, def.ID, def.Name)
	if id == "" {
		return errorAt(d.pos, d.key, "the check has neither a name nor an id")
	}
	m.config.Checks = append(m.config.Checks, def)
	return once(d, "check", id, seen)
}

func (m *merger) configEntry(d definition) error {
	e, err := catalog.DecodeConfigEntry(d.node.object())
	if err == nil {
		e.Normalize()
		err = e.Validate()
	}
	if err != nil {
		return explain(d.node, d.key, err)
	}
	m.config.ConfigEntries = append(m.config.ConfigEntries, e)
	return nil
}

// once refuses two definitions with one ID, of which the last would win unseen.
func once(d definition, noun, id string, seen map[string]Pos) error {
	if first, again := seen[id]; again {
		return errorAt(d.pos, d.key, "a second %s with the id %q, the first is at %s", noun, id, first)
	}
	seen[id] = d.pos
	return nil
}

// explain puts the place of a mistake in front of an error of package catalog.
func explain(n *node, key string, err error) error {
	if err == nil {
		return nil
	}
	pos := n.pos
	var unknown *catalog.UnknownKeyError
	if errors.As(err, &unknown) {
		name := strings.TrimPrefix(key+"."+unknown.Path, ".")
		return errorAt(n.locate(unknown.Path), name, "unknown key")
	}
	msg := strings.TrimPrefix(err.Error(), catalog.ErrInvalid.Error()+": ")
	if path, ok := quotedPath(msg); ok {
		pos = n.locate(path)
	}
	return errorAt(pos, key, "%s", msg)
}

// quotedPath takes the path out of a decoder's "'Checks[0].TTL' expected type …".
func quotedPath(msg string) (string, bool) {
	i := strings.IndexByte(msg, '\'')
	if i < 0 {
		return "", false
	}
	path, _, ok := strings.Cut(msg[i+1:], "'")
	return path, ok
}
