package checkpoint

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"
)

// field is a number in the last line of counting, by the word before it.
func (j *job) field(name string) int {
	lines := j.lines()
	words := strings.Fields(lines[len(lines)-1])
	n, _ := strconv.Atoi(words[slices.Index(words, name)+1])
	return n
}

// inOthersSession starts a shell in a session of its own that counts in a child of its
// own, and returns the shell, and the number of the child. When that has ended it goes on.
func inOthersSession(t *testing.T, then string) (*job, int) {
	t.Helper()
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/bin/sh", "-c", `"$0" & wait $!; `+then, program)
	cmd.Env = append(os.Environ(), roleVariable+"=count")
	j := start(t, cmd)
	return j, j.field("pid")
}

func TestSessionsAndGroups(t *testing.T) {
	t.Parallel()
	need(t)
	ourSession, err := unix.Getsid(0)
	if err != nil {
		t.Fatal(err)
	}
	ourGroup := syscall.Getpgrp()
	const old = -1 // 0 is a session or group of another pid namespace
	for _, c := range []struct {
		name             string
		leader           bool // the job is the leader of its session
		groups, sessions bool
		newPIDs          bool
		session, group   int // what they are to be, or old
	}{
		{name: "a leader joins us", leader: true, session: ourSession, group: ourGroup},
		{name: "a leader keeps its group", leader: true, groups: true, session: ourSession, group: old},
		{name: "a leader keeps its session", leader: true, sessions: true, session: old, group: old},
		{name: "a leader keeps both", leader: true, groups: true, sessions: true, session: old, group: old},
		{name: "a leader keeps both in a namespace", leader: true, groups: true, sessions: true, newPIDs: true, session: old, group: old},
		{name: "another joins us", session: ourSession, group: ourGroup},
		{name: "another keeps its group", groups: true, session: ourSession, group: old},
		{name: "another keeps its session", sessions: true, session: old, group: old},
		{name: "another keeps both", groups: true, sessions: true, session: old, group: old},
		{name: "another keeps both in a namespace", groups: true, sessions: true, newPIDs: true, session: old, group: old},
	} {
		t.Run(c.name, func(t *testing.T) {
			var j *job
			pid := 0
			if c.leader {
				j = begin(t, "count")
				pid = j.pid()
			} else {
				j, pid = inOthersSession(t, "exit")
			}
			before := [2]int{j.field("session"), j.field("group")}
			file, _ := j.save(t, func(o *Order) {
				o.Target = Tree(pid)
				if !c.leader {
					o.Signal = 0
				}
			})
			j.kill()
			at := j.number()
			restart(t, Plan{File: file, KeepGroups: c.groups, KeepSessions: c.sessions, NewPIDs: c.newPIDs})
			j.await(t, "it to count on", func() bool { return j.number() > at+1 || j.number() < at })
			want := [2]int{c.session, c.group}
			for i := range want {
				if want[i] == old {
					want[i] = before[i]
				}
			}
			if got := [2]int{j.field("session"), j.field("group")}; got != want {
				t.Errorf("session and group are %d, want %d (before %d)", got, want, before)
			}
			if c.leader && !c.newPIDs && j.field("parent") != os.Getpid() {
				t.Errorf("its parent is %d, and not us, %d", j.field("parent"), os.Getpid())
			}
		})
	}
}

// A session or group whose leader was not saved, and still lives, is in use.
func TestASessionInUse(t *testing.T) {
	t.Parallel()
	need(t)
	j, pid := inOthersSession(t, "exec sleep 1000")
	file, _ := j.save(t, func(o *Order) { o.Target, o.Signal = Tree(pid), 0 })
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	j.await(t, "its number to be free", func() bool { return !exists(pid) })
	for _, c := range []struct {
		groups, sessions bool
		want             string
	}{
		{true, false, fmt.Sprintf(`the process group number %d is in use by "sleep"`, j.pid())},
		{false, true, fmt.Sprintf(`the session number %d is in use by "sleep"`, j.pid())},
	} {
		_, err := Restart(t.Context(), Plan{File: file, KeepGroups: c.groups, KeepSessions: c.sessions})
		if e := (*Error)(nil); !errors.As(err, &e) || e.Class != Temp || e.Errno != syscall.EBUSY || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v", c, err)
		}
	}
}

func TestAPipelineInItsGroup(t *testing.T) {
	t.Parallel()
	need(t)
	j := shell(t, `i=0; while :; do i=$((i+1)); echo $i; sleep 0.02; done | sed -u s/^/x/ | while read l; do echo ${l#x} line; done; exit 3`)
	n := len(tree(j.pid()))
	file, r := j.save(t, func(o *Order) { o.Target = Group(j.pid()) })
	if len(r.Manifest.Processes) < 4 || len(r.Manifest.Processes) > n+1 {
		t.Errorf("of %d processes %d are in the file", n, len(r.Manifest.Processes))
	}
	restart(t, Plan{File: file, KeepGroups: true})
	j.goesOn(t)
	lines := j.lines()
	for i, line := range lines {
		if line != fmt.Sprintf("%d line", i+1) {
			t.Fatalf("line %d is %q: nothing may be lost in the pipes", i+1, line)
		}
	}
	if pgid, err := unix.Getpgid(r.Manifest.Processes[1].PID); err != nil || pgid != j.pid() {
		t.Errorf("the group of a child is %d, %v", pgid, err)
	}
}

func TestManyThreads(t *testing.T) {
	t.Parallel()
	need(t)
	j := begin(t, "threads")
	file, r := j.save(t)
	if len(r.Manifest.Processes[0].Threads) < 9 {
		t.Errorf("the threads in the manifest are %d", r.Manifest.Processes[0].Threads)
	}
	restart(t, Plan{File: file})
	seen, from := map[string]bool{}, len(j.lines())
	j.await(t, "all ten threads to count", func() bool {
		for _, line := range j.lines()[from:] {
			_, thread, _ := strings.Cut(line, "thread ")
			seen[thread] = true
		}
		return len(seen) >= 10
	})
}

func TestTargetsThatAreNoTree(t *testing.T) {
	t.Parallel()
	need(t)
	j := shell(t, `setsid sleep 1000 & echo ready; sleep 1000; :`)
	j.await(t, "a child in another session", func() bool {
		for _, pid := range tree(j.pid()) {
			if p, err := readProcess(pid); err == nil && p.session != j.pid() {
				return true
			}
		}
		return false
	})
	for _, c := range []struct {
		target Target
		want   string
	}{
		{Single(j.pid()), "its whole tree would have to be checkpointed"},
		{Session(j.pid()), "is not of the session"},
		{Tree(os.Getpid()), "is what asks for the checkpoint"},
		{Tree(1), "1 is no process that could be checkpointed"},
		{Group(4194303), "there is no process in group 4194303"},
		{Tree(4194303), "there is no process 4194303"},
	} {
		_, err := Checkpoint(t.Context(), Order{Target: c.target, File: j.path("no.ckpt"), CRIU: need(t)})
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v: %v, want %q", c.target, err, c.want)
		}
	}
	noBoxes(t, j.dir)
}

// What is in another pid or mount namespace is refused: CRIU saves some of that, but then nothing
// restores it.
func TestWhatIsElsewhere(t *testing.T) {
	t.Parallel()
	c := need(t)
	elsewhere := func(flags uintptr, name string, args ...string) *job {
		cmd := exec.Command(name, args...)
		cmd.Env = append(os.Environ(), roleVariable+"=count", "GORACE=atexit_sleep_ms=0")
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Cloneflags: flags}
		return start(t, cmd)
	}
	j := elsewhere(syscall.CLONE_NEWNS, "/proc/self/exe")
	k := elsewhere(syscall.CLONE_NEWPID|syscall.CLONE_NEWNS, "/proc/self/exe")
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	l := elsewhere(0, "/bin/sh", "-c", `unshare -m "$0"; :`, program)
	n := elsewhere(0, "/bin/sh", "-c", `unshare -n "$0"; :`, program)
	u := elsewhere(0, "/bin/sh", "-c", `unshare -u "$0"; :`, program)
	m := begin(t, "count")
	file, _ := m.save(t)
	r := restart(t, Plan{File: file, NewPIDs: true})
	m.goesOn(t)
	inside := 0
	for _, pid := range tree(r.PID()) {
		if p, err := readProcess(pid); err == nil && p.parent == r.PID() && p.lives() {
			inside = pid
		}
	}
	for _, c2 := range []struct {
		name string
		j    *job
		pid  int
		want string
	}{
		{"mounts", j, j.pid(), "a mount namespace that is not ours"},
		{"numbers", k, k.pid(), "a pid namespace that is not ours"},
		{"a child", l, l.pid(), "a mount namespace that is not ours"},
		{"a child's network", n, n.pid(), "a network namespace that is not that of the eldest process"},
		{"a child's host name", u, u.pid(), "one of its processes is in a namespace that the eldest is not in"},
		{"--no-restore-pid", m, inside, "or of cr_restart --no-restore-pid"},
		{"its stage", m, r.PID(), "or of cr_restart --no-restore-pid"},
	} {
		_, err := Checkpoint(t.Context(), Order{Target: Tree(c2.pid), File: c2.j.path("x"), Signal: syscall.SIGKILL, CRIU: c})
		if e := (*Error)(nil); !errors.As(err, &e) || e.Class != Env || e.Errno != syscall.EOPNOTSUPP || !strings.Contains(err.Error(), c2.want) {
			t.Errorf("%s: %v, want %q", c2.name, err, c2.want)
		}
		noBoxes(t, c2.j.dir)
		c2.j.goesOn(t)
	}
}

// onTerminal starts a role on a pseudo-terminal, and returns its other end.
func onTerminal(t *testing.T) (*job, *os.File) {
	t.Helper()
	master, slave, err := pty.Open()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = master.Close() })
	defer slave.Close()
	j := &job{cmd: exec.Command("/bin/sh", "-c", `exec 3>>out; i=0; while read word; do i=$((i+1)); echo $i $word; echo $i $word >&3; done`), dir: t.TempDir()}
	j.cmd.Dir, j.cmd.Stdin, j.cmd.Stdout, j.cmd.Stderr = j.dir, slave, slave, slave
	j.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := j.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(j.kill)
	say(t, master, "one")
	j.await(t, "an answer", func() bool { return j.number() == 1 })
	return j, master
}

func say(t *testing.T, master *os.File, word string) {
	t.Helper()
	if _, err := fmt.Fprintln(master, word); err != nil {
		t.Fatal(err)
	}
}

func TestAJobOnATerminalGetsOurs(t *testing.T) {
	t.Parallel()
	need(t)
	j, _ := onTerminal(t)
	file, r := j.save(t)
	if len(r.Manifest.Terminals) != 1 || r.Manifest.Terminals[0].Session != j.pid() {
		t.Errorf("the terminals in the manifest are %+v", r.Manifest.Terminals)
	}
	master, slave, err := pty.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer master.Close()
	cmd := exec.Command("/proc/self/exe", file)
	cmd.Env = append(os.Environ(), roleVariable+"=restart")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	_ = slave.Close()
	t.Cleanup(func() { (&job{cmd: cmd}).kill() })
	say(t, master, "two")
	j.await(t, "an answer to what the new terminal says", func() bool { return j.number() == 2 })
	if fg, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPGRP); err != nil || fg != cmd.Process.Pid {
		t.Errorf("the group in the foreground is %d, %v", fg, err)
	}

	var e *Error
	if _, err := Restart(t.Context(), Plan{File: file}); !errors.As(err, &e) || e.Class != Temp && e.Errno != syscall.ENOTTY {
		t.Errorf("without a terminal: %v", err)
	}
}
