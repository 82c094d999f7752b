package consensus

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"
)

// TestPrompter: a follower is told of a commit as soon as Raft is silent, once, never
// further than its log is known to reach, and by nobody who does not lead.
func TestPrompter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		leads := true
		p := newPrompter(func(uint64) bool { return leads })
		var got []raft.AppendEntriesRequest
		p.send = func(_ raft.ServerID, _ raft.ServerAddress, a *raft.AppendEntriesRequest, _ *raft.AppendEntriesResponse) error {
			got = append(got, *a)
			return nil
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); p.run(ctx) }()
		settle := func() { time.Sleep(10 * promptAfter); synctest.Wait() }

		p.sent("a", "addr", &raft.AppendEntriesRequest{
			Term: 3, PrevLogEntry: 6, PrevLogTerm: 2, LeaderCommitIndex: 6, Entries: []*raft.Log{{Index: 7, Term: 3}, {Index: 8, Term: 3}},
		})
		settle()
		if len(got) != 0 {
			t.Fatalf("told although nothing was committed: %+v", got)
		}
		p.commit(7)
		settle()
		if len(got) != 1 || got[0].PrevLogEntry != 8 || got[0].PrevLogTerm != 3 || got[0].LeaderCommitIndex != 7 || got[0].Term != 3 || len(got[0].Entries) != 0 {
			t.Fatalf("%+v", got)
		}
		p.commit(7)
		settle()
		p.commit(20) // further than its log
		settle()
		if len(got) != 2 || got[1].LeaderCommitIndex != 8 {
			t.Fatalf("%+v", got)
		}
		p.commit(21)
		settle()
		// Raft itself told it.
		p.sent("a", "addr", &raft.AppendEntriesRequest{Term: 3, PrevLogEntry: 21, PrevLogTerm: 3, LeaderCommitIndex: 21})
		settle()
		leads = false
		p.sent("a", "addr", &raft.AppendEntriesRequest{Term: 3, PrevLogEntry: 30, PrevLogTerm: 3, LeaderCommitIndex: 21})
		p.commit(30)
		settle()
		if len(got) != 2 {
			t.Errorf("%+v", got)
		}
		cancel()
		<-done
	})
}
