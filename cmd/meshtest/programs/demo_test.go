package programs_test

import (
	"context"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/weftmesh/weft/cmd/meshtest/proc"
)

// TestDemoOnce runs the command that the README leads with.
func TestDemoOnce(t *testing.T) {
	t.Parallel()
	bin := proc.Binary(t) // building it is not on the demo's time
	ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, bin, "demo", "-once").CombinedOutput()
	if err != nil {
		t.Fatalf("weft demo -once: %v\n%s", err, out)
	}
	for _, want := range []string{
		"nothing allows it", "weft intention create web db", "TLS 1.3", "it stands in the captured bytes 0 times",
		"/svc/web", "/svc/db", "policy_changed", "Everything was as it should be",
	} {
		if !strings.Contains(strings.ReplaceAll(string(out), "Nothing allows", "nothing allows"), want) {
			t.Errorf("the demo does not show %q:\n%s", want, out)
		}
	}
}
