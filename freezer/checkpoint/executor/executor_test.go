package executor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/lockerd/lockerd/freezer/checkpoint"
)

// fakeLocks is a lock table with what is in it.
type fakeLocks struct {
	holds   []Hold
	answers chan error // of Suspend
	id      string     // that it was told
	ended   chan Hold
	runs    chan uint64
}

var errNo = errors.New("no")

func (f *fakeLocks) Holds(_ context.Context, lock string) (list []Hold, err error) {
	for _, h := range f.holds {
		if lock == "" && h.Here || lock == h.Locks[0] {
			list = append(list, h)
		}
	}
	return list, nil
}

func (f *fakeLocks) Suspend(_ context.Context, _ uint64, _, id string) error {
	f.id = id
	return <-f.answers
}

func (f *fakeLocks) Resume(context.Context, uint64, string, int) (fence uint64, e error) {
	return 0, errNo
}
func (f *fakeLocks) Ended(_ context.Context, h Hold) error { f.ended <- h; return nil }

func (f *fakeLocks) Runs(_ context.Context, fence uint64, _ int) error { f.runs <- fence; return nil }

func (f *fakeLocks) Refused(err error) bool { return errors.Is(err, errNo) }

func prepare(t *testing.T, action string, spec any, holds ...Hold) error {
	t.Helper()
	text, ok := spec.(string)
	if !ok {
		b, err := json.Marshal(spec)
		if err != nil {
			t.Fatal(err)
		}
		text = string(b)
	}
	x := New("", nil)
	defer x.Close()
	_, err := x.Prepare(t.Context(), 1, action, []byte(text), &fakeLocks{holds: holds})
	return err
}

// TestRefused is all that is refused before anything has happened.
func TestRefused(t *testing.T) {
	dir := t.TempDir()
	file, there := filepath.Join(dir, "f"), filepath.Join(dir, "there")
	open := filepath.Join(dir, "open")
	if err := errors.Join(os.WriteFile(open, []byte("no context"), 0o600), os.Chmod(open, 0o666)); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(there, []byte("no context"), 0o600); err != nil {
		t.Fatal(err)
	}
	pipe := filepath.Join(dir, "pipe") // whoever opens it waits for a writer
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	me, idle := os.Getpid(), sleeping(t).Pid
	locks := []Hold{
		{Fence: 1, Locks: []string{"far"}, Host: "h2", PID: me},
		{Fence: 2, Locks: []string{"kept"}, Suspended: true, By: "root@h1", Context: "/c/1"},
		{Fence: 3, Locks: []string{"shared"}, PID: me, Here: true},
		{Fence: 4, Locks: []string{"shared"}, PID: me, Here: true},
		{Fence: 5, Locks: []string{"nobody"}, Owner: "ann", Here: true},
		{Fence: 6, Locks: []string{"past"}, PID: me, Start: 1, Here: true},
		{Fence: 7, Locks: []string{"over"}, PID: me, Here: true, Over: true},
	}
	for _, tt := range []struct {
		action string
		spec   any
		want   string
	}{
		{"thaw", "{}", `there is no action "thaw"`},
		{ActionCheckpoint, "{", "read the spec"},
		{ActionCheckpoint, `{"pids":1}`, "unknown field"},
		{ActionCheckpoint, "{} {}", "something stands behind it"},
		{ActionCheckpoint, strings.Repeat(" ", maxSpec+1), "longer than"},
		{ActionCheckpoint, CheckpointSpec{File: file}, "either a process or a lock"},
		{ActionCheckpoint, CheckpointSpec{PID: me, Lock: "a", File: file}, "either a process or a lock"},
		{ActionCheckpoint, CheckpointSpec{PID: -1, File: file}, "-1 is no process"},
		{ActionCheckpoint, CheckpointSpec{PID: me}, "which file?"},
		{ActionCheckpoint, CheckpointSpec{PID: me, File: "f"}, "whole name from /"},
		{ActionCheckpoint, CheckpointSpec{PID: me, File: dir + "/../f"}, "whole name from /"},
		{ActionCheckpoint, CheckpointSpec{PID: me, File: "/a\nb"}, "control characters"},
		{ActionCheckpoint, CheckpointSpec{PID: me, File: "/nowhere/f"}, "no directory /nowhere"},
		{ActionCheckpoint, CheckpointSpec{PID: me, File: file, After: "term"}, `and not "term"`},
		{ActionCheckpoint, CheckpointSpec{PID: me, File: file, After: "run", Suspend: true}, "cannot run on"},
		{ActionCheckpoint, CheckpointSpec{PID: me, File: file, After: "stop", Suspend: true}, "cannot be stopped"},
		{ActionCheckpoint, CheckpointSpec{PID: me, File: there, Suspend: true}, "is there already"},
		{ActionCheckpoint, CheckpointSpec{PID: idle, File: file, Suspend: true}, "holds no lock that could"},
		{ActionCheckpoint, CheckpointSpec{PID: me, File: file, Suspend: true}, "holds shared too (process"},
		{ActionCheckpoint, CheckpointSpec{Lock: "free", File: file}, "nobody holds free"},
		{ActionCheckpoint, CheckpointSpec{Lock: "far", File: file}, "of h2, and that is not this host"},
		{ActionCheckpoint, CheckpointSpec{Lock: "kept", File: file}, "suspended already by root@h1: its job is in /c/1"},
		{ActionCheckpoint, CheckpointSpec{Lock: "shared", File: file}, "has 2 holders"},
		{ActionCheckpoint, CheckpointSpec{Lock: "over", File: file}, "before this host was started anew"},
		{ActionCheckpoint, CheckpointSpec{Lock: "nobody", File: file}, "not known by which process"},
		{ActionCheckpoint, CheckpointSpec{Lock: "past", File: file}, "its number is another's"},
		{ActionCheckpoint, CheckpointSpec{PID: 1 << 30, File: file}, "there is no process"},
		{ActionRestart, RestartSpec{}, "which file?"},
		{ActionRestart, RestartSpec{File: file}, "no such file"},
		{ActionRestart, RestartSpec{File: there}, there},
		{ActionRestart, RestartSpec{File: open}, "(chown, chmod), or say --trust"},
		{ActionRestart, RestartSpec{File: open, Trust: true}, "it is no context file"},
		{ActionRestart, RestartSpec{File: pipe}, "is no regular file"},
		{ActionRestart, RestartSpec{File: dir}, "is no regular file"},
		{ActionRestart, RestartSpec{File: there, Relocations: make([]checkpoint.Relocation, 17)}, "at most 16"},
	} {
		err := prepare(t, tt.action, tt.spec, locks...)
		if err == nil || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s %+v: %v; want it refused: %s", tt.action, tt.spec, err, tt.want)
		}
	}
}

// lockersh is a process whose program has that name, and its child, until the test is over.
func lockersh(t *testing.T, name string) (pid, child int) {
	t.Helper()
	shell, err := os.ReadFile("/bin/sh")
	path := filepath.Join(t.TempDir(), "lockersh")
	if err == nil {
		err = os.WriteFile(path, shell, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	c := exec.Command(path, "-c", "sleep 1000 & echo $!; wait")
	c.Args[0] = name
	out, err := c.StdoutPipe()
	if err == nil {
		err = c.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = syscall.Kill(child, syscall.SIGKILL)
		_ = c.Process.Kill()
		_ = c.Wait()
	})
	if _, err := fmt.Fscan(out, &child); err != nil {
		t.Fatal(err)
	}
	until(t, "the child to be another program", func() bool { return nameOf(child) == "sleep" })
	return c.Process.Pid, child
}

// TestTwoLocks refuses a job under two lockershs, as it would lose one of its locks, by
// whichever it is named.
func TestTwoLocks(t *testing.T) {
	inner, job := lockersh(t, "lockersh")
	holds := []Hold{
		{Fence: 1, Locks: []string{"a"}, PID: inner, Here: true}, // of a lockersh around it
		{Fence: 2, Locks: []string{"b"}, PID: job, Here: true},
	}
	for lock, other := range map[string]string{"a": "b too (process", "b": "a too (process"} {
		err := prepare(t, ActionCheckpoint, CheckpointSpec{Lock: lock, File: filepath.Join(t.TempDir(), "f"), Suspend: true}, holds...)
		if err == nil || !strings.Contains(err.Error(), other) || !strings.Contains(err.Error(), "beside "+lock+": one hold can be kept for it; release") {
			t.Errorf("the job of %s: %v", lock, err)
		}
	}
}

// TestAdvised tells what helps a command of lockersh that has its connection.
func TestAdvised(t *testing.T) {
	refused := fmt.Errorf("checkpoint: %w", syscall.ENOTCONN)
	_, plain := lockersh(t, "/usr/bin/lockersh")
	_, checkpointable := lockersh(t, runnerName)
	for _, tt := range []struct {
		pid  int
		err  error
		want string
	}{
		{plain, refused, "start it with lockersh --checkpointable"},
		{plain, syscall.EBUSY, "busy"},
		{checkpointable, refused, "only cr_checkpoint"},
		{os.Getpid(), refused, "only cr_checkpoint"},
	} {
		if err := advised(tt.err, tt.pid); !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%v of %d: %v; want %q", tt.err, tt.pid, err, tt.want)
		}
	}
}

// TestKept is which job may have its lock back.
func TestKept(t *testing.T) {
	m := &checkpoint.Manifest{ID: "x", Locks: []checkpoint.Lock{{Name: "a", Fence: 3}, {Name: "b", Fence: 3}}}
	older := &checkpoint.Manifest{ID: "w", Locks: m.Locks}
	onDisk := Hold{Fence: 3, Locks: []string{"a", "b"}, Host: "h", PID: 7, Suspended: true, Context: "/c/x", ContextID: "x", Job: 3, Ended: true}
	again, ending, other := onDisk, onDisk, onDisk
	again.Fence, other.Fence, other.Job, ending.Ended = 5, 5, 5, false
	for _, tt := range []struct {
		name  string
		m     *checkpoint.Manifest
		lock  string
		holds []Hold
		want  string // "" for what was kept for fence 3, "-" for none
	}{
		{"no lock", &checkpoint.Manifest{}, "", nil, "-"},
		{"none, and one is wanted", &checkpoint.Manifest{}, "a", nil, "had no lock"},
		{"kept", m, "", []Hold{onDisk}, ""},
		{"kept, named", m, "b", []Hold{onDisk}, ""},
		{"kept, as another one was never let run", m, "", []Hold{again}, ""},
		{"kept, and it may run", m, "", []Hold{ending}, "process 7 of h, is not known to have ended"},
		{"kept for a later file", older, "", []Hold{onDisk}, "a is kept for the job in /c/x, and /c is another checkpoint of it"},
		{"kept for a later file, and it may run", older, "", []Hold{ending}, "is kept for the job in /c/x"},
		{"another's name", m, "c", nil, "had the lock a, and not c"},
		{"it lives", m, "", []Hold{{Fence: 3, Locks: []string{"a"}, PID: 7, Host: "h"}}, "lives: it holds a, with fence 3, as process 7 of h"},
		{"restarted before", m, "", []Hold{{Fence: 4, Locks: []string{"a"}, Owner: "x"}}, "any more: it is held by x, with fence 4"},
		{"over", m, "", nil, "the hold with fence 3 is over"},
		{"suspended again", m, "", []Hold{other}, "any more"},
	} {
		h, err := kept(t.Context(), tt.m, RestartSpec{File: "/c", Lock: tt.lock}, &fakeLocks{holds: tt.holds})
		switch {
		case tt.want == "" && (err != nil || h == nil || h.Job != 3),
			tt.want == "-" && (err != nil || h != nil),
			len(tt.want) > 1 && (err == nil || !strings.Contains(err.Error(), tt.want)):
			t.Errorf("%s: %+v, %v; want %q", tt.name, h, err, tt.want)
		}
	}
}

// TestChildren finds those that another thread than the first has made.
func TestChildren(t *testing.T) {
	made := make(chan *exec.Cmd)
	go func() {
		runtime.LockOSThread()
		c := exec.Command("sleep", "1000")
		if err := c.Start(); err != nil {
			t.Error(err)
		}
		made <- c
		made <- nil // until then this thread is kept
	}()
	c := <-made
	all, err := children(os.Getpid())
	if err != nil || !slices.Contains(all, c.Process.Pid) {
		t.Errorf("children %v, %v: %d is not among them", all, err, c.Process.Pid)
	}
	<-made
	_ = c.Process.Kill()
	_ = c.Wait()
}

// sleeping is a process that sleeps until the test is over.
func sleeping(t *testing.T) *os.Process {
	t.Helper()
	c := exec.Command("sleep", "1000")
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = c.Process.Kill()
		_, _ = c.Process.Wait()
	})
	return c.Process
}

// process describes one as a manifest does.
func process(t *testing.T, pid int) checkpoint.Process {
	t.Helper()
	start, err := startOf(pid)
	if err != nil {
		t.Fatal(err)
	}
	return checkpoint.Process{PID: pid, Start: start}
}

// TestSuspend has the table agree, refuse, and answer too late.
func TestSuspend(t *testing.T) {
	job := sleeping(t)
	m := &checkpoint.Manifest{ID: "x", Processes: []checkpoint.Process{
		process(t, job.Pid), {PID: os.Getpid(), Start: 1}, // one that was ours, and its number is another's
	}}
	file := filepath.Join(t.TempDir(), "f")
	x, locks := New("", nil), &fakeLocks{answers: make(chan error, 1), ended: make(chan Hold, 1)}
	defer x.Close()
	suspend := func(ctx context.Context) error {
		if err := os.WriteFile(file, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		return x.suspend(ctx, &suspension{order: 1, locks: locks, hold: &Hold{Fence: 3, Locks: []string{"a"}}, file: file, manifest: m})
	}
	there := func() bool { _, err := os.Stat(file); return err == nil }

	locks.answers <- nil
	if err := suspend(t.Context()); err != nil || !there() || locks.id != "x" {
		t.Errorf("agreed: %v, file %v, id %q", err, there(), locks.id)
	}
	locks.answers <- errNo
	if err := suspend(t.Context()); err == nil || there() {
		t.Errorf("refused: %v, file %v", err, there())
	}
	locks.answers <- errors.New("silence")
	if err := suspend(t.Context()); err == nil || !there() {
		t.Errorf("unknown: %v, file %v", err, there())
	}
	locks.holds = []Hold{{Fence: 3, Locks: []string{"a"}, PID: job.Pid, Here: true}, {Fence: 4, Locks: []string{"b"}, PID: job.Pid, Here: true}}
	if err := suspend(t.Context()); err == nil || !strings.Contains(err.Error(), "holds b too") || there() {
		t.Errorf("another lock: %v, file %v", err, there())
	}
	locks.holds = nil
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := suspend(ctx); err == nil || !strings.Contains(err.Error(), "not known") || !there() {
		t.Errorf("late: %v, file %v", err, there())
	}
	if err := job.Signal(syscall.Signal(0)); err != nil {
		t.Fatal("the job was ended before its lock was suspended:", err)
	}
	locks.answers <- nil
	if h := <-locks.ended; h.Fence != 3 || h.Context != file || h.ContextID != "x" {
		t.Errorf("the job has ended of %+v", h)
	}
	if state, err := job.Wait(); err != nil || state.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Errorf("the job after its lock was suspended: %v, %v", state, err)
	}
}

// TestEnd kills a job that has run on since it was put on disk, with what it has started since.
func TestEnd(t *testing.T) {
	pid, child := lockersh(t, "sh")
	other, _ := lockersh(t, "sh")
	m := &checkpoint.Manifest{Processes: []checkpoint.Process{process(t, pid), {PID: other, Start: 1}}}
	if err := end(t.Context(), m); err != nil {
		t.Fatal(err)
	}
	for _, pid := range []int{pid, child} {
		if state, err := statOf(pid, 3); err == nil && state != "Z" {
			t.Errorf("process %d is in state %s", pid, state)
		}
	}
	if there, run := look(other, 0); !there || !run {
		t.Errorf("another one, of the same number: there %v, runs %v", there, run)
	}
}

// TestLook tells a process that was let run from one that stands still, also behind its
// stage, has ended, or is another one.
func TestLook(t *testing.T) {
	p := sleeping(t)
	start := process(t, p.Pid).Start
	stage, below := lockersh(t, stageName)
	plain, child := lockersh(t, "sh")
	want := func(what string, pid int, start uint64, there, run bool) {
		t.Helper()
		if a, b := look(pid, start); a != there || b != run {
			t.Errorf("%s: there %v, runs %v", what, a, b)
		}
	}
	want("one that runs", p.Pid, start, true, true)
	want("one whose start is not known", p.Pid, 0, true, true)
	want("another one", p.Pid, start+1, false, false)
	want("a stage", stage, 0, true, true)
	for _, pid := range []int{p.Pid, below, child} {
		if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		until(t, "the process to stand still", func() bool { state, _ := statOf(pid, 3); return state == "T" })
	}
	want("one that stands still", p.Pid, start, true, false)
	want("the stage of such a one", stage, 0, true, false)
	want("the parent of such a one", plain, 0, true, true)
	_ = p.Kill()
	until(t, "the process to end", func() bool { state, _ := statOf(p.Pid, 3); return state == "Z" })
	want("one that is dead", p.Pid, start, false, false)
	_, _ = p.Wait()
	want("one that is gone", p.Pid, start, false, false)
}
