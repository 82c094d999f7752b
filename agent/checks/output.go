package checks

import (
	"fmt"
	"strings"
)

func outputMax(n int) int {
	if n <= 0 {
		return DefaultOutputMaxSize
	}
	return n
}

// Truncate cuts output to limit bytes (0: the default), saying so, and drops what
// is no UTF-8.
func Truncate(output string, limit int) string {
	return truncated(output, len(output), limit)
}

// truncated is Truncate for output of which only the beginning was kept.
func truncated(output string, total, limit int) string {
	limit = outputMax(limit)
	if total <= limit && len(output) <= limit {
		return strings.ToValidUTF8(output, "\uFFFD")
	}
	kept := output[:min(len(output), limit)]
	return fmt.Sprintf("%s ... (captured %d of %d bytes)", strings.ToValidUTF8(kept, "\uFFFD"), len(kept), total)
}
