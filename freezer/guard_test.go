package freezer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// kills is how often each of those who matter is killed.
func kills(t *testing.T) int {
	t.Helper()
	text := os.Getenv("FREEZER_TEST_KILLS")
	if text == "" {
		return 50
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		t.Fatalf("FREEZER_TEST_KILLS=%s: %v", text, err)
	}
	return n
}

// guards lists the living guards.
func guards(tb testing.TB) (pids []int) {
	tb.Helper()
	for _, pid := range allPIDs(tb) {
		comm, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
		if string(comm) == guardName+"\n" && stateOf(pid) != "Z" {
			pids = append(pids, pid)
		}
	}
	return pids
}

// victims starts a tree of four processes.
func victims(tb testing.TB) *actor {
	tb.Helper()
	return act(tb, "sleepers 3")
}

func awaitThaw(tb testing.TB) {
	tb.Helper()
	await(tb, "the thaw", func() bool { return stopped(tb) == 0 && len(guards(tb)) == 0 })
}

func TestRequesterKilled(t *testing.T) {
	needIsolation(t)
	v := victims(t)
	prompt := promptness{}
	usual := time.Duration(0) // time to a freeze, on this machine now
	for i := range kills(t) {
		r := act(t, fmt.Sprintf("requester %d 10m false", v.pid()))
		began := time.Now()
		if i%5 == 0 {
			if line := r.line(t); !strings.HasPrefix(line, "frozen") {
				t.Fatal(line)
			}
			usual = time.Since(began)
		} else {
			time.Sleep(time.Duration(rand.Int64N(int64(2 * usual)))) // the moment is the test
		}
		cause := "a requester killed before"
		if stopped(t) > 0 {
			cause = "a requester killed"
		}
		r.kill()
		prompt.await(t, cause, "the thaw", func() bool { return stopped(t) == 0 && len(guards(t)) == 0 })
		if left, _ := filepath.Glob("/run/freezer/*"); len(left) > 0 {
			t.Fatalf("left behind: %v", left)
		}
	}
	prompt.judge(t, "a requester killed")
}

func TestGuardKilled(t *testing.T) {
	needIsolation(t)
	v := victims(t)
	for range kills(t) / 5 {
		g, _ := freeze(t, Order{Targets: []Target{Tree(v.pid())}})
		s, err := g.State()
		if err != nil {
			t.Fatal(err)
		}
		if n := stopped(t); n != 4 {
			t.Fatalf("%d processes are stopped", n)
		}
		_ = syscall.Kill(s.Guard, syscall.SIGKILL)
		<-g.Done()
		if err := g.Err(); !errors.Is(err, ErrGuardLost) {
			t.Errorf("the error is %v", err)
		}
		if n := stopped(t); n > 0 {
			t.Fatalf("%d processes are left stopped", n)
		}
	}
}

// While it freezes, at any moment.
func TestGuardKilledAtWork(t *testing.T) {
	needIsolation(t)
	v := act(t, "sleepers "+strconv.Itoa(crowd()/10))
	halfway, usual := 0, 20*time.Millisecond
	// However fast it is, it is met at work some day.
	until := time.Now().Add(time.Minute)
	for i := 0; i < kills(t)/5 || halfway == 0 && time.Now().Before(until); i++ {
		g := start(t)
		pid := guards(t)[0]
		type result struct {
			took time.Duration
			err  error
		}
		done, began := make(chan result), time.Now()
		go func() {
			_, err := g.Freeze(context.Background(), Order{Targets: []Target{Tree(v.pid())}})
			done <- result{time.Since(began), err}
		}()
		time.Sleep(time.Duration(rand.Int64N(int64(usual)))) // the moment is the test
		_ = syscall.Kill(pid, syscall.SIGSTOP)
		await(t, "the guard to stop", func() bool { return stateOf(pid) == "T" })
		begun := stopped(t) > 1 // more than the guard
		_ = syscall.Kill(pid, syscall.SIGKILL)
		switch r := <-done; {
		case r.err == nil:
			usual = r.took
		case !errors.Is(r.err, ErrGuardLost):
			t.Error(r.err)
		case begun:
			halfway++
		}
		<-g.Done()
		if n := stopped(t); n > 0 {
			t.Fatalf("%d processes are left stopped", n)
		}
	}
	if halfway == 0 {
		t.Error("never was it killed while it stopped processes")
	}
	t.Logf("killed %d times while it stopped processes", halfway)
}

func TestBothKilled(t *testing.T) {
	needIsolation(t)
	v := victims(t)
	for range kills(t) / 5 {
		r := act(t, fmt.Sprintf("requester %d 1m false", v.pid()))
		var guard int
		var id string
		if _, err := fmt.Sscanf(r.line(t), "frozen %d %s", &guard, &id); err != nil {
			t.Fatal(err)
		}
		// The guard cannot act between the two.
		_ = syscall.Kill(guard, syscall.SIGSTOP)
		r.kill()
		_ = syscall.Kill(guard, syscall.SIGKILL)
		await(t, "the guard's end", func() bool { return len(guards(t)) == 0 })
		if n := stopped(t); n != 4 {
			t.Fatalf("%d processes are stopped", n)
		}
		done, err := Recover("")
		if err != nil || len(done) != 1 || done[0].Processes != 4 || done[0].ID != id {
			t.Fatalf("Recover: %+v, %v", done, err)
		}
		if n := stopped(t); n > 0 {
			t.Fatalf("%d processes are left stopped", n)
		}
		if done, err := Recover(""); err != nil || len(done) > 0 {
			t.Fatalf("again: %+v, %v", done, err)
		}
	}
}

// Whoever has the number of a process that was frozen, or is of another boot, was never
// frozen.
func TestRecoverTouchesNoOther(t *testing.T) {
	needIsolation(t)
	a := act(t, "sleepers 0")
	_ = syscall.Kill(a.pid(), syscall.SIGSTOP)
	await(t, "the stop", func() bool { return stateOf(a.pid()) == "T" })
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", a.pid()))
	if err != nil {
		t.Fatal(err)
	}
	s, err := parseStat(text)
	if err != nil {
		t.Fatal(err)
	}
	dir, err := openDir(Dir())
	if err != nil {
		t.Fatal(err)
	}
	own := must(must(openProc()).stat(int32(os.Getpid())))
	self := process{own.pid, own.start}
	for _, c := range []struct {
		name  string
		rec   record
		entry entry
		gone  bool // the journal, afterwards
		state string
	}{
		{"another start", record{Boot: bootID(), PIDNS: pidNamespace()}, entry{kind: entryPID, pid: s.pid, start: s.start + 1}, true, "T"},
		{"another boot", record{Boot: "x", PIDNS: pidNamespace()}, entry{kind: entryPID, pid: s.pid, start: s.start}, true, "T"},
		{"another namespace", record{Boot: bootID(), PIDNS: 7}, entry{kind: entryPID, pid: s.pid, start: s.start}, false, "T"},
		{"no such number", record{Boot: bootID(), PIDNS: pidNamespace()}, entry{kind: entryPID, pid: 4_000_000, start: s.start}, true, "T"},
		{"its own", record{Boot: bootID(), PIDNS: pidNamespace()}, entry{kind: entryPID, pid: s.pid, start: s.start}, true, "S"},
	} {
		c.rec.Guard, c.rec.Requester = self, self
		j, err := createJournal(dir, c.rec)
		if err != nil {
			t.Fatal(err)
		}
		if err := j.note(c.entry); err != nil {
			t.Fatal(err)
		}
		if done, err := Recover(dir); err != nil || len(done) > 0 {
			t.Errorf("%s, with its guard alive: %+v, %v", c.name, done, err)
		}
		_ = j.file.Close()
		if _, err := Recover(dir); err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
		if got := stateOf(a.pid()); (got == "T") != (c.state == "T") {
			t.Errorf("%s: the process is in state %s, want %s", c.name, got, c.state)
		}
		if _, err := os.Stat(j.path); (err != nil) != c.gone {
			t.Errorf("%s: the journal: %v", c.name, err)
		}
		_ = os.Remove(j.path)
	}
}

func TestDeadline(t *testing.T) {
	needIsolation(t)
	v := victims(t)
	const timeout = 3 * time.Second
	began := time.Now()
	g, _ := freeze(t, Order{Targets: []Target{Tree(v.pid())}, Timeout: timeout})
	if n := stopped(t); n != 4 && time.Since(began) < timeout {
		t.Errorf("%d processes are stopped", n)
	}
	<-g.Done()
	if err := g.Err(); !errors.Is(err, ErrDeadline) {
		t.Errorf("the error is %v", err)
	}
	if n := stopped(t); n > 0 {
		t.Errorf("%d processes are left stopped", n)
	}
	if err := g.Thaw(); !errors.Is(err, ErrDeadline) {
		t.Errorf("thaw afterwards: %v", err)
	}
}

func TestExtend(t *testing.T) {
	needIsolation(t)
	v := victims(t)
	g, _ := freeze(t, Order{Targets: []Target{Tree(v.pid())}, Timeout: time.Minute})
	for _, c := range []struct {
		timeout  time.Duration
		min, max time.Duration
	}{
		{time.Hour, 59 * time.Minute, time.Hour},
		{-1, -1, -1},
		{time.Minute, 30 * time.Second, time.Minute},
	} {
		s, err := g.Extend(c.timeout)
		if err != nil || s.Left < c.min || s.Left > c.max {
			t.Errorf("extended by %v: %v left, %v", c.timeout, s.Left, err)
		}
	}
	s, err := g.Extend(50 * time.Millisecond)
	if err != nil || s.Left > 50*time.Millisecond {
		t.Errorf("%v left, %v", s.Left, err)
	}
	<-g.Done()
	if err := g.Err(); !errors.Is(err, ErrDeadline) || stopped(t) > 0 {
		t.Errorf("%v, and %d processes are stopped", err, stopped(t))
	}
}

func TestDetachAndAdopt(t *testing.T) {
	needIsolation(t)
	v := victims(t)
	r := act(t, fmt.Sprintf("requester %d 1m true", v.pid()))
	var guard int
	var id string
	if _, err := fmt.Sscanf(r.line(t), "frozen %d %s", &guard, &id); err != nil {
		t.Fatal(err)
	}
	r.kill()
	await(t, "the guard to notice", func() bool {
		s, err := List("")
		return err == nil && len(s) == 1 && s[0].Detached
	})
	states, _ := List("")
	if s := states[0]; s.ID != id || s.Guard != guard || s.Report.Processes != 4 || s.Left > time.Minute {
		t.Errorf("%+v", s)
	}
	if n := stopped(t); n != 4 {
		t.Fatalf("%d processes are stopped", n)
	}
	if _, err := Adopt("", "0000"); !errors.Is(err, ErrThawed) {
		t.Errorf("adopting what is not there: %v", err)
	}
	other, err := Adopt("", id)
	if err != nil {
		t.Fatal(err)
	}
	other.Close()
	<-other.Done()
	g, err := Adopt("", id)
	if err != nil {
		t.Fatal(err)
	}
	if s, err := g.Extend(time.Hour); err != nil || s.Left < 59*time.Minute || !s.Detached {
		t.Errorf("%+v, %v", s, err)
	}
	title, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", guard))
	want := "freezer-guard: 4 processes until "
	if !strings.HasPrefix(string(title), want) || len(bytes.TrimRight(title, "\x00")) != len(want)+len("15:04:05") {
		t.Errorf("the guard is called %q", title)
	}
	if n := stopped(t); n != 4 {
		t.Fatalf("%d processes are stopped", n)
	}
	thaw(t, g)
	awaitThaw(t)
}

func TestDetachedDeadline(t *testing.T) {
	needIsolation(t)
	v := victims(t)
	before(t, 500*time.Millisecond, func(timeout time.Duration) error {
		r := act(t, fmt.Sprintf("requester %d %v true", v.pid(), timeout))
		line := r.line(t)
		if strings.Contains(line, ErrDeadline.Error()) {
			return ErrDeadline
		}
		if !strings.HasPrefix(line, "frozen") {
			return errors.New(line)
		}
		r.kill()
		return nil
	})
	awaitThaw(t)
}

func TestTerminatedGuard(t *testing.T) {
	needIsolation(t)
	v := victims(t)
	g, _ := freeze(t, Order{Targets: []Target{Tree(v.pid())}})
	_ = syscall.Kill(guards(t)[0], syscall.SIGTERM)
	<-g.Done()
	if err := g.Err(); !errors.Is(err, ErrThawed) || stopped(t) > 0 {
		t.Errorf("%v, and %d processes are stopped", err, stopped(t))
	}
}

func TestCancelledFreeze(t *testing.T) {
	needIsolation(t)
	v := act(t, "sleepers "+strconv.Itoa(crowd()/10))
	for i := range 5 {
		ctx, cancel := context.WithTimeout(context.Background(), time.Duration(i)*3*time.Millisecond)
		g := start(t)
		_, err := g.Freeze(ctx, Order{Targets: []Target{Tree(v.pid())}})
		if err != nil && !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
		cancel()
		_ = g.Thaw()
		if n := stopped(t); n > 0 {
			t.Fatalf("%d processes are left stopped", n)
		}
	}
}

func TestFreezeThaw(t *testing.T) {
	needIsolation(t)
	v := victims(t)
	o := Order{Targets: []Target{Tree(v.pid())}}
	check := func() {
		if n := stopped(t); n != 4 {
			t.Errorf("%d processes are stopped", n)
		}
	}
	broken := errors.New("broken")
	for _, want := range []error{nil, broken} {
		if err := FreezeThaw(t.Context(), o, func() error { check(); return want }); !errors.Is(err, want) {
			t.Errorf("the error is %v, want %v", err, want)
		}
		if n := stopped(t); n > 0 {
			t.Errorf("%d processes are left stopped", n)
		}
	}
	func() {
		defer func() {
			if p := recover(); p != broken {
				t.Errorf("the panic is %v", p)
			}
			if n := stopped(t); n > 0 {
				t.Errorf("%d processes are left stopped", n)
			}
		}()
		_ = FreezeThaw(t.Context(), o, func() error { check(); panic(broken) })
	}()
	before(t, 200*time.Millisecond, func(timeout time.Duration) error {
		o.Timeout = timeout
		err := FreezeThaw(t.Context(), o, func() error {
			await(t, "the deadline", func() bool { return stopped(t) == 0 })
			return broken
		})
		if errors.Is(err, ErrDeadline) && errors.Is(err, broken) {
			return nil
		}
		return err
	})
	o.Timeout = 0
	ctx, cancel := context.WithCancel(t.Context())
	err := FreezeThaw(ctx, o, func() error {
		cancel()
		await(t, "the thaw", func() bool { return stopped(t) == 0 })
		return nil
	})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("the error is %v", err)
	}
}

func TestFreezeThawSignals(t *testing.T) {
	needIsolation(t)
	v := victims(t)
	for _, s := range Signals {
		a := act(t, fmt.Sprintf("freezethaw %d", v.pid()))
		if line := a.line(t); line != "frozen" {
			t.Fatal(line)
		}
		_ = a.cmd.Process.Signal(s)
		await(t, "the thaw", func() bool { return stopped(t) == 0 })
		_ = a.stdin.Close()
		if line := a.line(t); line != "over: "+(&Interrupt{s}).Error() {
			t.Errorf("%v: %s", s, line)
		}
		_ = a.cmd.Wait()
	}
	// And at any moment.
	for range kills(t) / 5 {
		a := act(t, fmt.Sprintf("freezethaw %d", v.pid()))
		time.Sleep(time.Duration(rand.Int64N(int64(20 * time.Millisecond))))
		_ = a.cmd.Process.Signal(syscall.SIGTERM)
		_ = a.stdin.Close()
		_ = a.cmd.Wait()
		awaitThaw(t)
	}
}
