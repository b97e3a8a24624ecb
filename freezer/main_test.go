package freezer

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Nearly all tests here freeze whatever processes there are. So the test program runs
// itself again as the second process of a pid namespace of its own, which ends with
// all that is in it when the first program does.
const (
	stageVariable = "FREEZER_TEST_STAGE" // init, or the inode of the namespace outside
	roleVariable  = "FREEZER_TEST_ROLE"
)

func TestMain(m *testing.M) {
	AtGuard()
	if role := os.Getenv(roleVariable); role != "" {
		words := strings.Fields(role)
		if play := roles[words[0]]; play != nil {
			play(words[1:])
		}
		fmt.Println("no such role:", role)
		os.Exit(1)
	}
	stage, outside, _ := strings.Cut(os.Getenv(stageVariable), " ")
	fuzzing := slices.ContainsFunc(os.Args, func(a string) bool { return strings.HasPrefix(a, "-test.fuzz") })
	switch {
	case stage == "init":
		os.Exit(initMain(outside))
	case stage == "inside":
		if outside == strconv.FormatUint(pidNamespace(), 10) || os.Getppid() != 1 {
			fmt.Println("not in a pid namespace of our own")
			os.Exit(1)
		}
		isolated = true
		unix.CloseOnExec(rescueSocket)
		os.Exit(m.Run())
	case os.Geteuid() != 0 || fuzzing:
		os.Exit(m.Run())
	}
	os.Exit(enterNamespace())
}

// isolated says that every process but init was started by a test.
var isolated bool

func enterNamespace() int {
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=init %d", stageVariable, pidNamespace()))
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	rescue, err := startRescuer()
	if err != nil {
		fmt.Println("start a rescuer:", err)
		return 1
	}
	cmd.ExtraFiles = []*os.File{rescue}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWPID | syscall.CLONE_NEWNS,
		Pdeathsig:  syscall.SIGKILL,
	}
	err = cmd.Start()
	_ = rescue.Close() // its end is that of the tests
	if err == nil {
		err = cmd.Wait()
	}
	if err != nil && cmd.ProcessState == nil {
		fmt.Println("enter a pid namespace:", err)
		return 1
	}
	return cmd.ProcessState.ExitCode()
}

// initMain is the first process of the namespace.
func initMain(outside string) int {
	if os.Getpid() != 1 {
		fmt.Println("not the first process of a pid namespace")
		return 1
	}
	err := errors.Join(
		os.Setenv(stageVariable, "inside "+outside),
		os.Setenv(dirVariable, "/run/freezer"),
		os.Setenv("GORACE", "atexit_sleep_ms=0"), // of each of hundreds of processes
		unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""),
		unix.Mount("proc", "/proc", "proc", 0, ""),
		unix.Mount("tmpfs", "/run", "tmpfs", 0, "mode=755"),
	)
	if err != nil {
		fmt.Println("prepare a namespace:", err)
		return 1
	}
	pid, err := syscall.ForkExec("/proc/self/exe", os.Args, &syscall.ProcAttr{
		Env:   os.Environ(),
		Files: []uintptr{0, 1, 2, rescueSocket},
	})
	if err != nil {
		fmt.Println("start the tests:", err)
		return 1
	}
	_ = unix.Close(rescueSocket)
	for {
		var status syscall.WaitStatus
		got, err := syscall.Wait4(-1, &status, 0, nil)
		switch {
		case err == syscall.EINTR:
		case err != nil:
			return 1
		case got == pid && status.Exited():
			return status.ExitStatus()
		case got == pid:
			return 1
		}
	}
}

// needIsolation skips a test that nobody but root can run.
func needIsolation(tb testing.TB) {
	tb.Helper()
	if !isolated {
		tb.Skip("it freezes processes, and needs root for a pid namespace of its own")
	}
	tb.Cleanup(func() { killAll(tb) })
}

// killAll ends all processes of the namespace but init and this one.
func killAll(tb testing.TB) {
	tb.Helper()
	if !isolated {
		panic("never outside")
	}
	await(tb, "the end of all processes", func() bool {
		left := 0
		for _, pid := range allPIDs(tb) {
			if pid != 1 && pid != os.Getpid() && stateOf(pid) != "Z" {
				left++
				_ = syscall.Kill(pid, syscall.SIGKILL)
			}
		}
		return left == 0
	})
	left, _ := filepath.Glob("/run/freezer/*")
	for _, f := range left {
		_ = os.Remove(f)
	}
}

func allPIDs(tb testing.TB) (pids []int) {
	tb.Helper()
	names, err := os.ReadDir("/proc")
	if err != nil {
		tb.Fatal(err)
	}
	for _, n := range names {
		if pid, err := strconv.Atoi(n.Name()); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}

// stateOf is the state of a process that ps would show: T only if all its threads are
// stopped, and empty when there is none.
func stateOf(pid int) string {
	fields := func(path string) []string {
		text, err := os.ReadFile(path)
		if err != nil {
			return nil
		}
		return strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
	}
	whole := fields(fmt.Sprintf("/proc/%d/stat", pid))
	if len(whole) > 17 && whole[17] == "1" { // thread
		return whole[0]
	}
	states := map[string]bool{}
	tasks, _ := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	for _, t := range tasks {
		if f := fields(fmt.Sprintf("/proc/%d/task/%s/stat", pid, t.Name())); len(f) > 0 {
			states[f[0]] = true
		}
	}
	for _, s := range []string{"R", "D", "S", "t", "T", "Z", "X"} {
		if states[s] {
			return s
		}
	}
	return ""
}

// waits says that a thread of a process is in uninterruptible sleep, as who changes a frozen
// file system is. Its other threads, the Go runtime's for one, run or sleep as they please.
func waits(pid int) bool {
	tasks, _ := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	for _, t := range tasks {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/stat", pid, t.Name()))
		if err != nil {
			continue
		}
		if s, err := parseStat(text); err == nil && s.state == 'D' {
			return true
		}
	}
	return false
}

// running lists processes in a state that is neither stopped nor ended, but for
// init, this one and guards.
func running(tb testing.TB) (pids []int) {
	tb.Helper()
	for _, pid := range allPIDs(tb) {
		comm, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
		if pid != 1 && pid != os.Getpid() && strings.Contains("RSDt", stateOf(pid)) && string(comm) != guardName+"\n" {
			pids = append(pids, pid)
		}
	}
	return pids
}

// childOf waits until a process has a child, and returns its number. Whether that is the
// greater one is not said: numbers begin anew.
func childOf(tb testing.TB, parent int) (child int) {
	tb.Helper()
	await(tb, "a child", func() bool {
		for _, pid := range allPIDs(tb) {
			text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
			if err != nil {
				continue
			}
			if s, err := parseStat(text); err == nil && int(s.parent) == parent {
				child = pid
				return true
			}
		}
		return false
	})
	return child
}

// stopped counts the processes that are stopped.
func stopped(tb testing.TB) (n int) {
	tb.Helper()
	for _, pid := range allPIDs(tb) {
		if stateOf(pid) == "T" {
			n++
		}
	}
	return n
}

// await waits for a condition, for as long as a machine may take that has much else to do.
func await(tb testing.TB, what string, is func() bool) {
	tb.Helper()
	for until := time.Now().Add(time.Minute); !is(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(until) {
			tb.Fatalf("waited in vain for %s", what)
		}
	}
}

// actor is a process of this program that plays a role.
type actor struct {
	cmd   *exec.Cmd
	out   *bufio.Reader
	stdin io.WriteCloser
}

func (a *actor) pid() int { return a.cmd.Process.Pid }

// act starts a role and waits until it says that it is ready.
func act(tb testing.TB, role string) *actor {
	tb.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), roleVariable+"="+role)
	return begin(tb, cmd)
}

// begin starts a command and reads its first line, which is to be "ready".
func begin(tb testing.TB, cmd *exec.Cmd) *actor {
	tb.Helper()
	out, err := cmd.StdoutPipe()
	if err != nil {
		tb.Fatal(err)
	}
	in, err := cmd.StdinPipe()
	if err != nil {
		tb.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		tb.Fatal(err)
	}
	a := &actor{cmd: cmd, out: bufio.NewReader(out), stdin: in}
	tb.Cleanup(a.kill)
	if line := a.line(tb); line != "ready" {
		tb.Fatalf("%v said %q", cmd, line)
	}
	return a
}

func (a *actor) line(tb testing.TB) string {
	tb.Helper()
	line, err := a.out.ReadString('\n')
	if err != nil {
		tb.Fatalf("the helper said nothing: %v", err)
	}
	return strings.TrimSpace(line)
}

func (a *actor) kill() {
	_ = a.cmd.Process.Kill()
	_ = a.cmd.Wait()
}

// start starts a guard that is gone at the end of the test.
func start(tb testing.TB) *Guard {
	tb.Helper()
	g, err := Start(context.Background(), "")
	if err != nil {
		tb.Fatal(err)
	}
	return g
}

// freeze freezes, or fails the test.
func freeze(tb testing.TB, o Order) (*Guard, Report) {
	tb.Helper()
	g := start(tb)
	r, err := g.Freeze(context.Background(), o)
	if err != nil {
		tb.Fatalf("freeze: %v, after %d rounds", err, r.Rounds)
	}
	return g, r
}

// thaw thaws, or fails the test.
func thaw(tb testing.TB, g *Guard) {
	tb.Helper()
	if err := g.Thaw(); err != nil {
		tb.Fatalf("thaw: %v", err)
	}
	if left, _ := filepath.Glob("/run/freezer/*"); len(left) > 0 {
		tb.Fatalf("left behind: %v", left)
	}
}

// before calls f with longer and longer times for what it does, until it does not come too
// late for its own: the machine may have much else to do.
func before(tb testing.TB, first time.Duration, f func(time.Duration) error) {
	tb.Helper()
	for timeout := first; ; timeout *= 2 {
		switch err := f(timeout); {
		case err == nil:
			return
		case !errors.Is(err, ErrDeadline) || timeout > 20*time.Second:
			tb.Fatalf("with %v of time: %v", timeout, err)
		}
	}
}

// machine is patient: what has to stop needs a processor for that, and others may be at
// work on the machine.
func machine() Order {
	return Order{Targets: []Target{Machine()}, Timeout: time.Minute, Within: 30 * time.Second}
}
