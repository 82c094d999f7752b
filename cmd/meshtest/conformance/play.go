package conformance

import (
	"encoding/json"
	"fmt"
	"maps"
	"strings"
	"time"
)

// Play runs the steps of a case against a fresh agent and tells all differences.
func Play(binary string, c *Case) []Difference {
	a, err := startAgent(binary, c)
	if err != nil {
		return []Difference{{Path: "start", Message: err.Error()}}
	}
	defer a.stop()
	r := &run{agent: a, env: a.vars(), blobs: map[string][]byte{}, background: map[string]chan answer{}}
	if c.Token != nil {
		r.token = *c.Token
	}
	var diffs []Difference
	for _, s := range c.Steps {
		found, err := r.step(s)
		diffs = append(diffs, found...)
		if err != nil {
			return append(diffs, Difference{Path: "run", Message: fmt.Sprintf("step %d %s: %v\n%s", s.number, s.title(), err, a.tail())})
		}
	}
	return diffs
}

func (r *run) step(s *Step) ([]Difference, error) {
	switch {
	case s.Sleep > 0:
		time.Sleep(seconds(s.Sleep)) // the case is about what happens in that time
		return nil, nil
	case s.WriteConfig != nil:
		return nil, r.agent.writeConfig(s.WriteConfig)
	case s.Background != "":
		r.start(s)
		return nil, nil
	case s.Join != "":
		ans, err := r.join(s)
		if err != nil {
			return nil, err
		}
		return r.settle(s, ans), nil
	default:
		return r.until(s)
	}
}

// start sends a request that is joined later, and gives it time to arrive.
func (r *run) start(s *Step) {
	done, env := make(chan answer, 1), maps.Clone(r.env)
	r.background[s.Background] = done
	go func() {
		res, err := r.do(s, env)
		done <- answer{res, err}
	}()
	lead := 250 * time.Millisecond
	if s.Lead != nil {
		lead = seconds(*s.Lead)
	}
	time.Sleep(lead) // nothing tells when the agent has begun to wait
}

func (r *run) join(s *Step) (*result, error) {
	timeout := 30 * time.Second
	if s.Timeout > 0 {
		timeout = seconds(s.Timeout)
	}
	select {
	case ans := <-r.background[s.Join]:
		return ans.result, ans.err
	case <-time.After(timeout):
		return nil, fmt.Errorf("the background request %s has no answer after %s", s.Join, timeout)
	}
}

// until repeats the step until it matches or its time is over.
func (r *run) until(s *Step) ([]Difference, error) {
	end := time.Now().Add(seconds(s.Retry))
	for {
		res, err := r.do(s, r.env)
		if err != nil {
			return nil, err
		}
		if time.Now().Before(end) && r.judge(s, res).failed() {
			time.Sleep(60 * time.Millisecond)
			continue
		}
		return r.settle(s, res), nil
	}
}

// judge lets an expectation name what its own step saves.
func (r *run) judge(s *Step, res *result) *comparison {
	own := maps.Clone(r.env)
	r.save(s, res, own)
	for name := range s.Save {
		if own[name] == "" {
			own[name] = "<nothing to save>"
		}
	}
	return judge(s, res, own, r.agent.sidecarShift())
}

func (r *run) settle(s *Step, res *result) []Difference {
	diffs := r.judge(s, res).diffs
	for i := range diffs {
		diffs[i].Step, diffs[i].Call = s.number, s.title()
	}
	r.save(s, res, r.env)
	return diffs
}

func (r *run) save(s *Step, res *result, env vars) {
	for name, from := range s.Save {
		switch kind, rest, _ := strings.Cut(from, ":"); kind {
		case "body":
			r.blobs[name] = res.raw
		case "text":
			if v, ok := res.value.(string); ok {
				env[name] = v
			} else {
				env[name] = string(res.raw)
			}
		case "header":
			v, _ := last(res.header, rest)
			env[name] = v
		default:
			env[name] = ""
			if res.kind == "json" {
				if hits := pick(res.value, rest); len(hits) > 0 {
					env[name] = hits[0].value
				}
			}
		}
	}
}

// vars are what a case may name from the start.
func (a *agent) vars() vars {
	env := vars{
		"node_name": nodeName, "work_dir": a.dir, "data_dir": a.dir + "/data",
		"config_file": a.configFile(), "http_addr": a.http,
	}
	for i, name := range portNames {
		env[name] = json.Number(fmt.Sprint(a.ports.first + i))
	}
	return env
}
