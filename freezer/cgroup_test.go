package freezer

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
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
		for _, pid := range members(dir) {
			_ = syscall.Kill(int(pid), syscall.SIGKILL)
		}
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
