package consensus

import (
	"bytes"
	"testing"
	"testing/synctest"
	"time"
)

// slowSink takes so long for each write.
type slowSink struct {
	bytes.Buffer
	takes time.Duration
}

func (s *slowSink) Write(b []byte) (int, error) {
	time.Sleep(s.takes)
	return s.Buffer.Write(b)
}

// TestBackupIsPaced: writing a backup rests three times as long as it works, not for long
// after one slow write, and not at all once the node closes.
func TestBackupIsPaced(t *testing.T) {
	closed := make(chan struct{})
	close(closed)
	for _, tc := range []struct {
		name    string
		takes   time.Duration
		closing chan struct{}
		want    time.Duration // of two writes
	}{
		{"rests", 10 * time.Millisecond, nil, 80 * time.Millisecond},
		{"a slow disk", time.Second, nil, 2*time.Second + 2*maxRest},
		{"closing", 10 * time.Millisecond, closed, 20 * time.Millisecond},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				begin := time.Now()
				sink := &slowSink{takes: tc.takes}
				p := &paced{to: sink, since: begin, closing: tc.closing}
				for range 2 {
					if n, err := p.Write([]byte("row")); n != 3 || err != nil {
						t.Error(n, err)
					}
				}
				if took := time.Since(begin); took != tc.want || sink.String() != "rowrow" {
					t.Errorf("%q after %s, want %s", sink, took, tc.want)
				}
			})
		})
	}
}
