package executor

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lockerd/lockerd/freezer/checkpoint"
	"github.com/lockerd/lockerd/freezer/checkpoint/fencefile"
)

// fileVariable names the file that the test program itself is to restart, or the process
// of pidVariable to write to. momentVariable names the moment at which it says the job's
// number, and goes no further, and recordsVariable the directory for its records.
const (
	fileVariable    = "EXECUTOR_TEST_FILE"
	pidVariable     = "EXECUTOR_TEST_PID"
	momentVariable  = "EXECUTOR_TEST_MOMENT"
	recordsVariable = "EXECUTOR_TEST_RECORDS"
)

func TestMain(m *testing.M) {
	checkpoint.AtStage()
	AtParent()
	if file := os.Getenv(fileVariable); file != "" {
		fmt.Println(actAndHang(file, os.Getenv(momentVariable)))
		os.Exit(1)
	}
	// Orphans become our children, so that we can have their numbers be free again: not every
	// first process of a container reaps.
	err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
	if err == nil {
		// What we were given may be of other mounts, where CRIU does not find it.
		err = unix.CloseRange(3, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// actAndHang carries an order out up to a moment.
func actAndHang(file, moment string) error {
	hang := func(at string, pid int) {
		if at == moment {
			fmt.Println(pid)
			select {}
		}
	}
	locks := &restarted{resume: func(pid int) { hang("resume", pid) }, run: func(pid int) { hang("run", pid) }}
	action, spec := ActionRestart, mustJSON(RestartSpec{File: file, Trust: true})
	if pid, err := strconv.Atoi(os.Getenv(pidVariable)); err == nil {
		locks.suspend = func() { hang("suspend", pid) }
		locks.holds = []Hold{{Fence: 3, Locks: []string{lockName}, PID: pid, Here: true}}
		action, spec = ActionCheckpoint, mustJSON(CheckpointSpec{File: file, PID: pid, Suspend: true})
	} else {
		m, err := inspect(file)
		if err != nil {
			return err
		}
		locks.id = m.ID
	}
	p, err := New(os.Getenv(recordsVariable), nil).Prepare(context.Background(), 1, action, spec, locks)
	if err == nil {
		_, err = p.Freeze(context.Background())
	}
	return err
}

func mustJSON(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return b
}

// restarted is a table with one hold: suspended with fence 7, for what was put into a file
// under fence 3. It gives it away with fence 8, unless it has a reason not to.
type restarted struct {
	fakeLocks
	resume, run func(pid int) // called first, if not nil
	suspend     func()
	refuse      error
}

func (l *restarted) Holds(_ context.Context, lock string) ([]Hold, error) {
	if lock == "" {
		return l.holds, nil
	}
	return []Hold{{Fence: 7, Locks: []string{lockName}, Suspended: true, ContextID: l.id, Job: 3, Ended: true}}, nil
}

func (l *restarted) Suspend(context.Context, uint64, string, string) error {
	l.suspend()
	return nil
}

func (l *restarted) Resume(_ context.Context, _ uint64, _ string, pid int) (uint64, error) {
	if l.resume != nil {
		l.resume(pid)
	}
	return 8, l.refuse
}

func (l *restarted) Runs(_ context.Context, fence uint64, pid int) error {
	if l.run != nil {
		l.run(pid)
	}
	if l.runs != nil {
		l.runs <- fence
	}
	return nil
}

// until waits for what has to happen.
func until(t *testing.T, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(3 * time.Minute); !is(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("waited in vain for ", what)
		}
	}
}

// counting is a job that counts into a file, by its size.
type counting struct {
	t    *testing.T
	dir  string
	file string // its context
	pids []int
	id   string
}

// lockName is nobody's lock, so nobody has the file of its fence.
var lockName = fmt.Sprintf("executor-test-%d", os.Getpid())

// count starts one and writes it to a file. With a signal it is that of its end.
func count(t *testing.T, sig syscall.Signal, environ ...string) *counting {
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
	j := &counting{t: t, dir: t.TempDir()}
	j.file = filepath.Join(j.dir, "job.ckpt")
	c := exec.Command("sh", "-c", `test -z "$LOCKERSH_FENCE_FILE" || exec 9<"$LOCKERSH_FENCE_FILE"
		while :; do echo >>out; sleep 0.01; done`)
	c.Dir, c.Env, c.SysProcAttr = j.dir, append(os.Environ(), environ...), &syscall.SysProcAttr{Setsid: true}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	j.pids = []int{c.Process.Pid}
	t.Cleanup(j.end)
	until(t, "the job to begin", func() bool { return j.size() > 0 })
	r, err := checkpoint.Checkpoint(t.Context(), checkpoint.Order{
		Target: checkpoint.Tree(c.Process.Pid), File: j.file, Signal: sig, Locks: []checkpoint.Lock{{Name: lockName, Fence: 3}},
	})
	if err != nil {
		t.Fatal(err)
	}
	j.id = r.Manifest.ID
	for _, p := range r.Manifest.Processes {
		if p.PID != j.pids[0] {
			j.pids = append(j.pids, p.PID)
		}
	}
	if sig == syscall.SIGKILL {
		j.ended("the checkpoint")
	}
	return j
}

func (j *counting) size() int64 {
	st, err := os.Stat(filepath.Join(j.dir, "out"))
	if err != nil {
		return 0
	}
	return st.Size()
}

// goesOn waits until it does.
func (j *counting) goesOn() {
	j.t.Helper()
	from := j.size()
	until(j.t, "the job to go on", func() bool { return j.size() > from })
}

// ended waits until nothing of it is there, so that its numbers are free.
func (j *counting) ended(after string) {
	j.t.Helper()
	for _, pid := range append([]int{-j.pids[0]}, j.pids...) { // the group first
		until(j.t, fmt.Sprintf("process %d to end after %s", pid, after), func() bool {
			_, _ = syscall.Wait4(pid, nil, syscall.WNOHANG, nil) // it may be ours by now
			return syscall.Kill(pid, 0) == syscall.ESRCH
		})
	}
}

// end ends it, if it is there. While it runs, it has one child after the other.
func (j *counting) end() {
	j.t.Helper()
	if dir, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", j.pids[0])); err == nil && dir == j.dir { // it is still that
		_ = syscall.Kill(j.pids[0], syscall.SIGKILL)
		j.ended("a kill")
	}
}

// never fails if it has gone on since.
func (j *counting) never(since int64, how string) {
	j.t.Helper()
	j.ended(how)
	if n := j.size(); n != since {
		j.t.Fatalf("after %s the job has gone on, from %d to %d", how, since, n)
	}
}

// killed has another process restart it, and kills that with -9 at a moment.
func (j *counting) killed(moment string) {
	j.t.Helper()
	c := j.upTo(fileVariable+"="+j.file, momentVariable+"="+moment)
	_ = c.Process.Kill()
	_ = c.Wait()
}

// upTo has another process carry an order out up to a moment.
func (j *counting) upTo(environ ...string) *exec.Cmd {
	j.t.Helper()
	c := exec.Command("/proc/self/exe")
	c.Env = append(os.Environ(), environ...)
	c.Stderr = os.Stderr
	said, err := c.StdoutPipe()
	if err == nil {
		err = c.Start()
	}
	if err != nil {
		j.t.Fatal(err)
	}
	j.t.Cleanup(func() { _ = c.Process.Kill() })
	line, err := bufio.NewReader(said).ReadString('\n')
	if want := fmt.Sprintln(j.pids[0]); err != nil || line != want {
		j.t.Fatalf("the order: %q, %v; want %s", line, err, want)
	}
	return c
}

// resumed is its hold in the table, as Resume has left it.
func (j *counting) resumed() Hold {
	j.t.Helper()
	return Hold{Fence: 8, Locks: []string{lockName}, PID: j.pids[0], Start: process(j.t, j.pids[0]).Start, Here: true, Resumed: true}
}

// TestARestartIsBrokenOff ends restarts when the job stands still and its lock is asked
// for: by kill -9 of who carries them out, by the end of the order, and by a refusal. The
// job never runs. Then one succeeds.
func TestARestartIsBrokenOff(t *testing.T) {
	j := count(t, syscall.SIGKILL)
	before := j.size()
	j.killed("resume")
	j.never(before, "kill -9")

	x := New("", nil)
	defer x.Close()
	restart := func(ctx context.Context, locks *restarted) (string, error) {
		locks.id, locks.runs = j.id, make(chan uint64, 1)
		p, err := x.Prepare(ctx, 1, ActionRestart, mustJSON(RestartSpec{File: j.file, Trust: true}), locks)
		if err != nil {
			t.Fatal(err)
		}
		text, err := p.Freeze(ctx)
		if err != nil && len(locks.runs) != 0 {
			t.Error("the table was told that the job runs, and: ", err)
		}
		return text, err
	}
	ctx, cancel := context.WithCancel(t.Context())
	granted := make(chan struct{})
	if text, err := restart(ctx, &restarted{resume: func(int) { cancel(); <-granted }}); err == nil {
		t.Fatal("restarted after the end of the order: ", text)
	}
	close(granted) // too late
	j.never(before, "the end of the order")
	if text, err := restart(t.Context(), &restarted{refuse: errNo}); !errors.Is(err, errNo) {
		t.Fatal("restarted without its lock: ", text, err)
	}
	j.never(before, "a refusal")

	orphaned := &restarted{resume: func(pid int) {
		if parent, err := parentOf(pid); err != nil || syscall.Kill(parent, syscall.SIGKILL) != nil {
			t.Error("no parent: ", parent, err)
		}
	}}
	if text, err := restart(t.Context(), orphaned); err == nil || !strings.Contains(err.Error(), "the job was not let run") {
		t.Fatal("restarted by a parent that was killed: ", text, err)
	}
	j.never(before, "the end of its parent")

	// Killed while CRIU is at work, it leaves that alone with the job.
	ctx, cancel = context.WithCancel(t.Context())
	defer cancel()
	go func() {
		for ctx.Err() == nil {
			ours, _ := children(os.Getpid())
			for _, pid := range ours {
				if syscall.Kill(j.pids[0], 0) == nil && nameOf(pid) == parentName {
					_ = syscall.Kill(pid, syscall.SIGKILL)
					return
				}
			}
		}
	}()
	if text, err := restart(t.Context(), &restarted{refuse: errNo}); err == nil {
		t.Fatal("restarted by a parent that was killed: ", text)
	}
	cancel()
	j.never(before, "the end of its parent while CRIU was at work")
	if left, err := filepath.Glob(filepath.Join(j.dir, ".checkpoint-*")); err != nil || len(left) > 0 {
		t.Error("left behind: ", left, err)
	}

	locks := &restarted{}
	text, err := restart(t.Context(), locks)
	if err != nil || !strings.Contains(text, "is held, with fence 8") || <-locks.runs != 8 {
		t.Fatal(text, err)
	}
	j.goesOn()
}

// TestKilledAtTheResume kills who restarts a job with -9 when the job has its lock and is
// let run, before the table has heard of that. It runs, and the table hears of it of the
// next one, be it that the job's parent is slow.
func TestKilledAtTheResume(t *testing.T) {
	j := count(t, syscall.SIGKILL)
	x := New("", func(text string, args ...any) { t.Error(text, args) })
	defer x.Close()
	j.killed("run")
	j.goesOn()
	locks := &restarted{fakeLocks: fakeLocks{holds: []Hold{j.resumed()}, runs: make(chan uint64, 2)}}
	x.Recover(t.Context(), locks)
	if len(locks.runs) != 1 || <-locks.runs != 8 {
		t.Error("the table has not heard that the job runs")
	}
	j.goesOn()
	j.end()

	p, err := startParent()
	if err != nil {
		t.Fatal(err)
	}
	parent := p.cmd.Process.Pid
	defer syscall.Kill(parent, syscall.SIGCONT)
	var made restored
	if err := p.ask(RestartSpec{File: j.file, Trust: true}, &made); err != nil || made.Failed != "" {
		t.Fatal(made, err)
	}
	if err := syscall.Kill(parent, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	until(t, "the job's parent to stand still", func() bool { state, _ := statOf(parent, 3); return state == "T" })
	// This is the last that a killed one says.
	if err := json.NewEncoder(p.socket).Encode(verdict{Run: true, Fence: 8}); err != nil {
		t.Fatal(err)
	}
	_ = p.socket.Close()
	before := j.size()
	var slow atomic.Bool
	slow.Store(true)
	locks = &restarted{fakeLocks: fakeLocks{holds: []Hold{j.resumed()}, runs: make(chan uint64, 2)}, run: func(int) {
		if slow.Load() {
			t.Error("the table was told that the job runs, which it does not")
		}
	}}
	looked := make(chan struct{})
	recovered := make(chan struct{})
	go func() {
		defer close(recovered)
		x.settled(t.Context(), locks, locks.holds[0]) // as Recover does first
		close(looked)
		x.Recover(t.Context(), locks)
	}()
	<-looked
	if n := j.size(); n != before {
		t.Errorf("the job goes on, from %d to %d, and nobody has let it", before, n)
	}
	slow.Store(false)
	if err := syscall.Kill(parent, syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	<-recovered
	if len(locks.runs) != 1 || <-locks.runs != 8 {
		t.Error("the table has not heard that the job runs, of which the parent was slow")
	}
	j.goesOn()
	j.end()
	_ = p.cmd.Wait()
}

// TestKilledAtTheSuspension has a job end that ran on when its lock was suspended, if it is
// certain that it is that job.
func TestKilledAtTheSuspension(t *testing.T) {
	j := count(t, 0)
	shared := j.file + ".shared"
	text, err := os.ReadFile(j.file)
	if err == nil {
		err = errors.Join(os.WriteFile(shared, text, 0o600), os.Chmod(shared, 0o622))
	}
	if err != nil {
		t.Fatal(err)
	}
	var said []string
	x := New("", func(text string, args ...any) { said = append(said, fmt.Sprint(text, args)) })
	defer x.Close()
	suspended := Hold{Fence: 3, Locks: []string{lockName}, Job: 3, Suspended: true, PID: j.pids[0], Here: true, Context: j.file, ContextID: j.id}
	recovered := func(change func(*Hold)) (ended int) {
		h := suspended
		change(&h)
		locks := &fakeLocks{holds: []Hold{h}, ended: make(chan Hold, 1)}
		said = nil
		x.Recover(t.Context(), locks)
		return len(locks.ended)
	}
	for what, change := range map[string]func(*Hold){
		"no file":         func(h *Hold) { h.Context += ".gone" },
		"another's file":  func(h *Hold) { h.Context = shared },
		"another file":    func(h *Hold) { h.ContextID = "x" },
		"of another hold": func(h *Hold) { h.Job = 4 },
	} {
		if n := recovered(change); n != 0 || len(said) != 1 || !strings.Contains(said[0], "break the lock") {
			t.Errorf("%s: %d ended, said %q", what, n, said)
		}
	}
	if n := recovered(func(h *Hold) { h.Ended = true }); n+len(said) != 0 {
		t.Errorf("a job that has ended: %d ended, said %q", n, said)
	}
	if n := recovered(func(h *Hold) { h.Over, h.Context = true, "/gone" }); n != 1 || len(said) != 0 {
		t.Errorf("a job of an earlier boot: %d ended, said %q", n, said)
	}
	j.goesOn()
	if n := recovered(func(*Hold) {}); n != 1 || len(said) != 0 {
		t.Fatalf("the job: %d ended, said %q", n, said)
	}
	j.ended("its lock's suspension")
}

// TestKilledWithItsKeeper kills who writes a job to a file with -9, and also who would
// clear up after him. The next one does.
func TestKilledWithItsKeeper(t *testing.T) {
	j := count(t, 0)
	records := t.TempDir()
	c := j.upTo(fileVariable+"="+j.file+".more", pidVariable+"="+strconv.Itoa(j.pids[0]), momentVariable+"=suspend", recordsVariable+"="+records)
	keepers, err := children(c.Process.Pid)
	if err != nil || len(keepers) != 1 {
		t.Fatal(keepers, err)
	}
	_ = syscall.Kill(-keepers[0], syscall.SIGKILL) // first, or it does what it is there for
	_ = c.Process.Kill()
	_ = c.Wait()
	until(t, "the keeper and CRIU to end", func() bool {
		_, _ = syscall.Wait4(-keepers[0], nil, syscall.WNOHANG, nil) // orphans are ours
		return syscall.Kill(-keepers[0], 0) == syscall.ESRCH
	})
	left := func() int {
		t.Helper()
		list, err := filepath.Glob(filepath.Join(j.dir, ".checkpoint-*"))
		if err != nil {
			t.Fatal(err)
		}
		return len(list)
	}
	if n := left(); n != 1 {
		t.Fatalf("%d directories are left", n)
	}
	used := filepath.Join(j.dir, ".checkpoint-used")
	if err := os.Mkdir(used, 0o700); err != nil {
		t.Fatal(err)
	}
	lock, err := os.Create(filepath.Join(used, "lock"))
	if err == nil {
		defer lock.Close()
		err = unix.Flock(int(lock.Fd()), unix.LOCK_SH)
	}
	if err != nil {
		t.Fatal(err)
	}
	x := New(records, nil)
	x.Recover(t.Context(), &fakeLocks{})
	_ = x.Close() // which waits for it
	if _, err := os.Stat(used); err != nil || left() != 1 {
		t.Errorf("%d directories are left, and of the one in use: %v", left(), err)
	}
	if again := noted(records); len(again) != 0 {
		t.Errorf("there are records still: %q", again)
	}
}

// TestAnothersFenceFile has a job say that the file of another lock is its own.
func TestAnothersFenceFile(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("it takes root to make the file of a fence")
	}
	other := fencefile.Path(lockName + "-other")
	if err := fencefile.Replace(other, 5); err != nil {
		t.Fatal(err)
	}
	defer os.Remove(other)
	j := count(t, syscall.SIGKILL, fencefile.Variable+"="+other)
	x := New("", nil)
	defer x.Close()
	p, err := x.Prepare(t.Context(), 1, ActionRestart, mustJSON(RestartSpec{File: j.file, Trust: true}), &restarted{fakeLocks: fakeLocks{id: j.id}})
	if err == nil {
		_, err = p.Freeze(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
	j.goesOn()
	if text, err := os.ReadFile(other); err != nil || string(text) != fmt.Sprintf("%20d\n", 5) {
		t.Errorf("the fence of another lock is %q, %v", text, err)
	}
}

// TestFenceFile saves no job while it has locked the file of its fence, and restarts it with
// that open where there is none.
func TestFenceFile(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("it takes root to make the file of a fence")
	}
	path := fencefile.Path(lockName)
	if err := fencefile.Place(path); err != nil {
		t.Fatal(err)
	}
	defer os.Remove(path)
	j := count(t, 0, fencefile.Variable+"="+path)
	x := New("", nil)
	defer x.Close()
	save := func(limit time.Duration) error {
		p, err := x.Prepare(t.Context(), 1, ActionCheckpoint, mustJSON(CheckpointSpec{PID: j.pids[0], File: j.file + ".more", After: "kill"}), &fakeLocks{})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), limit)
		defer cancel()
		_, err = p.Freeze(ctx)
		return err
	}
	locked, err := os.Open(path)
	if err == nil {
		err = unix.Flock(int(locked.Fd()), unix.LOCK_EX)
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := save(time.Second); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatal("saved while it must not be: ", err)
	}
	j.goesOn()
	_ = locked.Close()
	late, err := x.Prepare(t.Context(), 3, ActionCheckpoint, mustJSON(CheckpointSpec{PID: j.pids[0], File: j.file + ".late"}), &fakeLocks{})
	if err != nil {
		t.Fatal(err)
	}
	if err := save(time.Minute); err != nil {
		t.Fatal(err)
	}
	j.ended("its checkpoint")
	if _, err := late.Freeze(t.Context()); err == nil || !strings.Contains(err.Error(), "has ended") {
		t.Error("what has ended since it was looked at: ", err)
	}

	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	locks := &restarted{fakeLocks: fakeLocks{id: j.id}}
	p, err := x.Prepare(t.Context(), 2, ActionRestart, mustJSON(RestartSpec{File: j.file, Trust: true}), locks)
	if err == nil {
		_, err = p.Freeze(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
	j.goesOn()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/fd/9", j.pids[0]))
	if err != nil || string(text) != fmt.Sprintf("%20d\n", 8) {
		t.Errorf("the fence of the restarted job: %q, %v", text, err)
	}
	here, e := os.Stat(path)
	open, err := os.Stat(fmt.Sprintf("/proc/%d/fd/9", j.pids[0]))
	if e != nil || err != nil || !os.SameFile(here, open) {
		t.Errorf("what the job has open is another file than others lock: %v, %v", e, err)
	}
}
