package freezer

import (
	"slices"
	"testing"
	"time"
)

// What is frozen is thawed within thawTime of what ends it. A machine may stand still
// once, so that is asked of most times, and far less of each.
const (
	thawTime  = time.Second
	everyTime = 10 * time.Second
)

// promptness is how long thaws have taken, by what had ended the freeze.
type promptness map[string][]time.Duration

// await waits until a condition holds, for which something that is named by cause has to
// be noticed now, and takes down how long that took.
func (p promptness) await(tb testing.TB, cause, what string, is func() bool) {
	tb.Helper()
	p.since(tb, cause, what, time.Now(), stalls(), is)
}

// since is for what has begun before, as has the count of what the machine stood still.
func (p promptness) since(tb testing.TB, cause, what string, began time.Time, stood func() time.Duration, is func() bool) {
	tb.Helper()
	await(tb, what, is)
	p[cause] = append(p[cause], time.Since(began)-stood())
}

// judge wants each of the causes to have been, and to have been noticed in time.
func (p promptness) judge(tb testing.TB, causes ...string) {
	tb.Helper()
	for _, cause := range causes {
		took := slices.Sorted(slices.Values(p[cause]))
		if len(took) == 0 {
			tb.Errorf("%s: it never was frozen", cause)
			continue
		}
		median, longest := took[(len(took)-1)/2], took[len(took)-1]
		if median > thawTime || longest > everyTime {
			tb.Errorf("%s: thawed after %v, half of the %d times within %v; want %v for that, and %v for each",
				cause, longest, len(took), median, thawTime, everyTime)
		}
		tb.Logf("%s: thawed after %v at the latest, half of the %d times within %v",
			cause, longest.Round(100*time.Microsecond), len(took), median.Round(100*time.Microsecond))
	}
}

// stalls begins to measure for how long somebody who wants a processor again and again,
// for next to no time, has to wait for it. Others will have had to as well.
func stalls() (sum func() time.Duration) {
	const pause = 5 * time.Millisecond
	over, lost := make(chan struct{}), make(chan time.Duration)
	go func() {
		var all time.Duration
		last := time.Now()
		for ended := false; !ended; {
			select {
			case <-over:
				ended = true
			case <-time.After(pause):
			}
			now := time.Now()
			if late := now.Sub(last) - pause; late > pause {
				all += late
			}
			last = now
		}
		lost <- all
	}()
	return func() time.Duration {
		close(over)
		return <-lost
	}
}

// The bounds are of use only if they are not met by what is late, and are by what was
// kept from running.
func TestPromptness(t *testing.T) {
	for _, c := range []struct {
		name string
		took []time.Duration
		want bool
	}{
		{"prompt", []time.Duration{0, 1, 2}, true},
		{"once the machine stood still", []time.Duration{0, 1, 5 * time.Second}, true},
		{"once it was forgotten", []time.Duration{0, 1, time.Minute}, false},
		{"always late", []time.Duration{3 * time.Second, 3 * time.Second}, false},
		{"never", nil, false},
	} {
		var seen verdict
		promptness{"cause": c.took}.judge(&seen, "cause")
		if seen.bad == c.want {
			t.Errorf("%s: found good: %v", c.name, !seen.bad)
		}
	}
}

// verdict takes the place of a test.
type verdict struct {
	testing.TB
	bad bool
}

func (v *verdict) Helper()               {}
func (v *verdict) Logf(string, ...any)   {}
func (v *verdict) Errorf(string, ...any) { v.bad = true }
