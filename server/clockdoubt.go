package server

import (
	"fmt"
	"time"

	"github.com/weftmesh/weft/catalog"
)

const (
	// doubtFor is how long a leader has to find a root of another time before it
	// replaces it: hosts that begin with a wrong clock are told the right time within
	// minutes, where anybody tells them.
	doubtFor = 5 * time.Minute
	// doubtGap is the longest time between two looks that count as one: a leader that
	// failed at a duty looks again sooner.
	doubtGap = 2 * time.Minute
	// doubtStep is by how much the clock may be set between two looks.
	doubtStep = time.Minute
)

// clockDoubt is that of a leader which finds the active root to be of another time: is it
// the root, or the clock? The monotonic clock measures it.
type clockDoubt struct {
	root          string
	since, looked time.Time // monotonic
	wall          time.Time // at the last look
}

// look is nil once the root was found so, by a clock that nobody set, long enough.
// Until then it is the error that says what to do.
func (d *clockDoubt) look(root *catalog.Root, wall time.Time) error {
	at, wall := time.Now(), wall.Round(0)
	gap := at.Sub(d.looked)
	if step := wall.Sub(d.wall) - gap; d.root != root.ID || gap > doubtGap || step.Abs() > doubtStep {
		d.root, d.since = root.ID, at
	}
	d.looked, d.wall = at, wall
	left := doubtFor - at.Sub(d.since)
	if left <= 0 {
		return nil
	}
	return fmt.Errorf("the root %s of the CA is good from %s to %s, and the clock of this server says %s: set the clock right. "+
		"Where it is right, wait: the root is replaced in %s by itself, or at once with ForceWithoutCrossSigning (weft connect ca set-config -help)",
		root.ID, stamp(root.NotBefore), stamp(root.NotAfter), stamp(wall), left.Round(time.Second))
}
