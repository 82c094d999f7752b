package catalog

import (
	"strconv"
	"strings"
)

// templateVars are what a template may speak of. There are no expressions but
// these, so that rendering can neither fail for one name and not for another nor
// take longer than its texts are long.
type templateVars struct {
	full, prefix, suffix string
	segment              string
	matches              []string
}

// fill replaces each ${…} of a text; $${ stands for ${ itself.
func (v templateVars) fill(text string) (string, error) {
	var b strings.Builder
	for {
		at := strings.Index(text, "${")
		if at < 0 {
			b.WriteString(text)
			break
		}
		if at > 0 && text[at-1] == '$' {
			b.WriteString(text[:at-1] + "${")
			text = text[at+2:]
			continue
		}
		b.WriteString(text[:at])
		expr, rest, ok := strings.Cut(text[at+2:], "}")
		if !ok {
			return "", badQuery("Bad template: %q has no closing }", text)
		}
		value, err := v.value(strings.TrimSpace(expr))
		if err != nil {
			return "", err
		}
		b.WriteString(value)
		text = rest
		if b.Len() > maxQueryText {
			break
		}
	}
	if b.Len() > maxQueryText {
		return "", badQuery("a text has more than %d bytes once it is rendered", maxQueryText)
	}
	return b.String(), nil
}

func (v templateVars) value(expr string) (string, error) {
	switch expr {
	case "name.full":
		return v.full, nil
	case "name.prefix":
		return v.prefix, nil
	case "name.suffix":
		return v.suffix, nil
	case "agent.segment":
		return v.segment, nil
	}
	if arg, ok := strings.CutPrefix(expr, "match("); ok && strings.HasSuffix(arg, ")") {
		n, err := strconv.ParseUint(strings.TrimSpace(strings.TrimSuffix(arg, ")")), 10, 16)
		if err == nil {
			if int(n) < len(v.matches) {
				return v.matches[n], nil
			}
			return "", nil // a group that is not there matched nothing
		}
	}
	return "", badQuery("Bad template: ${%s} is none of name.full, name.prefix, name.suffix, agent.segment and match(N)", expr)
}
