package dns

import (
	"context"
	"encoding/json"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/weftmesh/weft/catalog"
)

type corpusRR struct {
	Name, Type, Data string
	TTL              uint32
}

type corpusAnswer struct {
	Rcode                         string
	AA, TC, RA, EDNS              bool
	Answer, Authority, Additional json.RawMessage
	Fits                          *bool
}

type corpusCase struct {
	Name      string
	DNSConfig struct {
		ServiceTTL  map[string]string `json:"service_ttl"`
		NodeTTL     string            `json:"node_ttl"`
		OnlyPassing bool              `json:"only_passing"`
	} `json:"dns_config"`
	Steps []struct {
		Register json.RawMessage
		Query    *struct {
			Name    string
			Service struct {
				Service     string
				OnlyPassing bool
			}
			DNS struct{ TTL string }
		}
		Ask *struct {
			Name, Type string
			TCP        bool
			Fits       int
			CountOnly  bool `json:"count_only"`
			Expect     corpusAnswer
		}
	}
}

// TestRecordedAnswers asks, over the network, what a Consul was asked, and
// compares.
func TestRecordedAnswers(t *testing.T) {
	raw, err := os.ReadFile("testdata/answers.json")
	if err != nil {
		t.Fatal(err)
	}
	var corpus struct{ Cases []corpusCase }
	if err := json.Unmarshal(raw, &corpus); err != nil {
		t.Fatal(err)
	}
	for _, c := range corpus.Cases {
		t.Run(c.Name, func(t *testing.T) { replay(t, c) })
	}
}

func replay(t *testing.T, c corpusCase) {
	f := newFake()
	cfg := config(f)
	cfg.OnlyPassing = c.DNSConfig.OnlyPassing
	cfg.ServiceTTL = map[string]time.Duration{}
	for k, v := range c.DNSConfig.ServiceTTL {
		cfg.ServiceTTL[k] = duration(t, v)
	}
	if c.DNSConfig.NodeTTL != "" {
		cfg.NodeTTL = duration(t, c.DNSConfig.NodeTTL)
	}
	var queries sync.Map
	cfg.Query = func(_ context.Context, req QueryRequest) (*QueryAnswer, error) {
		if q, ok := queries.Load(strings.ToLower(req.Name)); ok {
			return q.(func() (*QueryAnswer, error))()
		}
		return nil, catalog.NotFoundf("no query %q", req.Name)
	}
	addr := serve(t, cfg)
	for _, s := range c.Steps {
		switch {
		case s.Register != nil:
			f.register(t, s.Register)
		case s.Query != nil:
			ttl := duration(t, s.Query.DNS.TTL)
			queries.Store(s.Query.Name, func() (*QueryAnswer, error) {
				v, err := f.Read(context.Background(), catalog.Query{Kind: catalog.QueryService, Name: s.Query.Service.Service})
				if err != nil {
					return nil, err
				}
				passing := slices.DeleteFunc(slices.Clone(v.Instances), func(i *catalog.Instance) bool { return worst(i.Checks) != catalog.StatusPassing })
				return &QueryAnswer{Service: s.Query.Service.Service, Instances: passing, TTL: &ttl}, nil
			})
		case s.Ask != nil:
			network := "udp"
			if s.Ask.TCP {
				network = "tcp"
			}
			got := exchange1(t, network, addr, message(s.Ask.Name, dns.StringToType[s.Ask.Type]))
			compare(t, s.Ask.Type+" "+s.Ask.Name, s.Ask.Expect, got, s.Ask.Fits, s.Ask.CountOnly)
		}
	}
}

func compare(t *testing.T, what string, want corpusAnswer, got *dns.Msg, fits int, countOnly bool) {
	t.Helper()
	have := corpusAnswer{Rcode: dns.RcodeToString[got.Rcode], AA: got.Authoritative, TC: got.Truncated, RA: got.RecursionAvailable, EDNS: got.IsEdns0() != nil, Fits: want.Fits}
	sections := []struct {
		name string
		want json.RawMessage
		got  []dns.RR
	}{{"answer", want.Answer, got.Answer}, {"authority", want.Authority, got.Ns}, {"additional", want.Additional, got.Extra}}
	want.Answer, want.Authority, want.Additional = nil, nil, nil
	if !reflect.DeepEqual(want, have) {
		t.Errorf("%s: header %+v, want %+v", what, have, want)
	}
	if fits > 0 && got.Len() > fits {
		t.Errorf("%s: %d bytes, want at most %d", what, got.Len(), fits)
	}
	for _, s := range sections {
		var some struct {
			Some  *bool
			Count *int
		}
		var rrs []corpusRR
		if json.Unmarshal(s.want, &rrs) != nil {
			if err := json.Unmarshal(s.want, &some); err != nil {
				t.Fatal(err)
			}
		}
		switch {
		case some.Some != nil:
			if *some.Some != (len(s.got) > 0) {
				t.Errorf("%s: %s has %d records", what, s.name, len(s.got))
			}
		case some.Count != nil:
			if *some.Count != len(s.got) {
				t.Errorf("%s: %s has %d records, want %d", what, s.name, len(s.got), *some.Count)
			}
		default:
			sameRecords(t, what+" "+s.name, rrs, s.got)
		}
	}
}

func sameRecords(t *testing.T, what string, want []corpusRR, got []dns.RR) {
	t.Helper()
	if len(want) != len(got) {
		t.Errorf("%s: got %q, want %+v", what, lines(got), want)
		return
	}
	left := slices.Clone(want)
	for _, rr := range got {
		g := record(rr)
		i := slices.IndexFunc(left, func(w corpusRR) bool {
			pattern := strings.NewReplacer("<int>", `\d+`, "<version>", `[0-9.]+`).Replace("^" + strings.NewReplacer(".", `\.`, "+", `\+`).Replace(w.Data) + "$")
			return w.Name == g.Name && w.Type == g.Type && w.TTL == g.TTL && regexp.MustCompile(pattern).MatchString(g.Data)
		})
		if i < 0 {
			t.Errorf("%s: %+v is none of %+v", what, g, left)
			return
		}
		left = slices.Delete(left, i, i+1)
	}
}

func record(rr dns.RR) corpusRR {
	h := rr.Header()
	data := strings.Join(strings.Fields(strings.TrimPrefix(rr.String(), h.String())), " ")
	switch r := rr.(type) {
	case *dns.TXT:
		data = strings.Join(r.Txt, "")
	case *dns.AAAA:
		data = r.AAAA.String()
	}
	return corpusRR{Name: h.Name, Type: dns.TypeToString[h.Rrtype], TTL: h.Ttl, Data: data}
}

func duration(t *testing.T, s string) time.Duration {
	t.Helper()
	d, err := time.ParseDuration(s)
	if err != nil {
		t.Fatal(err)
	}
	return d
}
