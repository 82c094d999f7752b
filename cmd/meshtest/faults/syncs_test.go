//go:build faults

package faults_test

import (
	"context"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"
)

// syncs measures, beside a test, how long the machine's disk itself takes to make 4 KiB
// durable, on the file system where the servers have their logs: no write of theirs can
// be faster, and a disk that others share pauses at times.
type syncs struct {
	stop context.CancelFunc
	wg   sync.WaitGroup
	took []time.Duration
}

func watchSyncs(t *testing.T) *syncs {
	t.Helper()
	f, err := os.CreateTemp(t.TempDir(), "sync")
	must(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	s := &syncs{stop: cancel}
	s.wg.Go(func() {
		defer f.Close()
		block := make([]byte, 4<<10)
		for n := int64(0); ; n++ {
			select {
			case <-ctx.Done():
				return
			case <-time.After(20 * time.Millisecond):
			}
			begin := time.Now()
			if _, err := f.WriteAt(block, n%256<<12); err != nil {
				t.Errorf("the disk's own time: %v", err)
				return
			}
			if err := syscall.Fdatasync(int(f.Fd())); err != nil {
				t.Errorf("the disk's own time: %v", err)
				return
			}
			s.took = append(s.took, time.Since(begin))
		}
	})
	t.Cleanup(s.end)
	return s
}

func (s *syncs) end() {
	s.stop()
	s.wg.Wait()
}

// report ends the measurement.
func (s *syncs) report(t *testing.T) {
	t.Helper()
	s.end()
	t.Logf("the disk itself took to make 4 KiB durable meanwhile: %s", spread(s.took))
}
