package pidprobe

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

func noescape(b *[1]byte) unsafe.Pointer { return unsafe.Pointer(b) }

func newWatcher(t *testing.T) (*Watcher, <-chan Process) {
	t.Helper()
	dead := make(chan Process, 100_000)
	w, err := NewWatcher(func(p Process) { dead <- p }, func(err error) { t.Logf("warned: %v", err) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.Close(); err != nil {
			t.Error(err)
		}
	})
	return w, dead
}

func mustWatch(t *testing.T, w *Watcher, p Process) {
	t.Helper()
	if err := w.Watch(p); err != nil {
		t.Fatal(err)
	}
}

func expect(t *testing.T, dead <-chan Process, want Process) {
	t.Helper()
	select {
	case p := <-dead:
		if p != want {
			t.Fatalf("%+v reported, want %+v", p, want)
		}
	case <-time.After(time.Minute):
		t.Fatalf("%+v is not reported", want)
	}
}

func TestWatcherReportsDeath(t *testing.T) {
	w, dead := newWatcher(t)
	c, other := start(t, "cat"), start(t, "cat")
	p := c.lookup()
	p.Host = "here"
	mustWatch(t, w, p)
	mustWatch(t, w, p)
	mustWatch(t, w, other.lookup())
	began := time.Now()
	c.zombie() // nobody has reaped it when it is reported
	expect(t, dead, p)
	t.Logf("reported %v after its input ended", time.Since(began))
	if all, polled := w.Len(); all != 1 || polled != 0 {
		t.Errorf("%d watched, %d of them polled", all, polled)
	}
	if len(dead) != 0 {
		t.Errorf("also reported: %+v", <-dead)
	}
	mustWatch(t, w, p) // and again, as it is dead
	expect(t, dead, p)
}

func TestWatcherReportsWhatIsDeadAlready(t *testing.T) {
	w, dead := newWatcher(t)
	c := start(t, "cat")
	p := c.lookup()
	reused, rebooted := p, p
	reused.Start--
	rebooted.Boot = "00000000-0000-0000-0000-000000000000"
	mustWatch(t, w, reused)
	expect(t, dead, reused)
	mustWatch(t, w, rebooted)
	expect(t, dead, rebooted)
	c.zombie()
	mustWatch(t, w, p)
	expect(t, dead, p)
	c.reap()
	mustWatch(t, w, p)
	expect(t, dead, p)
	if err := w.Watch(Process{}); !errors.Is(err, ErrPID) {
		t.Errorf("no process at all: %v", err)
	}
}

func TestUnwatch(t *testing.T) {
	w, dead := newWatcher(t)
	a, b := start(t, "cat"), start(t, "cat")
	pa, pb := a.lookup(), b.lookup()
	mustWatch(t, w, pa)
	mustWatch(t, w, pb)
	w.Unwatch(pa)
	w.Unwatch(pa)
	w.Unwatch(Process{PID: 1})
	a.zombie()
	b.zombie()
	expect(t, dead, pb)
	if len(dead) != 0 {
		t.Errorf("reported though not watched: %+v", <-dead)
	}
}

func TestWatcherClose(t *testing.T) {
	w, err := NewWatcher(func(p Process) { t.Errorf("%+v reported", p) }, nil)
	if err != nil {
		t.Fatal(err)
	}
	c := start(t, "cat")
	p := c.lookup()
	mustWatch(t, w, p)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() { w.Close() })
	}
	wg.Wait()
	if err := w.Watch(p); !errors.Is(err, ErrClosed) {
		t.Errorf("Watch after Close: %v", err)
	}
	w.Unwatch(p)
	c.zombie()
}

// The kernel moves the identity of a process to the thread that calls execve.
func TestExecIsNoDeath(t *testing.T) {
	w, dead := newWatcher(t)
	c := startSelf(t, "reexec", "PIDPROBE_TEST_LEFT="+strings.Repeat("x", 30))
	p := c.lookup()
	mustWatch(t, w, p)
	if got := c.line(); got != "ready" {
		t.Fatal(got)
	}
	if len(dead) != 0 {
		t.Fatal("reported dead while it replaced itself")
	}
	c.zombie()
	expect(t, dead, p)
}

// crowd starts n processes that end together when its input does.
func crowd(t *testing.T, n int) (*child, []Process) {
	t.Helper()
	c := start(t, "/bin/sh", "-c", `exec 3<&0
		i=0; while [ $i -lt $0 ]; do read -r _ <&3 & echo $!; i=$((i+1)); done
		wait`, strconv.Itoa(n))
	all := make([]Process, n)
	for i := range all {
		pid, err := ParsePID(c.line())
		if err != nil {
			t.Fatal(err)
		}
		if all[i], err = Lookup(pid); err != nil {
			t.Fatal(err)
		}
	}
	return c, all
}

func TestTenThousand(t *testing.T) {
	// A watch costs the same whether its process is a new one or has been watched
	// under another name; to start processes takes far longer.
	processes, names := 2000, 5
	if testing.Short() || raceEnabled {
		processes = 200
	}
	n := processes * names
	w, dead := newWatcher(t)
	c, some := crowd(t, processes)
	var all []Process
	for i := range names {
		for _, p := range some {
			p.Host = strconv.Itoa(i)
			all = append(all, p)
		}
	}
	began := time.Now()
	for _, p := range all {
		mustWatch(t, w, p)
	}
	took := time.Since(began)
	if got, polled := w.Len(); got != n || polled != 0 {
		t.Fatalf("%d watched, %d of them polled", got, polled)
	}
	before := cpuTime(t)
	time.Sleep(300 * time.Millisecond) // what is measured is idling
	idle := cpuTime(t) - before
	rss := residentMB(t)
	t.Logf("%d watched within %v: %d MB resident, %v of processor time in 300 ms", n, took, rss, idle)
	if rss > 50 && !raceEnabled {
		t.Errorf("%d MB resident, at most 50", rss)
	}
	if idle > 30*time.Millisecond {
		t.Errorf("%v of processor time in 300 ms of idling", idle)
	}

	want := make(map[Process]bool, n)
	for _, p := range all {
		want[p] = true
	}
	began = time.Now()
	c.stdin.Close()
	for range all {
		select {
		case p := <-dead:
			if !want[p] {
				t.Fatalf("%+v reported twice, or never watched", p)
			}
			delete(want, p)
		case <-time.After(time.Minute):
			t.Fatalf("%d deaths are not reported", len(want))
		}
	}
	t.Logf("all deaths reported %v after the end began", time.Since(began))
}

func cpuTime(t *testing.T) time.Duration {
	t.Helper()
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func residentMB(t *testing.T) int {
	t.Helper()
	text, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		t.Fatal(err)
	}
	var size, resident int
	if _, err := fmt.Sscan(string(text), &size, &resident); err != nil {
		t.Fatal(err)
	}
	return resident * os.Getpagesize() >> 20
}

// watchForTest is a program that watches the processes whose numbers it reads, and
// prints what happens.
func watchForTest() {
	var mu sync.Mutex
	say := func(format string, args ...any) {
		mu.Lock()
		defer mu.Unlock()
		fmt.Printf(format+"\n", args...)
	}
	w, err := NewWatcher(func(p Process) { say("dead %d", p.PID) }, func(err error) { say("warned %v", err) })
	if err != nil {
		say("%v", err)
		return
	}
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		if in.Text() == "len" {
			all, polled := w.Len()
			say("len %d %d", all, polled)
			continue
		}
		verb, number, _ := strings.Cut(in.Text(), " ")
		pid, err := ParsePID(number)
		if err != nil {
			say("%v", err)
			return
		}
		p := Process{PID: pid}
		if verb == "unwatch" {
			w.Unwatch(p)
		} else if err := w.Watch(p); err != nil {
			say("%v", err)
		}
	}
	w.Close()
}

func TestFewDescriptors(t *testing.T) {
	const n = 60
	c, all := crowd(t, n)
	cmd := exec.Command("/bin/sh", "-c", "ulimit -n 40; exec "+os.Args[0])
	cmd.Env = append(os.Environ(), "PIDPROBE_TEST_MAIN=watch")
	x := startCmd(t, cmd)
	for _, p := range all {
		fmt.Fprintln(x.stdin, "watch", p.PID)
	}
	if got := x.line(); !strings.HasPrefix(got, "warned ") || !strings.Contains(got, "open files") {
		t.Fatalf("it says %q", got)
	}
	fmt.Fprintln(x.stdin, "len")
	if got := x.line(); got != "len 60 30" {
		t.Fatalf("%s, want 60 and 30 of them polled", got)
	}
	// When there are descriptors again, they are used.
	for _, p := range all[:20] {
		fmt.Fprintln(x.stdin, "unwatch", p.PID)
	}
	eventually(t, "the return to pidfds", func() bool {
		fmt.Fprintln(x.stdin, "len")
		return x.line() == "len 40 10"
	})
	c.stdin.Close()
	dead := map[string]bool{}
	for range all[20:] {
		dead[x.line()] = true
	}
	for _, p := range all[20:] {
		if !dead[fmt.Sprint("dead ", p.PID)] {
			t.Errorf("%d is not reported", p.PID)
		}
	}
}

// The soft limit is no limit.
func TestSoftLimitIsRaised(t *testing.T) {
	_, all := crowd(t, 60)
	cmd := exec.Command("/bin/sh", "-c", "ulimit -Sn 40 && ulimit -Hn 400 && exec "+os.Args[0])
	cmd.Env = append(os.Environ(), "PIDPROBE_TEST_MAIN=watch")
	x := startCmd(t, cmd)
	for _, p := range all {
		fmt.Fprintln(x.stdin, "watch", p.PID)
	}
	fmt.Fprintln(x.stdin, "len")
	if got := x.line(); got != "len 60 0" {
		t.Errorf("%s, want 60 and none polled", got)
	}
}
