package cluster

import (
	"runtime"
	"testing"
	"testing/synctest"
)

// bubble runs f in virtual time. Under the race detector it leaves Go one
// processor: all channel timers of a bubble share one of the detector's contexts,
// so two goroutines that look at expired timers at the same moment damage it, and
// the detector crashes (seen with Go 1.26.8; outside a bubble each processor has a
// context of its own). Without the detector the bubble runs in parallel.
func bubble(t *testing.T, f func(*testing.T)) {
	t.Helper()
	if raceDetector {
		defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	}
	synctest.Test(t, f)
}
