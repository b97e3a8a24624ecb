package executor

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/lockerd/lockerd/freezer/checkpoint"
)

// roleVariable names the file that the test program itself is to restart, and waits for the
// lock of for ever.
const roleVariable = "EXECUTOR_TEST_FILE"

func TestMain(m *testing.M) {
	checkpoint.AtStage()
	AtParent()
	if file := os.Getenv(roleVariable); file != "" {
		p, err := New(nil).Prepare(context.Background(), 1, ActionRestart, mustJSON(RestartSpec{File: file}), &slowLocks{asked: func(pid int) { fmt.Println(pid) }})
		if err == nil {
			_, err = p.Freeze(context.Background())
		}
		fmt.Println(err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

func mustJSON(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return b
}

// slowLocks is a table that has one suspended hold, for fence 3, and gives it away when it
// is told to.
type slowLocks struct {
	fakeLocks
	asked  func(pid int)
	answer chan error
}

func (l *slowLocks) Holds(context.Context, string) ([]Hold, error) {
	return []Hold{{Fence: 7, Locks: []string{"a"}, Suspended: true, Job: 3, Ended: true}}, nil
}

func (l *slowLocks) Resume(_ context.Context, fence uint64, pid int) (uint64, error) {
	if fence != 7 {
		return 0, errors.New("another fence")
	}
	l.asked(pid)
	return 8, <-l.answer
}

// counting starts a job that counts into a file. size is how much it has written.
func counting(t *testing.T) (c *exec.Cmd, size func() int64) {
	t.Helper()
	skip := t.Skip
	if os.Getenv("LOCKERD_REQUIRE_CRIU") != "" {
		skip = t.Fatal
	}
	if os.Geteuid() != 0 {
		skip("it takes root to checkpoint processes")
	}
	if _, err := checkpoint.Find(t.Context()); err != nil {
		skip(err)
	}
	dir := t.TempDir()
	out := filepath.Join(dir, "out")
	size = func() int64 {
		st, err := os.Stat(out)
		if err != nil {
			return 0
		}
		return st.Size()
	}
	c = exec.Command("sh", "-c", "while :; do echo >>out; sleep 0.01; done")
	c.Dir, c.SysProcAttr = dir, &syscall.SysProcAttr{Setsid: true}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = c.Process.Kill()
		_ = c.Wait()
	})
	until(t, "the job to begin", func() bool { return size() > 0 })
	return c, size
}

// counted writes such a job to a context file.
func counted(t *testing.T) (file string, size func() int64) {
	t.Helper()
	c, size := counting(t)
	file = filepath.Join(c.Dir, "job.ckpt")
	if _, err := checkpoint.Checkpoint(t.Context(), checkpoint.Order{
		Target: checkpoint.Tree(c.Process.Pid), File: file, Signal: syscall.SIGKILL, Locks: []checkpoint.Lock{{Name: "a", Fence: 3}},
	}); err != nil {
		t.Fatal(err)
	}
	_ = c.Wait()
	left := c.Process.Pid // the group of what it has started, which may take a moment to be gone
	until(t, "the job to be gone", func() bool { return syscall.Kill(-left, 0) == syscall.ESRCH })
	return file, size
}

func until(t *testing.T, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(3 * time.Minute); !is(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("waited in vain for ", what)
		}
	}
}

// gone reports whether a process has ended.
func gone(pid int) bool {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err != nil || strings.HasPrefix(string(text[strings.LastIndexByte(string(text), ')')+1:]), " Z")
}

// TestARestartIsBrokenOff ends restarts when the job stands still and its lock has been
// asked for: by kill -9 of who carries them out, by the end of the order, and by a refusal.
// The job never runs. Then one succeeds.
func TestARestartIsBrokenOff(t *testing.T) {
	file, size := counted(t)
	before := size()
	never := func(how string, pid int) {
		t.Helper()
		until(t, "the job to end after "+how, func() bool { return gone(pid) })
		if n := size(); n != before {
			t.Fatalf("after %s the job has gone on, from %d to %d", how, before, n)
		}
	}

	c := exec.Command("/proc/self/exe")
	c.Env = append(os.Environ(), roleVariable+"="+file)
	said, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	defer c.Process.Kill()
	line, err := bufio.NewReader(said).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	var pid int
	if _, err := fmt.Sscanf(line, "%d\n", &pid); err != nil {
		rest, _ := io.ReadAll(said)
		t.Fatalf("the restart: %s%s", line, rest)
	}
	if gone(pid) {
		t.Fatal("the job was not restored")
	}
	_ = c.Process.Kill()
	_ = c.Wait()
	never("kill -9", pid)

	x := New(func(text string, args ...any) { t.Log(append([]any{text}, args...)...) })
	defer x.Close()
	locks := &slowLocks{asked: func(p int) { pid = p }, answer: make(chan error, 1), fakeLocks: fakeLocks{runs: make(chan uint64, 1)}}
	restart := func(ctx context.Context) (string, error) {
		p, err := x.Prepare(ctx, 1, ActionRestart, mustJSON(RestartSpec{File: file}), locks)
		if err != nil {
			t.Fatal(err)
		}
		return p.Freeze(ctx)
	}

	ctx, cancel := context.WithCancel(t.Context())
	locks.asked = func(p int) {
		pid = p
		cancel()
	}
	if text, err := restart(ctx); err == nil {
		t.Fatal("restarted after the end of the order: ", text)
	}
	locks.answer <- nil // it is granted, too late
	never("the end of the order", pid)
	until(t, "the late answer to be taken", func() bool { return len(locks.answer) == 0 })

	locks.asked = func(p int) { pid = p }
	locks.answer <- errNo
	if text, err := restart(t.Context()); !errors.Is(err, errNo) {
		t.Fatal("restarted without its lock: ", text, err)
	}
	never("a refusal", pid)
	if len(locks.runs) != 0 {
		t.Error("the table was told of a job that never ran")
	}

	locks.answer <- nil
	text, err := restart(t.Context())
	if err != nil || !strings.Contains(text, "is held, with fence 8") {
		t.Fatal(text, err)
	}
	if fence := <-locks.runs; fence != 8 {
		t.Errorf("the table was told of fence %d", fence)
	}
	until(t, "the job to go on", func() bool { return size() > before })
	_ = syscall.Kill(pid, syscall.SIGKILL)
	until(t, "the job to end", func() bool { return gone(pid) })
}

// TestRecover has a job end that ran on when its lock had been suspended, if it is certain
// that it is that job; and tells of one that was let run.
func TestRecover(t *testing.T) {
	c, size := counting(t)
	file := filepath.Join(c.Dir, "job.ckpt")
	if _, err := checkpoint.Checkpoint(t.Context(), checkpoint.Order{
		Target: checkpoint.Tree(c.Process.Pid), File: file, Locks: []checkpoint.Lock{{Name: "a", Fence: 3}},
	}); err != nil {
		t.Fatal(err)
	}
	shared := file + ".shared"
	text, err := os.ReadFile(file)
	if err == nil {
		err = errors.Join(os.WriteFile(shared, text, 0o600), os.Chmod(shared, 0o622))
	}
	if err != nil {
		t.Fatal(err)
	}
	var said []string
	x := New(func(text string, args ...any) { said = append(said, fmt.Sprint(text, args)) })
	defer x.Close()
	locks := &fakeLocks{ended: make(chan Hold, 8), runs: make(chan uint64, 8)}
	revive := func(h Hold) {
		h.Here, h.Locks, said = true, []string{"a"}, nil
		locks.holds = []Hold{h}
		x.Recover(t.Context(), locks)
	}
	suspended := Hold{Fence: 3, Job: 3, Suspended: true, PID: c.Process.Pid, Context: file}

	for _, h := range []Hold{
		{Fence: 3, Job: 3, Suspended: true, Context: file + ".gone"},
		{Fence: 3, Job: 3, Suspended: true, Context: shared},
		{Fence: 4, Job: 4, Suspended: true, Context: file},
	} {
		if revive(h); len(locks.ended) != 0 || len(said) != 1 || !strings.Contains(said[0], "break the lock") {
			t.Errorf("%+v: ended %d, said %q", h, len(locks.ended), said)
		}
	}
	done := suspended
	done.Ended = true
	if revive(done); len(locks.ended) != 0 || len(said) != 0 {
		t.Error("a job that has ended is looked for: ", said)
	}
	n := size()
	until(t, "the job to go on", func() bool { return size() > n })

	revive(suspended)
	if len(said) != 0 || len(locks.ended) != 1 || !gone(c.Process.Pid) {
		t.Fatalf("said %q, ended %d, the job is gone: %v", said, len(locks.ended), gone(c.Process.Pid))
	}
	if h := <-locks.ended; h.Fence != 3 || h.Context != file {
		t.Errorf("the job has ended of %+v", h)
	}
	over := Hold{Fence: 5, Job: 4, Suspended: true, Over: true, Context: "/gone"}
	if revive(over); len(said) != 0 || len(locks.ended) != 1 {
		t.Errorf("of an earlier boot: said %q, ended %d", said, len(locks.ended))
	}

	runs := sleeping(t)
	resumed := Hold{Fence: 6, Resumed: true, PID: runs.Pid, Start: process(t, runs.Pid).Start}
	if revive(resumed); len(said) != 0 || len(locks.runs) != 1 || <-locks.runs != 6 {
		t.Errorf("a job that runs: said %q", said)
	}
	resumed.Start++
	if revive(resumed); len(said)+len(locks.runs) != 0 {
		t.Errorf("a job that has ended: said %q", said)
	}
}
