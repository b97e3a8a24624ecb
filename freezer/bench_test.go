package freezer

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"
)

// BenchmarkFreeze freezes and thaws 5,000 processes that sleep: by signals, by their
// cgroup, and as Sys::FreezeThaw does it, in turns. The times are medians in
// milliseconds, and the parts are of the original's in the same run. What it takes to
// start a guard comes before the freeze, and is counted by itself.
func BenchmarkFreeze(b *testing.B) {
	needIsolation(b)
	dir := newCgroup(b)
	inCgroup(b, dir, "sleepers 5000")
	times := map[string][]time.Duration{}
	note := func(name string, since time.Time) time.Time {
		now := time.Now()
		times[name] = append(times[name], now.Sub(since))
		return now
	}
	for b.Loop() {
		freeze, thaw := original(b)
		times["original-freeze"] = append(times["original-freeze"], freeze)
		times["original-thaw"] = append(times["original-thaw"], thaw)
		for name, target := range map[string]Target{"signals": Machine(), "cgroup": Cgroup(dir)} {
			at := time.Now()
			g := start(b)
			at = note("start", at)
			_, err := g.Freeze(context.Background(), Order{Targets: []Target{target}})
			at = note(name+"-freeze", at)
			if err == nil {
				err = g.Thaw()
			}
			note(name+"-thaw", at)
			if err != nil {
				b.Fatal(err)
			}
		}
	}
	median := func(name string) float64 {
		slices.Sort(times[name])
		return float64(times[name][len(times[name])/2]) / float64(time.Millisecond)
	}
	for name := range times {
		b.ReportMetric(median(name), name+"-ms")
		if way, act, ok := strings.Cut(name, "-"); ok && way != "original" {
			b.ReportMetric(median(name)/median("original-"+act), name+"-part")
		}
	}
	b.ReportMetric(0, "ns/op")
}

// inCgroup starts a role in a cgroup.
func inCgroup(b *testing.B, dir, role string) *actor {
	b.Helper()
	cmd := exec.Command("/bin/sh", "-c", fmt.Sprintf("echo $$ >%s/cgroup.procs && exec /proc/%d/exe", dir, os.Getpid()))
	cmd.Env = append(os.Environ(), roleVariable+"="+role)
	return begin(b, cmd)
}

// original is what Sys::FreezeThaw takes.
func original(b *testing.B) (freeze, thaw time.Duration) {
	b.Helper()
	// At the priority that the guard has, so that nobody else on the machine counts.
	out, err := exec.Command("chrt", "--rr", "1", "perl", "testdata/original.pl").Output()
	if err != nil {
		b.Skip("the original cannot be measured without perl and chrt: ", err)
	}
	var n int
	var f, t float64
	if _, err := fmt.Sscan(string(out), &n, &f, &t); err != nil || n < 5000 {
		b.Fatalf("the original said %q: %v", out, err)
	}
	return time.Duration(f * float64(time.Millisecond)), time.Duration(t * float64(time.Millisecond))
}
