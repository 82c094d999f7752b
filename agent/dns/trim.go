package dns

import (
	"slices"
	"sort"
	"strings"

	"github.com/miekg/dns"
)

// trim cuts a message of ours to size, and its answer to limit records if that is
// not 0, and tells whether it did. Metadata goes first; then records of the answer
// go with what the additional section says of their targets, from the last on.
func trim(m *dns.Msg, size, limit int) bool {
	cut := false
	if limit > 0 && len(m.Answer) > limit && m.Answer[0].Header().Rrtype != dns.TypeCNAME {
		keepAnswers(m, m.Answer[:limit], m.Extra)
		cut = true
	}
	if m.Len() <= size {
		return cut
	}
	m.Extra = slices.DeleteFunc(slices.Clone(m.Extra), func(rr dns.RR) bool { return rr.Header().Rrtype == dns.TypeTXT })
	if m.Len() <= size {
		return true
	}
	answer, extra := m.Answer, m.Extra
	// The first number of records that does not fit: one fewer does.
	n := sort.Search(len(answer)+1, func(n int) bool {
		keepAnswers(m, answer[:n], extra)
		return m.Len() > size
	})
	keepAnswers(m, answer[:max(n-1, 0)], extra)
	if len(m.Answer) == 0 {
		m.Extra = nil
	}
	if m.Len() > size {
		m.Ns = nil
	}
	return true
}

// keepAnswers leaves these records, and of extra what is about their targets, or
// about the name asked for.
func keepAnswers(m *dns.Msg, answer, extra []dns.RR) {
	m.Answer, m.Extra = answer, nil
	if len(extra) == 0 {
		return
	}
	about := map[string]bool{}
	for _, q := range m.Question {
		about[strings.ToLower(q.Name)] = true
	}
	for _, section := range [][]dns.RR{answer, m.Ns} {
		for _, rr := range section {
			switch t := rr.(type) {
			case *dns.SRV:
				about[strings.ToLower(t.Target)] = true
			case *dns.NS:
				about[strings.ToLower(t.Ns)] = true
			}
		}
	}
	for _, rr := range extra {
		if about[strings.ToLower(rr.Header().Name)] {
			m.Extra = append(m.Extra, rr)
		}
	}
}
