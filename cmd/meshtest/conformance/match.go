package conformance

import (
	"regexp"
	"slices"
	"strings"
	"sync"
)

// tokens are the names that an expectation uses for what varies, with what they
// match as a string or inside one.
var tokens = []struct{ name, pattern string }{
	{"<uuid>", `[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}`},
	{"<time>", `\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:\.\d+)?(?: ?(?:Z|[+-]\d\d:?\d\d))?(?: [A-Z]{3,4})?(?: m=[+-][\d.]+)?`},
	{"<dur>", `(?:\d+(?:\.\d+)?(?:ns|us|µs|ms|h|m|s))+`},
	{"<pem>", `(?:-----BEGIN [A-Z0-9 ]+-----\n[A-Za-z0-9+/=\n]+-----END [A-Z0-9 ]+-----\n*)+`},
	{"<hash>", `[A-Za-z0-9+/=_-]{8,}`},
	{"<hex>", `[0-9a-f]{4,}`},
	{"<hexcolon>", `[0-9a-fA-F]{2}(?::[0-9a-fA-F]{2})+`},
	{"<index>", `[1-9]\d*`},
	{"<int>", `-?\d+`},
	{"<num>", `-?\d+(?:\.\d+)?(?:e[+-]?\d+)?`},
	{"<port>", `\d{1,5}`},
	{"<vip>", `240\.\d+\.\d+\.\d+`},
	{"<version>", `v?\d+\.\d+\.\d+\S*?`},
	{"<str>", `[\s\S]+?`},
	{"<any>", `[\s\S]*?`},
	{"<b64>", `[A-Za-z0-9+/_-]+={0,2}`},
	{"<id>", `[0-9a-z]+?`},
	{"<serial>", `[0-9a-f]{2}(?::[0-9a-f]{2})*`},
	{"<addr>", `[0-9a-fA-F.:\[\]]+`},
}

// portNames are the ports of a run; a recording writes them as variables.
var portNames = []string{"http_port", "dns_port", "grpc_port", "serf_lan_port", "serf_wan_port", "server_port"}

var (
	tokenPattern = map[string]string{}
	tokenRE      = func() *regexp.Regexp {
		var names []string
		for _, t := range tokens {
			tokenPattern[t.name] = t.pattern
			names = append(names, regexp.QuoteMeta(t.name))
		}
		return regexp.MustCompile(strings.Join(names, "|"))
	}()
	patternRE = regexp.MustCompile(tokenRE.String() + "|" + varRE.String())
	compiled  sync.Map // pattern → *regexp.Regexp
)

// isPattern tells whether a string stands for more than itself.
func isPattern(s string) bool { return patternRE.MatchString(s) }

// matches tells whether a text is what a string with tokens and variables says.
func (env vars) matches(pattern, actual string) bool {
	if !isPattern(pattern) {
		return pattern == actual
	}
	var b strings.Builder
	b.WriteString(`\A(?:`)
	at := 0
	for _, m := range patternRE.FindAllStringSubmatchIndex(pattern, -1) {
		b.WriteString(regexp.QuoteMeta(pattern[at:m[0]]))
		at = m[1]
		if m[2] < 0 {
			b.WriteString("(?:" + tokenPattern[pattern[m[0]:m[1]]] + ")")
			continue
		}
		name := pattern[m[2]:m[3]]
		v, known := env[name]
		switch {
		case known:
			b.WriteString(regexp.QuoteMeta(text(v)))
		case slices.Contains(portNames, name):
			b.WriteString(`\d+`)
		case slices.Contains([]string{"work_dir", "data_dir", "config_file"}, name):
			b.WriteString(`\S*`)
		default:
			b.WriteString(regexp.QuoteMeta(pattern[m[0]:m[1]]))
		}
	}
	b.WriteString(regexp.QuoteMeta(pattern[at:]) + `)\z`)
	re, ok := compiled.Load(b.String())
	if !ok {
		re, _ = compiled.LoadOrStore(b.String(), regexp.MustCompile(b.String()))
	}
	return re.(*regexp.Regexp).MatchString(actual)
}
