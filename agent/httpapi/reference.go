package httpapi

import (
	"bufio"
	"fmt"
	"io"
	"strings"
)

// Reference writes the reference page of the API as Markdown, from the routes that
// are served.
func Reference(out io.Writer) error {
	w := bufio.NewWriter(out)
	writeParams(w, "Parameters that many routes take:", CommonParams())
	noun := ""
	for _, rt := range Routes() {
		if n := nounOf(rt.Path); n != noun {
			noun = n
			fmt.Fprintf(w, "## %s\n\n", noun)
		}
		fmt.Fprintf(w, "### `%s %s`\n\n%s.\n\n", rt.Method, rt.Path, capital(rt.Summary))
		fmt.Fprintf(w, "Common parameters: %s. Permission: %s.", rt.params, rt.Permission)
		if rt.Body != "" {
			fmt.Fprintf(w, " Body: %s; at most %s.", rt.Body, size(rt.MaxBody))
		}
		fmt.Fprint(w, "\n\n")
		if len(rt.Params) > 0 {
			writeParams(w, "Parameters:", rt.Params)
		}
	}
	return w.Flush() // which gives the first error of all writes
}

func writeParams(w io.Writer, head string, params []Param) {
	fmt.Fprintf(w, "%s\n\n", head)
	for _, p := range params {
		fmt.Fprintf(w, "- `%s`: %s\n", p.Name, p.Summary)
	}
	fmt.Fprint(w, "\n")
}

// nounOf is the part of the path that routes are grouped by.
func nounOf(path string) string {
	noun, _, _ := strings.Cut(strings.TrimPrefix(path, "/v1/"), "/")
	return noun
}

func size(n int64) string {
	if n < 1<<10 {
		return fmt.Sprintf("%d bytes", n)
	}
	return fmt.Sprintf("%d KiB", n>>10)
}

func capital(s string) string {
	return strings.ToUpper(s[:1]) + s[1:]
}

// String names the common parameters that a route reads.
func (p paramSet) String() string {
	const consistency = "stale, consistent, leader, max_stale, cached"
	switch p {
	case paramsWrite:
		return "token, dc, pretty"
	case paramsRead, paramsDiscovery:
		return "token, dc, index, wait, " + consistency + ", pretty"
	case paramsConsistency:
		return "token, dc, " + consistency + ", pretty"
	case paramsBlockLocal:
		return "token, index, wait, pretty"
	default:
		return "token, pretty"
	}
}
