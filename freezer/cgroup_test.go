package freezer

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// newCgroup makes a cgroup with processes in it.
func newCgroup(tb testing.TB, pids ...int) string {
	tb.Helper()
	mount, err := cgroupMount()
	if err != nil {
		tb.Skip("no cgroups of version 2:", err)
	}
	dir, err := os.MkdirTemp(mount, "freezer-test-")
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		_ = os.WriteFile(dir+"/cgroup.kill", []byte("1"), 0) // who forks all the time, too
		await(tb, "the end of a cgroup", func() bool { return os.Remove(dir) == nil })
	})
	for _, pid := range pids {
		join(tb, dir, pid)
	}
	return dir
}

func join(tb testing.TB, dir string, pid int) {
	tb.Helper()
	if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0); err != nil {
		tb.Fatal(err)
	}
}

// cgroupFrozen says what the kernel says.
func cgroupFrozen(tb testing.TB, dir string) bool {
	tb.Helper()
	b, err := os.ReadFile(filepath.Join(dir, "cgroup.events"))
	if err != nil {
		tb.Fatal(err)
	}
	return strings.Contains(string(b), "frozen 1")
}

func TestCgroup(t *testing.T) {
	needIsolation(t)
	a := act(t, "parent 3 0")
	await(t, "all generations", func() bool { return len(running(t)) == 4 })
	dir := newCgroup(t, running(t)...)
	other := act(t, "sleepers 0")
	g, r := freeze(t, Order{Targets: []Target{Cgroup(dir), Processes(other.pid())}})
	if !cgroupFrozen(t, dir) || stateOf(other.pid()) != "T" || len(r.Cgroups) != 1 || r.Processes != 1 {
		t.Errorf("not frozen: %+v", r)
	}
	if _, err := start(t).Freeze(context.Background(), Order{Targets: []Target{Cgroup(dir)}}); !errors.Is(err, ErrHeld) {
		t.Errorf("a second time: %v", err)
	}
	thaw(t, g)
	if cgroupFrozen(t, dir) || stateOf(other.pid()) == "T" {
		t.Error("not thawed")
	}
	if _, err := a.stdin.Write([]byte("\n")); err != nil {
		t.Fatal(err)
	}
	if seen := a.line(t); seen != "0" {
		t.Errorf("parents saw a stopped child %s times", seen)
	}
}

// Nobody notices anything: neither the processes, nor their parents.
func TestCgroupUnseen(t *testing.T) {
	needIsolation(t)
	a := act(t, "witness")
	ask := func() (noticed, child int) {
		fmt.Fprintln(a.stdin)
		if _, err := fmt.Sscan(a.line(t), &noticed, &child); err != nil {
			t.Fatal(err)
		}
		return noticed, child
	}
	_, child := ask()
	all, alone := newCgroup(t, a.pid(), child), newCgroup(t)
	for i := range 20 {
		dir := all
		if i%2 == 1 { // the child without its parent
			dir = alone
		}
		join(t, dir, child)
		g, _ := freeze(t, Order{Targets: []Target{Cgroup(dir)}, Timeout: time.Minute})
		if !cgroupFrozen(t, dir) {
			t.Fatal("not frozen")
		}
		thaw(t, g)
	}
	if n, _ := ask(); n > 0 {
		t.Errorf("noticed %d times", n)
	}
	// By signals they do, or this test would prove nothing.
	g, _ := freeze(t, Order{Targets: []Target{Processes(child)}, Timeout: time.Minute})
	thaw(t, g)
	await(t, "a parent to notice", func() bool { n, _ := ask(); return n > 0 })
}

// What forks is frozen as well, and so are its children.
func TestCgroupHoldsForkers(t *testing.T) {
	needIsolation(t)
	dir := newCgroup(t)
	inCgroup(t, dir, "sleepers "+strconv.Itoa(crowd()/10))
	inCgroup(t, dir, "bomb 12")
	inCgroup(t, dir, "leaderless")
	h := inCgroup(t, dir, "hopper")
	usage := func() string {
		text := must(os.ReadFile(dir + "/cpu.stat"))
		line, _, _ := strings.Cut(string(text), "\n")
		return line
	}
	for range 5 {
		g, _ := freeze(t, Order{Targets: []Target{Cgroup(dir)}, Timeout: time.Minute})
		there, used := members(dir), usage()
		time.Sleep(20 * time.Millisecond) // for what runs to show
		if now := usage(); !cgroupFrozen(t, dir) || now != used || !slices.Equal(members(dir), there) {
			t.Errorf("%s before, now %s; %d processes, now %d", used, now, len(there), len(members(dir)))
		}
		thaw(t, g)
		fmt.Fprintln(h.stdin)
		first := must(strconv.Atoi(h.line(t)))
		await(t, "the fork of a child", func() bool {
			fmt.Fprintln(h.stdin)
			return must(strconv.Atoi(h.line(t))) > first
		})
	}
}

// A cgroup that was frozen before stays so; and processes in it count as stopped.
func TestFrozenCgroupStaysFrozen(t *testing.T) {
	needIsolation(t)
	dir := newCgroup(t, act(t, "sleepers 0").pid())
	if err := os.WriteFile(dir+"/cgroup.freeze", []byte("1"), 0); err != nil {
		t.Fatal(err)
	}
	await(t, "the freeze", func() bool { return cgroupFrozen(t, dir) })
	g, r := freeze(t, Order{Targets: []Target{Cgroup(dir)}})
	if len(r.Cgroups) != 0 {
		t.Errorf("%+v", r)
	}
	thaw(t, g)
	g, _ = freeze(t, machine())
	thaw(t, g)
	if !cgroupFrozen(t, dir) {
		t.Error("it was thawed")
	}
	if err := os.WriteFile(dir+"/cgroup.freeze", []byte("0"), 0); err != nil {
		t.Fatal(err)
	}
	await(t, "the end of the stop", func() bool { return stopped(t) == 0 })
}

func TestOwnCgroup(t *testing.T) {
	needIsolation(t)
	dir := newCgroup(t)
	home, err := cgroupOf(must(openProc()), int32(os.Getpid()))
	if err != nil {
		t.Fatal(err)
	}
	join(t, dir, os.Getpid())
	_, err = start(t).Freeze(context.Background(), Order{Targets: []Target{Cgroup(dir)}})
	join(t, home, os.Getpid())
	if !errors.Is(err, ErrSelf) {
		t.Errorf("the error is %v", err)
	}
	if cgroupFrozen(t, dir) {
		t.Error("it is frozen")
	}
}

// Whoever thaws it ends the freeze, and that is noticed at once; who only kills a process
// of it, or moves one to it, does not.
func TestCgroupThawedByOthers(t *testing.T) {
	needIsolation(t)
	for _, c := range []struct {
		name   string
		before string // cgroup.freeze before
	}{
		{"ours", "0"},
		{"frozen before", "1"},
	} {
		a, b := act(t, "sleepers 1"), act(t, "sleepers 0")
		dir := newCgroup(t, a.pid())
		set := func(text string) {
			if err := os.WriteFile(dir+"/cgroup.freeze", []byte(text), 0); err != nil {
				t.Fatal(err)
			}
		}
		set(c.before)
		x, _ := newExecutor(t, nil)
		p, _ := ordered(t, x, ActionFreeze, fmt.Sprintf(`{"targets":[{"kind":"cgroup","path":%q}]}`, dir), -1)
		a.kill()
		join(t, dir, b.pid())
		await(t, "the freeze of all", func() bool { return cgroupFrozen(t, dir) })
		// The guard has been told of these changes before this answer.
		if _, err := p.guard.State(); err != nil || p.Err() != nil {
			t.Fatalf("%s: over without a thaw: %v, %v", c.name, err, p.Err())
		}
		set("0")
		await(t, "the end of the freeze", func() bool { return p.Err() != nil })
		if p.Cause() != CauseLocal || !errors.Is(p.Err(), ErrBroken) || !strings.Contains(p.Err().Error(), dir) {
			t.Errorf("%s: %q, %v", c.name, p.Cause(), p.Err())
		}
		cleanRun(t)
	}
}

// The same when the guard finds it by itself, in the thaw.
func TestCgroupFoundThawed(t *testing.T) {
	needIsolation(t)
	dir := newCgroup(t, act(t, "sleepers 0").pid())
	c := must(openCgroup(dir, nil, must(openProc())))
	defer c.close()
	h := &cgroupHolding{path: dir, cg: c}
	for _, by := range []string{"", "others"} {
		none := func(...entry) error { return nil }
		if err := c.freeze(t.Context(), &Order{}, none, nil, &Report{}); err != nil {
			t.Fatal(err)
		}
		if by != "" {
			if err := os.WriteFile(dir+"/cgroup.freeze", []byte("0"), 0); err != nil {
				t.Fatal(err)
			}
		}
		if err := c.thaw(); err != nil || (h.finish() != "") != (by != "") {
			t.Errorf("thawed by %q before: %v, %q", by, err, h.finish())
		}
	}
}

func TestCgroupRecovered(t *testing.T) {
	needIsolation(t)
	dir := newCgroup(t, act(t, "sleepers 3").pid())
	g, _ := freeze(t, Order{Targets: []Target{Cgroup(dir)}})
	s, err := g.State()
	if err != nil {
		t.Fatal(err)
	}
	_ = syscall.Kill(s.Guard, syscall.SIGKILL)
	<-g.Done()
	if !errors.Is(g.Err(), ErrGuardLost) || cgroupFrozen(t, dir) {
		t.Errorf("%v; frozen: %v", g.Err(), cgroupFrozen(t, dir))
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}
