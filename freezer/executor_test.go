package freezer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// logbook keeps what an executor logs.
type logbook struct {
	mu    sync.Mutex
	lines []string
}

func (l *logbook) log(text string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lines = append(l.lines, fmt.Sprintln(append([]any{text}, args...)...))
}

func (l *logbook) has(text string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Contains(strings.Join(l.lines, ""), text)
}

// newExecutor starts one that may do everything, and ends with the test.
func newExecutor(tb testing.TB, change func(*ExecutorConfig)) (*Executor, *logbook) {
	tb.Helper()
	var l logbook
	c := ExecutorConfig{Procs: true, FS: true, Log: l.log}
	if change != nil {
		change(&c)
	}
	x, err := NewExecutor(c)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := x.Close(); err != nil {
			tb.Error(err)
		}
	})
	return x, &l
}

func fsSpec(points ...string) string {
	return string(must(json.Marshal(map[string][]string{"mounts": points})))
}

func treeSpec(pid int) string {
	return fmt.Sprintf(`{"targets":[{"kind":"tree","pids":[%d]}]}`, pid)
}

// ordered prepares and freezes, or fails the test.
func ordered(tb testing.TB, x *Executor, action, spec string, timeout time.Duration) (*Prepared, string) {
	tb.Helper()
	p, err := x.Prepare(tb.Context(), 7, action, []byte(spec), timeout, 0)
	if err != nil {
		tb.Fatalf("prepare %s: %v", spec, err)
	}
	text, err := p.Freeze(tb.Context())
	if err != nil {
		tb.Fatalf("freeze %s: %v", spec, err)
	}
	return p, text
}

// Whatever can be refused is refused before anything is frozen, and no guard stays.
func TestExecutorRefuses(t *testing.T) {
	needIsolation(t)
	point, mine, held, byOthers := newFS(t, "ext4"), newFS(t, "ext4"), newFS(t, "ext4"), newFS(t, "xfs")
	memory := t.TempDir()
	if err := unix.Mount("tmpfs", memory, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(memory, 0) })
	log, err := os.Create(filepath.Join(mine, "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	if _, err := FreezeFS(t.Context(), held, time.Minute); err != nil {
		t.Fatal(err)
	}
	f, err := openFS(must(readMounts()), byOthers)
	if err != nil {
		t.Fatal(err)
	}
	defer f.close()
	if err := f.ioctl(fifreeze); err != nil {
		t.Fatal(err)
	}
	x, _ := newExecutor(t, func(c *ExecutorConfig) { c.Protect = []string{"/run"} })
	onlyFS, _ := newExecutor(t, func(c *ExecutorConfig) { c.Procs = false })
	onlyProcs, _ := newExecutor(t, func(c *ExecutorConfig) { c.FS = false })
	others := len(guards(t))
	for _, c := range []struct {
		x      *Executor
		action string
		spec   string
		want   error
	}{
		{onlyFS, ActionFreeze, treeSpec(os.Getpid()), ErrOff},
		{onlyProcs, ActionFSFreeze, fsSpec(point), ErrOff},
		{x, "melt", `{}`, ErrOrder},
		{x, ActionFreeze, ``, ErrOrder},
		{x, ActionFreeze, `{}`, ErrOrder},
		{x, ActionFreeze, `{"targets":[{"kind":"machine"}],"more":1}`, ErrOrder},
		{x, ActionFreeze, `{"targets":[{"kind":"machine","more":1}]}`, ErrOrder},
		{x, ActionFreeze, `{"targets":[{"kind":"machine"}]} {}`, ErrOrder},
		{x, ActionFreeze, `{"targets":[{"kind":"machine"}],"patience_ms":-1}`, ErrOrder},
		{x, ActionFreeze, `{"targets":[{"kind":"filesystem","path":"` + point + `"}]}`, ErrOrder},
		{x, ActionFreeze, treeSpec(4_000_000), ErrNoTarget},
		{x, ActionFreeze, `{"targets":[{"kind":"cgroup","path":"/run"}]}`, ErrNoTarget},
		{x, ActionFreeze, fmt.Sprintf(`{"targets":[{"kind":"processes","pids":[%d]}]}`, os.Getpid()), ErrSelf},
		{x, ActionFSFreeze, `{"mounts":[]}`, ErrOrder},
		{x, ActionFSFreeze, fsSpec("relative"), ErrOrder},
		{x, ActionFSFreeze, `{"mounts":["` + strings.Repeat("/a", maxSpec) + `"]}`, ErrOrder},
		{x, ActionFSFreeze, fsSpec(point, point+"/lost+found"), ErrNotMounted},
		{x, ActionFSFreeze, fsSpec(point, memory), ErrNotSupported},
		{x, ActionFSFreeze, fsSpec(point, "/"), ErrProtected},
		{x, ActionFSFreeze, fsSpec(point, mine), ErrProtected}, // we write to it
		{x, ActionFSFreeze, fsSpec(point, held), ErrAlreadyFrozen},
		{x, ActionFSFreeze, fsSpec(point, byOthers), ErrAlreadyFrozen},
	} {
		p, err := c.x.Prepare(t.Context(), 1, c.action, []byte(c.spec), time.Minute, 0)
		if !errors.Is(err, c.want) {
			t.Errorf("%s %.60s: %v, want %v", c.action, c.spec, err, c.want)
		}
		if err == nil {
			_ = p.Thaw()
		} else if strings.Contains(err.Error(), "\n") {
			t.Errorf("%s %.60s: not one line: %v", c.action, c.spec, err)
		}
		await(t, "the end of the guard", func() bool { return len(guards(t)) == others })
	}
	if frozenFS(t, point) {
		t.Error("something was frozen")
	}
	if _, err := NewExecutor(ExecutorConfig{FS: true, Dir: "/etc"}); err == nil {
		t.Error("a directory for journals on a disk")
	}
}

func TestExecutorOff(t *testing.T) {
	x, err := NewExecutor(ExecutorConfig{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := x.Prepare(t.Context(), 1, ActionFreeze, nil, 0, 0); !errors.Is(err, ErrOff) || !strings.Contains(err.Error(), "--executors procs") {
		t.Error(err)
	}
	if err := x.Close(); err != nil {
		t.Error(err)
	}
}

// However a freeze ends, it is known why.
func TestExecutorEnds(t *testing.T) {
	needIsolation(t)
	point := newFS(t, "ext4")
	v := victims(t)
	x, _ := newExecutor(t, nil)
	for _, c := range []struct {
		name         string
		action, spec string
		timeout      time.Duration
		text         string
		end          func(*Prepared)
		cause        string
		err          error
	}{
		{
			"thaw", ActionFreeze, treeSpec(v.pid()), time.Minute, "4 processes",
			func(p *Prepared) { _ = p.Thaw() },
			CauseAsked, nil,
		},
		{
			"thaw of a file system", ActionFSFreeze, fsSpec(point), time.Minute, "file system " + point,
			func(p *Prepared) { _ = p.Thaw() },
			CauseAsked, nil,
		},
		{
			"deadline", ActionFreeze, treeSpec(v.pid()), 2 * time.Second, "4 processes",
			func(*Prepared) {},
			CauseDeadline, ErrDeadline,
		},
		{
			"guard killed", ActionFSFreeze, fsSpec(point), -1, "file system " + point,
			func(p *Prepared) { _ = syscall.Kill(must(p.guard.State()).Guard, syscall.SIGKILL) },
			CauseGuard, ErrGuardLost,
		},
		{
			"guard terminated", ActionFreeze, treeSpec(v.pid()), -1, "4 processes",
			func(p *Prepared) { _ = syscall.Kill(must(p.guard.State()).Guard, syscall.SIGTERM) },
			CauseGuard, ErrThawed,
		},
		{
			"thawfs", ActionFSFreeze, fsSpec(point), -1, "file system " + point,
			func(*Prepared) {
				if err := ThawFS(context.Background(), point); err != nil {
					t.Error(err)
				}
			},
			CauseLocal, ErrThawed,
		},
		{
			"thawed by others before", ActionFSFreeze, fsSpec(point), -1, "file system " + point,
			func(p *Prepared) {
				command(t, "fsfreeze", "-u", point)
				_ = p.Thaw()
			},
			CauseLocal, ErrBroken,
		},
		{
			"continued by others", ActionFreeze, treeSpec(v.pid()), -1, "4 processes",
			func(p *Prepared) {
				_ = syscall.Kill(v.pid(), syscall.SIGCONT)
				_ = p.Thaw()
			},
			CauseLocal, ErrBroken,
		},
		{
			"close", ActionFSFreeze, fsSpec(point), -1, "file system " + point,
			func(*Prepared) { _ = x.Close() },
			CauseAsked, nil,
		},
	} {
		p, text := ordered(t, x, c.action, c.spec, c.timeout)
		if text != c.text {
			t.Errorf("%s: %q is frozen, want %q", c.name, text, c.text)
		}
		c.end(p)
		<-p.Done()
		if stopped(t) > 0 || frozenFS(t, point) {
			t.Fatalf("%s: something is left frozen", c.name)
		}
		if p.Cause() != c.cause || !errors.Is(p.Err(), c.err) {
			t.Errorf("%s: %q, %v; want %q, %v", c.name, p.Cause(), p.Err(), c.cause, c.err)
		}
		if err := p.Thaw(); err != nil {
			t.Errorf("%s: thaw again: %v", c.name, err)
		}
	}
	if _, err := x.Prepare(t.Context(), 9, ActionFSFreeze, []byte(fsSpec(point)), 0, 0); !errors.Is(err, errExecutorClosed) {
		t.Error("after the end:", err)
	}
	cleanRun(t)
}

// What cannot be thawed is not said to be: it is tried until it can be.
func TestExecutorInsists(t *testing.T) {
	needIsolation(t)
	v := victims(t)
	x, l := newExecutor(t, nil)
	p, _ := ordered(t, x, ActionFreeze, treeSpec(v.pid()), -1)
	// Journals that others could have written are not trusted.
	if err := os.Chmod(Dir(), 0o755); err != nil {
		t.Fatal(err)
	}
	_ = syscall.Kill(must(p.guard.State()).Guard, syscall.SIGKILL)
	await(t, "a line in the log", func() bool { return l.has("something is still frozen") })
	if err := p.Thaw(); !errors.Is(err, ErrGuardLost) || stopped(t) != 4 {
		t.Errorf("%v, and %d processes are stopped", err, stopped(t))
	}
	select {
	case <-p.Done():
		t.Error("it is said to be thawed")
	default:
	}
	if err := os.Chmod(Dir(), 0o700); err != nil {
		t.Fatal(err)
	}
	<-p.Done()
	if err := p.Thaw(); err != nil || stopped(t) > 0 || p.Cause() != CauseGuard {
		t.Errorf("%v, %q, and %d processes are stopped", err, p.Cause(), stopped(t))
	}
}

// A guard that never ends is not waited for, and what it holds is named. It thaws when it
// can.
func TestExecutorLeavesWhatHangs(t *testing.T) {
	needIsolation(t)
	v := victims(t)
	x, _ := newExecutor(t, nil)
	p, _ := ordered(t, x, ActionFreeze, treeSpec(v.pid()), -1)
	dir := newCgroup(t, must(p.guard.State()).Guard)
	set := func(text string) {
		if err := os.WriteFile(dir+"/cgroup.freeze", []byte(text), 0); err != nil {
			t.Fatal(err)
		}
	}
	set("1")
	await(t, "the guard to hang", func() bool { return cgroupFrozen(t, dir) })
	closed := make(chan error, 1)
	go func() { closed <- x.Close() }()
	select {
	case err := <-closed:
		if !errors.Is(err, ErrNotThawed) || !strings.Contains(fmt.Sprint(err), fmt.Sprintf("order 7 (the tree of %d)", v.pid())) {
			t.Errorf("the end: %v", err)
		}
	case <-time.After(10 * closePatience):
		t.Error("there is no end")
	}
	if err := p.Err(); !errors.Is(err, ErrNotThawed) || p.Cause() != CauseFailed || !errors.Is(p.Thaw(), ErrNotThawed) {
		t.Errorf("the order: %v, %q", err, p.Cause())
	}
	if n := stopped(t); n != 4 {
		t.Errorf("%d processes are stopped", n)
	}
	set("0")
	awaitThaw(t)
	cleanRun(t)
	if err := x.Close(); err != nil {
		t.Error(err)
	}
}

// What the guards of a host lack is said once, not for each order.
func TestExecutorWarnsOnce(t *testing.T) {
	needIsolation(t)
	w := act(t, fmt.Sprintf("weak 3 %s", treeSpec(victims(t).pid())))
	said := map[string]int{}
	for line := w.line(t); line != "over"; line = w.line(t) {
		said[line]++
	}
	if said["the guard may have to wait for a processor: operation not permitted"] != 1 {
		t.Errorf("lines, and how often they came: %v", said)
	}
}

// What is prepared is not frozen, and can be given up.
func TestExecutorPrepares(t *testing.T) {
	needIsolation(t)
	point := newFS(t, "xfs")
	v := victims(t)
	x, _ := newExecutor(t, nil)
	for _, spec := range []struct{ action, text string }{
		{ActionFSFreeze, fsSpec(point)},
		{ActionFreeze, treeSpec(v.pid())},
	} {
		p, err := x.Prepare(t.Context(), 1, spec.action, []byte(spec.text), 2*time.Second, 0)
		if err != nil {
			t.Fatal(err)
		}
		if all, err := List(""); err != nil || len(all) > 0 {
			t.Errorf("%+v is held, %v", all, err)
		}
		if frozenFS(t, point) || stopped(t) > 0 || p.Cause() != "" {
			t.Error("frozen, or over")
		}
		// Others may freeze the same meanwhile; then it is refused after all.
		other, _ := ordered(t, x, spec.action, spec.text, time.Minute)
		if _, err := p.Freeze(t.Context()); !errors.Is(err, ErrAlreadyFrozen) && !errors.Is(err, ErrHeld) {
			t.Errorf("%s: %v", spec.action, err)
		}
		<-p.Done()
		if err := errors.Join(p.Thaw(), other.Thaw()); err != nil {
			t.Error(err)
		}
		p, err = x.Prepare(t.Context(), 2, spec.action, []byte(spec.text), 0, 0)
		if err != nil {
			t.Fatal(err)
		}
		if err := p.Thaw(); err != nil || p.Cause() != CauseAsked || p.Err() != nil {
			t.Errorf("given up: %v, %q, %v", err, p.Cause(), p.Err())
		}
		if _, err := p.Freeze(t.Context()); err == nil {
			t.Error("frozen after that")
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := x.Prepare(ctx, 3, spec.action, []byte(spec.text), 0, 0); !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	}
	await(t, "the end of all guards", func() bool { return len(guards(t)) == 0 })
	cleanRun(t)
}

// A process that has got the number of one that was named is not frozen for it.
func TestExecutorKnowsWhoWasNamed(t *testing.T) {
	needIsolation(t)
	v := act(t, "sleepers 0")
	x, _ := newExecutor(t, nil)
	p, err := x.Prepare(t.Context(), 1, ActionFreeze, []byte(treeSpec(v.pid())), 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	v.kill()
	var heir *actor
	await(t, "a process of the same number", func() bool {
		if err := os.WriteFile("/proc/sys/kernel/ns_last_pid", []byte(strconv.Itoa(v.pid()-1)), 0); err != nil {
			t.Fatal(err)
		}
		heir = act(t, "sleepers 0")
		return heir.pid() == v.pid()
	})
	if _, err := p.Freeze(t.Context()); !errors.Is(err, ErrNoTarget) {
		t.Errorf("frozen for the one before: %v", err)
	}
	if stateOf(heir.pid()) == "T" {
		t.Error("it is stopped")
	}
}

// Of a machine run on who has to thaw it, whoever reads its log, those that are
// excepted, and other guards, also those that hold nothing yet.
func TestExecutorMachine(t *testing.T) {
	needIsolation(t)
	v, excepted := act(t, "sleepers 2"), act(t, "sleepers 0")
	pipe := filepath.Join(t.TempDir(), "pipe")
	if err := unix.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	reader := begin(t, exec.Command("sh", "-c", "echo ready; exec cat <"+pipe))
	x, _ := newExecutor(t, func(c *ExecutorConfig) { c.Except = func() []int { return []int{excepted.pid()} } })
	waiting, err := x.Prepare(t.Context(), 1, ActionFreeze, []byte(treeSpec(v.pid())), 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	machine := `{"targets":[{"kind":"machine"}]}`
	p, text := ordered(t, x, ActionFreeze, machine, time.Minute)
	for _, pid := range guards(t) {
		if stateOf(pid) == "T" {
			t.Errorf("guard %d is stopped", pid)
		}
	}
	if text != "4 processes" || stateOf(excepted.pid()) == "T" || stateOf(reader.pid()) != "T" {
		t.Errorf("%q are stopped; the exception is in state %s", text, stateOf(excepted.pid()))
	}
	if err := p.Thaw(); err != nil {
		t.Fatal(err)
	}
	if err := waiting.Thaw(); err != nil {
		t.Fatal(err)
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "socket"), os.NewFile(uintptr(pair[1]), "socket")
	journal := exec.Command("sh", "-c", "echo ready; exec cat <&3")
	journal.ExtraFiles = []*os.File{theirs}
	second := begin(t, journal)
	_ = theirs.Close()
	for _, c := range []struct {
		reader *actor
		stderr string
	}{{reader, pipe}, {second, "&3"}} {
		cmd := exec.Command("sh", "-c", fmt.Sprintf("exec /proc/%d/exe 2>%s", os.Getpid(), c.stderr))
		cmd.Env = append(os.Environ(), roleVariable+"=executor freeze "+machine)
		cmd.ExtraFiles = []*os.File{ours}
		e := begin(t, cmd)
		if line := e.line(t); line != "frozen" {
			t.Fatal(line)
		}
		if stateOf(c.reader.pid()) == "T" || stateOf(v.pid()) != "T" {
			t.Errorf("who reads %s is in state %s, and another in %s", c.stderr, stateOf(c.reader.pid()), stateOf(v.pid()))
		}
		e.kill()
		awaitThaw(t)
	}
}
