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

	"golang.org/x/sys/unix"
)

// BenchmarkFreeze freezes and thaws 5,000 processes that sleep: by signals, by their
// cgroup, and as Sys::FreezeThaw does it, in turns. The times are medians in
// milliseconds, and the parts are of the original's in the same run. What it takes to
// start a guard comes before the freeze, and is counted by itself. "bare" is what of
// the cgroup's time is the kernel's alone.
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
	// As the guard and the original do: or what is measured is how long one process waits
	// for its turn among 5,000 that have been woken.
	if err := goFirst(); err != nil {
		b.Fatal(err)
	}
	proc := must(openProc())
	defer proc.close()
	// Who has been woken by a thaw has to fall asleep again first: it is cheaper to freeze
	// and to thaw one that has not run yet.
	asleep := func() {
		await(b, "5,000 processes to sleep", func() bool {
			return !slices.ContainsFunc(members(dir), func(pid int32) bool {
				s, err := proc.stat(pid)
				return err == nil && s.state == 'R'
			})
		})
	}
	for b.Loop() {
		asleep()
		freeze, thaw := original(b)
		asleep()
		times["original-freeze"] = append(times["original-freeze"], freeze)
		times["original-thaw"] = append(times["original-thaw"], thaw)
		freeze, thaw = bare(b, dir)
		times["bare-freeze"] = append(times["bare-freeze"], freeze)
		times["bare-thaw"] = append(times["bare-thaw"], thaw)
		for name, target := range map[string]Target{"signals": Machine(), "cgroup": Cgroup(dir)} {
			asleep()
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
	both := func(way string) float64 { return median(way+"-freeze") + median(way+"-thaw") }
	for _, way := range []string{"signals", "cgroup", "bare"} {
		b.ReportMetric(both(way)/both("original"), way+"-part")
	}
	b.ReportMetric(0, "ns/op")
	for _, act := range []string{"-freeze", "-thaw"} {
		if mine, most := median("signals"+act), median("original"+act)/2; mine > most {
			b.Errorf("signals%s takes %.1f ms, and half of the original is %.1f", act, mine, most)
		}
	}
	if mine, most := both("signals"), both("original")/2; mine > most {
		b.Errorf("signals take %.1f ms, and half of the original is %.1f", mine, most)
	}
	// Where the kernel alone takes most of a tenth, there is no room below that.
	if mine, most := both("cgroup"), max(both("original")/10, both("bare")*3/2); mine > most {
		b.Errorf("the cgroup takes %.1f ms; a tenth of the original is %.1f, half as much again as the kernel alone %.1f",
			mine, both("original")/10, both("bare")*3/2)
	}
}

// inCgroup starts a role in a cgroup.
func inCgroup(b testing.TB, dir, role string) *actor {
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

// bare is what "echo 1 >cgroup.freeze" and "echo 0" take, the first until the kernel
// says that all stand still.
func bare(b *testing.B, dir string) (freeze, thaw time.Duration) {
	b.Helper()
	c, err := openCgroup(dir, nil, must(openProc()))
	if err != nil {
		b.Fatal(err)
	}
	defer c.close()
	began := time.Now()
	if err := c.write("1"); err != nil {
		b.Fatal(err)
	}
	for !must(isFrozen(c.event)) {
		_, _ = unix.Poll([]unix.PollFd{{Fd: int32(c.event), Events: unix.POLLPRI}}, 20)
	}
	freeze = time.Since(began)
	began = time.Now()
	if err := c.write("0"); err != nil {
		b.Fatal(err)
	}
	return freeze, time.Since(began)
}
