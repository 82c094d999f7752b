package conformance

import (
	"bytes"
	"embed"
	"encoding/json"
	"fmt"
	"path"
	"slices"
	"strings"
)

//go:embed testdata
var data embed.FS

// Case is one recorded conversation with a fresh agent.
type Case struct {
	Name  string `json:"name"`
	About string `json:"about"`
	// Agent is what the agent's configuration file holds beside names and ports.
	Agent json.RawMessage `json:"agent"`
	// Token is sent with every request that names none.
	Token *string `json:"token"`
	Steps []*Step `json:"steps"`

	area string
}

// ID names the case: area/name.
func (c *Case) ID() string { return c.area + "/" + c.Name }

// timed tells whether the outcome hangs on how fast the machine is.
func (c *Case) timed() bool {
	return slices.ContainsFunc(c.Steps, func(s *Step) bool {
		return s.Retry > 0 || s.Elapsed != nil || s.Background != "" || s.Sleep > 0
	})
}

// Step is one request, or one of the few other things that a case does.
type Step struct {
	Do          string            `json:"do"`
	JSON        json.RawMessage   `json:"json"`
	Raw         *string           `json:"raw"`
	Fill        []any             `json:"fill"`
	BodyFrom    string            `json:"body_from"`
	Headers     map[string]string `json:"headers"`
	Token       *string           `json:"token"`
	Save        map[string]string `json:"save"`
	Keep        []string          `json:"keep"`
	Retry       float64           `json:"retry"`
	Background  string            `json:"bg"`
	Lead        *float64          `json:"lead"`
	Join        string            `json:"join"`
	Elapsed     []float64         `json:"elapsed"`
	Timeout     float64           `json:"timeout"`
	Check       [][3]any          `json:"check"`
	DNS         *Question         `json:"dns"`
	Binary      bool              `json:"binary"`
	Lines       int               `json:"lines"`
	Grep        string            `json:"grep"`
	Prom        []string          `json:"prom"`
	Sleep       float64           `json:"sleep"`
	WriteConfig json.RawMessage   `json:"write_config"`
	Expect      *Expectation      `json:"expect"`

	// These steer the recording; what they did stands in Expect.
	Mask      json.RawMessage `json:"mask"`
	Shape     json.RawMessage `json:"shape"`
	Unordered json.RawMessage `json:"unordered"`
	Settle    json.RawMessage `json:"settle"`
	Cert      []string        `json:"cert"`

	number int // from 1, in its case
}

// Expectation is what Consul answered, with tokens where answers vary.
type Expectation struct {
	Status  int               `json:"status"`
	Headers map[string]string `json:"headers"`
	Kind    string            `json:"kind"`
	Body    any               `json:"body"`
	Certs   map[string]any    `json:"certs"`
}

func (s *Step) title() string {
	switch {
	case s.DNS != nil:
		return "DNS " + s.DNS.kind() + " " + s.DNS.Name
	case s.Join != "":
		return "join " + s.Join
	default:
		return s.Do
	}
}

// Cases reads the whole corpus. A key that the replayer does not know is an
// error: it would be a rule that nobody applies.
func Cases() ([]*Case, error) {
	files, err := data.ReadDir("testdata/cases")
	if err != nil {
		return nil, err
	}
	var all []*Case
	for _, f := range files {
		b, err := data.ReadFile(path.Join("testdata/cases", f.Name()))
		if err != nil {
			return nil, err
		}
		var doc struct {
			Area  string          `json:"area"`
			About string          `json:"about"`
			From  string          `json:"recorded_from"`
			Agent json.RawMessage `json:"agent"`
			Token *string         `json:"token"`
			Cases []*Case         `json:"cases"`
		}
		dec := json.NewDecoder(bytes.NewReader(b))
		dec.UseNumber()
		dec.DisallowUnknownFields()
		if err := dec.Decode(&doc); err != nil {
			return nil, fmt.Errorf("%s: %w", f.Name(), err)
		}
		for _, c := range doc.Cases {
			c.area = doc.Area
			if c.Agent == nil {
				c.Agent = doc.Agent
			}
			if c.Token == nil {
				c.Token = doc.Token
			}
			for i, s := range c.Steps {
				s.number = i + 1
			}
		}
		all = append(all, doc.Cases...)
	}
	return all, nil
}

// Pending is the areas and cases that are not run yet, with what they wait for.
func Pending() (map[string]string, error) {
	return readList("testdata/pending.txt", 1)
}

// Chosen is the steps ("area/case step") in which we differ on purpose, with the reason.
func Chosen() (map[string]string, error) {
	return readList("testdata/chosen.txt", 2)
}

// readList reads lines of a key of so many words and a reason; # starts a comment line.
func readList(file string, words int) (map[string]string, error) {
	b, err := data.ReadFile(file)
	if err != nil {
		return nil, err
	}
	out := map[string]string{}
	for i, line := range strings.Split(string(b), "\n") {
		if line = strings.TrimSpace(line); line == "" || line[0] == '#' {
			continue
		}
		f := strings.Fields(line)
		if len(f) <= words {
			return nil, fmt.Errorf("%s:%d: want a name and a reason", file, i+1)
		}
		key := strings.Join(f[:words], " ")
		if _, twice := out[key]; twice {
			return nil, fmt.Errorf("%s:%d: %s stands there twice", file, i+1, key)
		}
		out[key] = strings.Join(f[words:], " ")
	}
	return out, nil
}
