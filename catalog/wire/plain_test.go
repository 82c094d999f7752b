package wire

import (
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// TestPlainCauses: of a connection that was lost the cause is told, not gRPC's words
// around it.
func TestPlainCauses(t *testing.T) {
	for text, want := range map[string]string{
		`connection error: desc = "transport: Error while dialing: no server answers: \"x\""`: `servers unavailable: no server answers: "x"`,
		`connection error: desc = unquoted`:                                                   `servers unavailable: connection error: desc = unquoted`,
		`transport: closing`:                                                                  `servers unavailable: closing`,
	} {
		if got := FromStatus(status.Error(codes.Unavailable, text)).Error(); got != want {
			t.Errorf("%s: %s", text, got)
		}
	}
}
