package cluster

import (
	"runtime"
	"testing"
	"testing/synctest"
)

// rounds is how many of n rounds a simulation makes. The detector wants one processor
// for it and a multiple of the time, and what it is after shows in few rounds; all of
// them are made without it.
func rounds(n int) int {
	if raceDetector {
		return n / 5
	}
	return n
}

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
