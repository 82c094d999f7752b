package catalog

import (
	"errors"
	"io"
	"testing"
)

func TestErrorsReadAsSentences(t *testing.T) {
	for _, c := range []struct {
		err  error
		kind error
		text string
	}{
		{Invalidf("Sources[%d].Name is required", 0), ErrInvalid, "Sources[0].Name is required"},
		{NotFoundf("intention web → db"), ErrNotFound, "intention web → db"},
		{Conflictf("already there: %w", io.EOF), ErrConflict, "already there: EOF"},
	} {
		if !errors.Is(c.err, c.kind) || c.err.Error() != c.text {
			t.Errorf("%v: not %v with text %q", c.err, c.kind, c.text)
		}
	}
	if !errors.Is(Invalidf("x: %w", io.EOF), io.EOF) {
		t.Error("the cause is lost")
	}
}
