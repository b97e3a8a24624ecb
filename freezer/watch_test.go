package freezer

import (
	"errors"
	"fmt"
	"os"
	"syscall"
	"testing"
	"time"
)

// What a killed guard has held is thawed at once, also of a freeze that was detached,
// whoever has asked for it and whenever: before the executor began, after, or before
// an executor that was killed itself.
func TestWatch(t *testing.T) {
	needIsolation(t)
	point := newFS(t, "ext4")
	v := victims(t)
	for _, c := range []struct {
		name   string
		role   string
		before bool
	}{
		{"file system, found", "fsholder 1m true " + point, true},
		{"file system, watched", "fsholder 1m true " + point, false},
		{"processes, found", fmt.Sprintf("requester %d 1m true", v.pid()), true},
		{"processes, watched", fmt.Sprintf("requester %d 1m true", v.pid()), false},
	} {
		var x *Executor
		var l *logbook
		if !c.before {
			x, l = newExecutor(t, nil)
		} else {
			// One that was killed makes no difference.
			e := act(t, "executor freeze "+treeSpec(v.pid()))
			if line := e.line(t); line != "frozen" {
				t.Fatal(line)
			}
			e.kill()
			awaitThaw(t)
		}
		r := act(t, c.role)
		var guard int
		if _, err := fmt.Sscanf(r.line(t), "frozen %d", &guard); err != nil {
			t.Fatal(err)
		}
		r.kill()
		if c.before {
			x, l = newExecutor(t, nil)
		}
		await(t, "the freeze to be detached", func() bool { return len(must(x.Detached())) == 1 })
		if !frozenFS(t, point) && stopped(t) != 4 {
			t.Errorf("%s: not frozen", c.name)
		}
		_ = syscall.Kill(guard, syscall.SIGKILL)
		await(t, "the thaw", func() bool { return !frozenFS(t, point) && stopped(t) == 0 })
		cleanRun(t)
		await(t, "a line in the log", func() bool { return l.has("thawed what a killed guard has left") })
		if c.before && !l.has("watching over a freeze") {
			t.Errorf("%s: it was not found: %q", c.name, l.lines)
		}
		if err := x.Close(); err != nil {
			t.Error(err)
		}
	}
}

// The directory may be made anew.
func TestWatchDirectoryGone(t *testing.T) {
	needIsolation(t)
	v := victims(t)
	x, _ := newExecutor(t, nil)
	if err := os.RemoveAll(Dir()); err != nil {
		t.Fatal(err)
	}
	await(t, "the directory", func() bool {
		_, err := os.Stat(Dir())
		return err == nil
	})
	r := act(t, fmt.Sprintf("requester %d 1m true", v.pid()))
	var guard int
	if _, err := fmt.Sscanf(r.line(t), "frozen %d", &guard); err != nil {
		t.Fatal(err)
	}
	r.kill()
	_ = syscall.Kill(guard, syscall.SIGKILL)
	awaitThaw(t)
	_ = x.Close()
}

// An executor that ends leaves the detached freezes to their guards.
func TestWatchEnds(t *testing.T) {
	needIsolation(t)
	v := victims(t)
	x, _ := newExecutor(t, nil)
	r := act(t, fmt.Sprintf("requester %d 1m true", v.pid()))
	r.line(t)
	if err := x.Close(); err != nil {
		t.Error(err)
	}
	if n := stopped(t); n != 4 {
		t.Errorf("%d processes are stopped", n)
	}
	all, err := List("")
	if err != nil || len(all) != 1 {
		t.Fatal(all, err)
	}
	g, err := Adopt("", all[0].ID)
	if err != nil {
		t.Fatal(err)
	}
	thaw(t, g)
}

// A guard that somebody has stopped thaws nevertheless, when it is asked or its time is
// up: here nobody asks but the watch.
func TestStoppedGuard(t *testing.T) {
	needIsolation(t)
	v := victims(t)
	// stop fails if the guard has thawed before.
	stop := func(g *Guard) error {
		s, err := g.State()
		if err != nil {
			return err
		}
		_ = syscall.Kill(s.Guard, syscall.SIGSTOP)
		await(t, "the guard to stop", func() bool { return g.Err() != nil || stateOf(s.Guard) == "T" })
		return g.Err()
	}
	tree := Order{Targets: []Target{Tree(v.pid())}, Timeout: time.Minute}
	g, _ := freeze(t, tree)
	if err := stop(g); err != nil {
		t.Fatal(err)
	}
	if s, err := g.Extend(time.Minute); err != nil || s.Left < time.Second {
		t.Errorf("extend: %+v, %v", s, err)
	}
	if err := stop(g); err != nil {
		t.Fatal(err)
	}
	thaw(t, g)

	before(t, 500*time.Millisecond, func(timeout time.Duration) error {
		tree.Timeout = timeout
		g = start(t)
		if _, err := g.Freeze(t.Context(), tree); err != nil {
			return err
		}
		return stop(g)
	})
	await(t, "the freeze to be overdue", func() bool {
		s, err := List("")
		return err == nil && len(s) == 1 && s[0].Overdue > 0
	})
	if n := stopped(t); n != 5 {
		t.Errorf("%d are stopped", n)
	}
	_, _ = newExecutor(t, nil)
	<-g.Done()
	if err := g.Err(); !errors.Is(err, ErrDeadline) {
		t.Error(err)
	}
	awaitThaw(t)
}
