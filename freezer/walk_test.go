package freezer

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// crowd is how many processes the tests have at once. Under the race detector a fork
// copies many times the memory.
func crowd() int {
	if raceEnabled {
		return 300
	}
	return 5000
}

// shell starts a busy shell.
func shell(tb testing.TB) *actor {
	tb.Helper()
	return begin(tb, exec.Command("/usr/bin/nice", "-n", "10", "/bin/sh", "-c", "echo ready; while :; do :; done"))
}

func TestMachine(t *testing.T) {
	needIsolation(t)
	act(t, "sleepers "+strconv.Itoa(crowd()))
	act(t, "bomb 12")
	act(t, "named")
	shell(t)
	headless := act(t, "leaderless")
	parents := act(t, "parent 4 10")
	await(t, "all generations", func() bool { return len(running(t)) >= crowd()+5*11+4 })
	ask := func(a *actor) int {
		fmt.Fprintln(a.stdin)
		return must(strconv.Atoi(a.line(t)))
	}
	counted := ask(headless)
	g, r := freeze(t, machine())
	if left := running(t); len(left) > 0 {
		t.Errorf("processes %v run while everything is frozen", left)
	}
	if r.Processes < crowd()+5*11+4 || r.Processes != stopped(t) {
		t.Errorf("%d processes are reported frozen, %d are", r.Processes, stopped(t))
	}
	thaw(t, g)
	if n := stopped(t); n > 0 {
		t.Errorf("%d processes are left stopped", n)
	}
	if seen := ask(parents); seen > 0 {
		t.Errorf("parents saw a stopped child %d times", seen)
	}
	await(t, "the process without its first thread to go on", func() bool { return ask(headless) > counted })
	t.Logf("%d processes frozen in %v, %d rounds", r.Processes, r.Took, r.Rounds)
}

// Forks go on while the table is read.
func TestForkBombsDoNotEscape(t *testing.T) {
	needIsolation(t)
	for i := range 3 {
		b := act(t, "bomb "+strconv.Itoa(crowd()/200))
		h := act(t, "hopper")
		g, r := freeze(t, machine())
		before := running(t)
		hops := stopped(t)
		time.Sleep(10 * time.Millisecond) // for what has escaped to show
		if after := running(t); len(before)+len(after) > 0 || stopped(t) != hops {
			t.Fatalf("run %d: after %d rounds %v and %v run", i, r.Rounds, before, after)
		}
		thaw(t, g)
		if n := stopped(t); n > 0 {
			t.Fatalf("run %d: %d processes are left stopped", i, n)
		}
		_ = h.stdin.Close()
		_ = h.cmd.Wait()
		b.kill()
		killAll(t)
	}
}

func TestHopper(t *testing.T) {
	needIsolation(t)
	h := act(t, "hopper")
	for range 10 {
		g, _ := freeze(t, machine())
		if left := running(t); len(left) > 0 {
			t.Fatalf("%v run", left)
		}
		thaw(t, g)
		fmt.Fprintln(h.stdin)
		first, _ := strconv.Atoi(h.line(t))
		await(t, "hops after the thaw", func() bool {
			fmt.Fprintln(h.stdin)
			n, _ := strconv.Atoi(h.line(t))
			return n > first
		})
	}
}

// What others have stopped is not ours to continue.
func TestStoppedStaysStopped(t *testing.T) {
	needIsolation(t)
	a := act(t, "sleepers 0")
	_ = syscall.Kill(a.pid(), syscall.SIGSTOP)
	await(t, "the stop", func() bool { return stateOf(a.pid()) == "T" })
	b := act(t, "sleepers 0")
	g, r := freeze(t, machine())
	if r.Processes != 1 {
		t.Errorf("%d processes were frozen, want 1", r.Processes)
	}
	thaw(t, g)
	if s := stateOf(a.pid()); s != "T" {
		t.Errorf("the process that was stopped before is now in state %s", s)
	}
	if s := stateOf(b.pid()); s == "T" {
		t.Error("the other is left stopped")
	}
}

func TestNameLikeStat(t *testing.T) {
	needIsolation(t)
	a := act(t, "named")
	g, _ := freeze(t, Order{Targets: []Target{Processes(a.pid())}})
	if s := stateOf(a.pid()); s != "T" {
		t.Errorf("it is in state %s", s)
	}
	thaw(t, g)
	if s := stateOf(a.pid()); s == "T" {
		t.Error("it is left stopped")
	}
}

func TestFirstThreadGone(t *testing.T) {
	needIsolation(t)
	a := act(t, "leaderless")
	ask := func() int {
		fmt.Fprintln(a.stdin)
		n, err := strconv.Atoi(a.line(t))
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	ask()
	await(t, "the end of the first thread, and no other", func() bool {
		s, err := parseStat(must(os.ReadFile(fmt.Sprintf("/proc/%d/stat", a.pid()))))
		return err == nil && s.state == 'Z' && s.threads > 1
	})
	g, r := freeze(t, machine())
	if s := stateOf(a.pid()); s != "T" || r.Processes != 1 {
		t.Errorf("it is in state %s; %d processes were frozen", s, r.Processes)
	}
	thaw(t, g)
	if n := ask(); n <= 0 {
		t.Errorf("it has counted to %d", n)
	}
}

// Neither freezing nor thawing shows a parent that a child is stopped.
func TestNoParentSeesAStop(t *testing.T) {
	needIsolation(t)
	const line, others = 4, 40
	const all = (line + 1) * (others + 1)
	a := act(t, fmt.Sprintf("parent %d %d", line, others))
	await(t, "all generations", func() bool { return len(running(t)) == all })
	for range 10 {
		g, r := freeze(t, Order{Targets: []Target{Tree(a.pid())}})
		if r.Processes != all {
			t.Fatalf("%d processes were frozen, want %d", r.Processes, all)
		}
		thaw(t, g)
	}
	fmt.Fprintln(a.stdin)
	if seen := a.line(t); seen != "0" {
		t.Errorf("parents saw a stopped child %s times", seen)
	}
}

// The test before could not fail if parents were never to see anything.
func TestParentsSeeAStop(t *testing.T) {
	needIsolation(t)
	a := act(t, "parent 1 0")
	_ = syscall.Kill(childOf(t, a.pid()), syscall.SIGSTOP)
	await(t, "the parent to see that its child stopped", func() bool {
		fmt.Fprintln(a.stdin)
		return a.line(t) != "0"
	})
}

func TestScopes(t *testing.T) {
	needIsolation(t)
	tree := begin(t, exec.Command("/bin/sh", "-c", "sleep 1000 & sleep 1000 & setsid sleep 1000 & echo ready; wait"))
	cmd := exec.Command("/bin/sh", "-c", "sleep 1000 & echo ready; wait")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	session := begin(t, cmd)
	alone := act(t, "sleepers 1")
	for _, c := range []struct {
		target Target
		want   int
	}{
		{Tree(tree.pid()), 4},
		{Session(session.pid()), 2},
		{Processes(alone.pid()), 1},
		{Tree(os.Getpid()), 8}, // all but ourselves
		{Machine(), 8},
	} {
		g, r := freeze(t, Order{Targets: []Target{c.target}})
		if r.Processes != c.want || stopped(t) != c.want {
			t.Errorf("%v: %d processes are reported frozen, and %d are; want %d", c.target, r.Processes, stopped(t), c.want)
		}
		thaw(t, g)
	}
	g, r := freeze(t, Order{Targets: []Target{Tree(tree.pid()), Processes(alone.pid())}, Except: []int{tree.pid()}})
	if r.Processes != 4 || stateOf(tree.pid()) == "T" {
		t.Errorf("%d processes are frozen, and the exception is in state %s", r.Processes, stateOf(tree.pid()))
	}
	thaw(t, g)
}

// A process that is named twice is frozen once.
func TestNamedTwice(t *testing.T) {
	needIsolation(t)
	pid := victims(t).pid()
	g, r := freeze(t, Order{Targets: []Target{Processes(pid, pid), Processes(pid)}, Timeout: time.Minute})
	if r.Processes != 1 || stopped(t) != 1 {
		t.Errorf("%d processes, %d are stopped", r.Processes, stopped(t))
	}
	thaw(t, g)
}

func TestRefused(t *testing.T) {
	needIsolation(t)
	g := start(t)
	_, _ = g.Freeze(context.Background(), machine())
	t.Cleanup(func() { _ = g.Thaw() })
	for _, c := range []struct {
		order Order
		want  error
	}{
		{Order{}, ErrOrder},
		{Order{Targets: []Target{{Kind: "moon"}}}, ErrOrder},
		{Order{Targets: []Target{Processes()}}, ErrOrder},
		{Order{Targets: []Target{Cgroup("relative")}}, ErrOrder},
		{Order{Targets: []Target{Processes(4_000_000)}}, ErrNoTarget},
		{Order{Targets: []Target{Session(4_000_000)}}, ErrNoTarget},
		{Order{Targets: []Target{Processes(1)}}, ErrSelf},
		{Order{Targets: []Target{Processes(os.Getpid())}}, ErrSelf},
		{Order{Targets: []Target{Cgroup("/run")}}, ErrNoTarget},
	} {
		_, err := start(t).Freeze(context.Background(), c.order)
		if !errors.Is(err, c.want) {
			t.Errorf("%+v: %v, want %v", c.order, err, c.want)
		}
	}
}

func TestUnstoppable(t *testing.T) {
	needIsolation(t)
	v := act(t, "vfork")
	child := childOf(t, v.pid())
	await(t, "uninterruptible sleep", func() bool { return waits(v.pid()) })
	other := act(t, "sleepers 1")
	o := Order{Targets: []Target{Processes(v.pid(), other.pid())}, Patience: 50 * time.Millisecond}
	r, err := start(t).Freeze(context.Background(), o)
	if !errors.Is(err, ErrUnstoppable) || !strings.Contains(err.Error(), strconv.Itoa(v.pid())) {
		t.Fatalf("the error is %v", err)
	}
	if r.Running != 1 || len(r.Unstoppable) != 1 || r.Unstoppable[0].PID != v.pid() {
		t.Errorf("the report is %+v", r)
	}
	if n := stopped(t); n > 0 {
		t.Errorf("%d processes are left stopped", n)
	}
	o.Partial = true
	g, r := freeze(t, o)
	if r.Running != 1 || r.Processes != 1 || stateOf(other.pid()) != "T" {
		t.Errorf("the report is %+v, and the other is in state %s", r, stateOf(other.pid()))
	}
	if all, err := List(""); err != nil || len(all) != 1 || all[0].Report.Processes != 1 || all[0].Report.Running != 1 {
		t.Errorf("List: %+v, %v", all, err)
	}
	thaw(t, g)
	if n := stopped(t); n > 0 {
		t.Errorf("%d processes are left stopped", n)
	}
	// With its child killed it would stop now, had the signal not been taken back.
	_ = syscall.Kill(child, syscall.SIGKILL)
	if err := v.cmd.Wait(); err == nil || v.cmd.ProcessState.ExitCode() != 1 {
		t.Errorf("it ended with %v", err)
	}
}

// /proc has threads as well, though it does not list them.
func TestThreadIsNoProcess(t *testing.T) {
	needIsolation(t)
	a := act(t, "leaderless")
	tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", a.pid()))
	if err != nil || len(tasks) < 2 {
		t.Fatalf("the threads of process %d are %v: %v", a.pid(), tasks, err)
	}
	thread := must(strconv.Atoi(tasks[1].Name()))
	want := fmt.Sprintf("there is no process %d, that is a thread of process %d", thread, a.pid())
	for _, target := range []Target{Processes(thread), Processes(a.pid(), thread), Tree(thread)} {
		o := Order{Targets: []Target{target}}
		if _, err := start(t).Freeze(context.Background(), o); !errors.Is(err, ErrNoTarget) || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: %v, want %s", target, err, want)
		}
		if _, err := Survey(o); !errors.Is(err, ErrNoTarget) {
			t.Errorf("Survey of %v: %v", target, err)
		}
	}
	if _, err := start(t).Freeze(context.Background(), Order{Targets: []Target{Session(thread)}}); !errors.Is(err, ErrNoTarget) {
		t.Errorf("a session: %v", err)
	}
	if n := stopped(t); n > 0 {
		t.Errorf("%d processes are left stopped", n)
	}
}

// walkOf is what a guard does, without the guard.
func walkOf(t *testing.T, o *Order) *walk {
	t.Helper()
	s, err := newScope(o, os.Getpid(), nil)
	if err != nil {
		t.Fatal(err)
	}
	w := &walk{scope: s, order: o, report: &Report{}, note: func(...entry) error { return nil }}
	t.Cleanup(func() {
		if err := w.thaw(); err != nil {
			t.Error(err)
		}
		w.close()
	})
	return w
}

// Who ends between the look at the order and the freeze is not frozen.
func TestEndsBeforeTheFreeze(t *testing.T) {
	needIsolation(t)
	for _, target := range []func(int) Target{Tree, func(pid int) Target { return Processes(pid) }} {
		a := act(t, "sleepers 0")
		w := walkOf(t, &Order{Targets: []Target{target(a.pid())}})
		a.kill()
		if err := w.freeze(t.Context()); !errors.Is(err, ErrNoTarget) {
			t.Errorf("%v: %v", target(a.pid()), err)
		}
	}
}

// Somebody else has stopped it, and one of its threads cannot stop. There is nothing to
// do but to wait: with pauses, as a guard has priority over everybody.
func TestStoppedButForAThread(t *testing.T) {
	needIsolation(t)
	a := act(t, "vfork thread")
	childOf(t, a.pid())
	await(t, "uninterruptible sleep", func() bool { return waits(a.pid()) })
	_ = syscall.Kill(a.pid(), syscall.SIGSTOP)
	await(t, "the stop of the first thread", func() bool {
		s, err := parseStat(must(os.ReadFile(fmt.Sprintf("/proc/%d/stat", a.pid()))))
		return err == nil && s.state == 'T'
	})
	o := Order{Targets: []Target{Processes(a.pid())}, Within: 200 * time.Millisecond}
	w := walkOf(t, &o)
	err := w.freeze(t.Context())
	if !errors.Is(err, ErrUnstoppable) || !strings.Contains(err.Error(), fmt.Sprintf("process %d ", a.pid())) {
		t.Errorf("the error is %v", err)
	}
	if w.rounds > 120 { // one in two milliseconds, and a few that come faster
		t.Errorf("%d passes in %v", w.rounds, o.Within)
	}
	o.Partial = true
	g, r := freeze(t, o)
	if r.Processes != 0 || r.Running != 1 || len(r.Unstoppable) != 1 || r.Unstoppable[0].PID != a.pid() {
		t.Errorf("the report is %+v", r)
	}
	thaw(t, g)
}

// Somebody continues it whenever it has stopped.
func TestContinuedAgainAndAgain(t *testing.T) {
	needIsolation(t)
	a := act(t, "sleepers 0")
	over, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for {
			select {
			case <-over:
				return
			default:
				_ = syscall.Kill(a.pid(), syscall.SIGCONT)
			}
		}
	}()
	defer func() {
		close(over)
		<-ended
	}()
	w := walkOf(t, &Order{Targets: []Target{Processes(a.pid())}, Within: 200 * time.Millisecond})
	err := w.freeze(t.Context())
	if err == nil { // it was continued later
		await(t, "the freeze to be broken", func() bool {
			w.inspect()
			return w.loosed > 0
		})
		return
	}
	if !errors.Is(err, ErrUnstoppable) || !strings.Contains(err.Error(), fmt.Sprintf("process %d ", a.pid())) {
		t.Errorf("the error is %v", err)
	}
}

// For each that is stopped there is a new one, for ever.
func TestRestless(t *testing.T) {
	needIsolation(t)
	act(t, "sleepers 3")
	o := machine()
	o.Within, o.Patience = time.Second, 30*time.Second
	w := walkOf(t, &o)
	w.note = func(...entry) error { return exec.Command("sleep", "1000").Start() }
	if err := w.freeze(t.Context()); !errors.Is(err, ErrRestless) || w.rounds < 2 {
		t.Errorf("after %d rounds the error is %v", w.rounds, err)
	}
	if err := w.thaw(); err != nil {
		t.Error(err)
	}
	if n := stopped(t); n > 0 {
		t.Errorf("%d processes are left stopped", n)
	}
}

func TestThawBeforeFreeze(t *testing.T) {
	needIsolation(t)
	g := start(t)
	thaw(t, g)
	if _, err := g.Freeze(context.Background(), machine()); !errors.Is(err, ErrThawed) {
		t.Errorf("the error is %v", err)
	}
}

func TestTracedByARunningProcess(t *testing.T) {
	needIsolation(t)
	victim := childOf(t, act(t, "sleepers 1").pid()) // has one thread
	runtime.LockOSThread()                           // a thread is the tracer
	defer runtime.UnlockOSThread()
	if err := syscall.PtraceAttach(victim); err != nil {
		t.Fatal(err)
	}
	await(t, "the stop", func() bool { return stateOf(victim) == "t" })
	_, err := start(t).Freeze(context.Background(), machine())
	if !errors.Is(err, ErrUnstoppable) || !strings.Contains(err.Error(), "tracer") {
		t.Errorf("the error is %v", err)
	}
	o := machine()
	o.Partial = true
	g, r := freeze(t, o)
	if r.Running != 1 {
		t.Errorf("the report is %+v", r)
	}
	thaw(t, g)
}

func TestHeldByAnother(t *testing.T) {
	needIsolation(t)
	a := act(t, "sleepers 3")
	b := act(t, "sleepers 3")
	g, _ := freeze(t, Order{Targets: []Target{Tree(a.pid())}})
	if _, err := start(t).Freeze(context.Background(), machine()); !errors.Is(err, ErrHeld) {
		t.Errorf("the error is %v, want %v", err, ErrHeld)
	}
	other, r := freeze(t, Order{Targets: []Target{Tree(b.pid())}})
	if r.Processes != 4 {
		t.Errorf("%d processes are frozen, want 4", r.Processes)
	}
	if states, err := List(""); err != nil || len(states) != 2 {
		t.Errorf("List: %+v, %v", states, err)
	}
	if err := errors.Join(other.Thaw(), g.Thaw()); err != nil {
		t.Error(err)
	}
	if n := stopped(t); n > 0 {
		t.Errorf("%d processes are left stopped", n)
	}
}
