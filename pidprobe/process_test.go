package pidprobe

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestMain lets the test binary be other programs.
func TestMain(m *testing.M) {
	switch os.Getenv("PIDPROBE_TEST_MAIN") {
	case "":
		os.Exit(m.Run())
	case "headless":
		headless()
	case "reexec":
		reexec()
	case "server":
		serveForBenchmark()
	case "reuse":
		reuse()
	case "watch":
		watchForTest()
	}
	os.Exit(0)
}

func init() { runtime.LockOSThread() } // main keeps the first thread, for headless

// headless ends its first thread, and lives on in another until its input ends.
func headless() {
	ready := make(chan struct{})
	go func() {
		runtime.LockOSThread()
		close(ready)
		var b [1]byte
		for {
			n, _, _ := syscall.RawSyscall(syscall.SYS_READ, 0, uintptr(noescape(&b)), 1)
			if n == 0 {
				syscall.RawSyscall(syscall.SYS_EXIT_GROUP, 0, 0, 0)
			}
		}
	}()
	<-ready
	fmt.Println("ready")
	syscall.RawSyscall(syscall.SYS_EXIT, 0, 0, 0)
}

// reexec replaces itself from a thread other than the first, some times.
func reexec() {
	left := len(os.Getenv("PIDPROBE_TEST_LEFT"))
	if left == 0 {
		fmt.Println("ready")
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}
	os.Setenv("PIDPROBE_TEST_LEFT", strings.Repeat("x", left-1))
	go func() {
		runtime.LockOSThread()
		err := syscall.Exec("/proc/self/exe", os.Args[:1], os.Environ())
		fmt.Println("exec:", err)
		os.Exit(1)
	}()
	select {}
}

// child is a process that ends when its input does.
type child struct {
	t     *testing.T
	cmd   *exec.Cmd
	stdin io.WriteCloser
	out   *bufio.Reader
}

func start(t *testing.T, name string, args ...string) *child {
	t.Helper()
	return startCmd(t, exec.Command(name, args...))
}

func startSelf(t *testing.T, main string, env ...string) *child {
	t.Helper()
	return startCmd(t, selfCommand(main, env...))
}

func selfCommand(main string, env ...string) *exec.Cmd {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(append(os.Environ(), "PIDPROBE_TEST_MAIN="+main), env...)
	return cmd
}

func startCmd(t *testing.T, cmd *exec.Cmd) *child {
	t.Helper()
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	c := &child{t, cmd, stdin, bufio.NewReader(out)}
	t.Cleanup(func() {
		if c.cmd.ProcessState == nil {
			_ = cmd.Process.Kill()
			c.reap()
		}
	})
	return c
}

func (c *child) pid() int32 { return int32(c.cmd.Process.Pid) }
func (c *child) reap()      { _ = c.cmd.Wait() }

func (c *child) line() string {
	c.t.Helper()
	s, err := c.out.ReadString('\n')
	if err != nil {
		c.t.Fatalf("read from the child: %v", err)
	}
	return strings.TrimSuffix(s, "\n")
}

// zombie ends the child and waits until it is one, unreaped.
func (c *child) zombie() {
	c.t.Helper()
	c.stdin.Close()
	var info unix.Siginfo
	if err := unix.Waitid(unix.P_PID, int(c.pid()), &info, unix.WEXITED|unix.WNOWAIT, nil); err != nil {
		c.t.Fatal(err)
	}
}

func (c *child) lookup() Process {
	c.t.Helper()
	p, err := Lookup(c.pid())
	if err != nil {
		c.t.Fatal(err)
	}
	return p
}

func TestCheck(t *testing.T) {
	c := start(t, "cat")
	p := c.lookup()
	if p.Start == 0 || len(p.Boot) != 36 {
		t.Fatalf("identified as %+v", p)
	}
	bare := Process{PID: p.PID}
	reused := p
	reused.Start--
	rebooted := p
	rebooted.Boot = "00000000-0000-0000-0000-000000000000"
	both := func(when string, p Process, want Verdict) {
		t.Helper()
		if got := Check(p); got != want {
			t.Errorf("%s: %v, want %v", when, got, want)
		}
		if got := checkWithout(p); got != want && p.Boot == bootID() {
			t.Errorf("%s, by kill and /proc: %v, want %v", when, got, want)
		}
	}
	both("it runs", p, Alive)
	both("by number alone", bare, Alive)
	both("its number was another's", reused, Dead)
	both("it ran before the last boot", rebooted, Dead)
	c.zombie()
	both("a zombie", p, Dead)
	both("a zombie by number", bare, Dead)
	c.reap()
	both("reaped", p, Dead)
	both("reaped, by number", bare, Dead)
	both("ourselves", Process{PID: int32(os.Getpid())}, Alive)
	both("init, which may be another user's", Process{PID: 1}, Alive)
	for _, pid := range []int32{0, -1, -1 << 31} {
		if got := Check(Process{PID: pid}); got != Unknown {
			t.Errorf("%d is %v, want unknown", pid, got)
		}
	}
	if _, err := Lookup(c.pid()); !errors.Is(err, ErrDead) {
		t.Errorf("Lookup of the dead: %v", err)
	}
	if _, err := Lookup(0); !errors.Is(err, ErrPID) {
		t.Errorf("Lookup of 0: %v", err)
	}
}

func TestIdentify(t *testing.T) {
	c := start(t, "cat")
	p := c.lookup()
	started := Process{Host: "h", PID: p.PID, Start: 1}
	booted := Process{Host: "h", PID: p.PID, Start: p.Start, Boot: "00000000-0000-0000-0000-000000000000"}
	same := func(when string, p, want Process, bad error) {
		t.Helper()
		if got, err := Identify(p); got != want || !errors.Is(err, bad) || (err == nil) != (bad == nil) {
			t.Errorf("%s: %+v, %v; want %+v, %v", when, got, err, want, bad)
		}
	}
	bare := Process{Host: "h", PID: p.PID}
	same("by number", bare, Process{Host: "h", PID: p.PID, Start: p.Start}, nil)
	same("by number and boot", Process{PID: p.PID, Boot: p.Boot}, p, nil)
	same("with a start time, whatever it is", started, started, nil)
	same("of another boot", booted, booted, ErrDead)
	same("no process", Process{}, Process{}, ErrPID)
	c.zombie()
	same("a zombie", bare, bare, ErrDead)
	c.reap()
	same("reaped", bare, bare, ErrDead)
}

// ps shows it as defunct, but it can act.
func TestProcessWithoutFirstThreadLives(t *testing.T) {
	c := startSelf(t, "headless")
	c.line()
	eventually(t, "the first thread's end", func() bool {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", c.pid()))
		return err == nil && strings.Contains(string(text), ") Z ")
	})
	p := Process{PID: c.pid()}
	if v := Check(p); v != Alive {
		t.Errorf("by pidfd it is %v", v)
	}
	if v := checkWithout(p); v != Alive {
		t.Errorf("by /proc it is %v", v)
	}
	c.zombie()
	if v, w := Check(p), checkWithout(p); v != Dead || w != Dead {
		t.Errorf("after its end it is %v and %v", v, w)
	}
}

// kill(2) takes the number of any thread; a thread is no reason to free a lock.
func TestThreadIsAlive(t *testing.T) {
	c := startSelf(t, "reexec") // any Go program has several
	c.line()
	tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", c.pid()))
	if err != nil || len(tasks) < 2 {
		t.Fatalf("%d threads, %v", len(tasks), err)
	}
	tid, err := ParsePID(tasks[1].Name())
	if err != nil {
		t.Fatal(err)
	}
	if v := Check(Process{PID: tid}); v != Alive {
		t.Errorf("a thread is %v", v)
	}
}

func TestParseStat(t *testing.T) {
	const rest = " 1 1 1 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 %d 0 98765 1 2 3\n"
	line := func(head string, threads int) string { return head + fmt.Sprintf(rest, threads) }
	for _, c := range []struct {
		text string
		want stat
		ok   bool
	}{
		{line("7 (sh) S", 1), stat{start: 98765}, true},
		{line("7 (a b) c) Z (d) R", 3), stat{start: 98765}, true},
		{line("7 () S) Z", 1), stat{start: 98765, dead: true}, true},
		{line("7 (x) Z", 2), stat{start: 98765}, true},
		{line("7 (x) X", 2), stat{start: 98765, dead: true}, true},
		{line("7 (new\nline) T", 1), stat{start: 98765}, true},
		{"", stat{}, false},
		{"7 (sh) S 1 2 3", stat{}, false},
		{strings.Replace(line("7 (sh) S", 1), "98765", "-1", 1), stat{}, false},
	} {
		got, ok := parseStat([]byte(c.text))
		if got != c.want || ok != c.ok {
			t.Errorf("%q: %+v, %v", c.text, got, ok)
		}
	}
}

func FuzzParseStat(f *testing.F) {
	f.Add([]byte("7 (sh) S 1 1 1 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 98765 1 2 3\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if st, ok := parseStat(b); !ok && st != (stat{}) {
			t.Errorf("refused but %+v", st)
		}
	})
}

func TestParsePID(t *testing.T) {
	for text, want := range map[string]int32{
		"1": 1, "007": 7, "2147483647": 1<<31 - 1,
		"0": 0, "-1": 0, "+1": 0, "": 0, "abc": 0, "1.5": 0, "2147483648": 0, " 1": 0, "99999999999999999999": 0,
	} {
		got, err := ParsePID(text)
		if got != want || (err == nil) != (want != 0) {
			t.Errorf("%q: %d, %v", text, got, err)
		}
	}
}

func TestSignal(t *testing.T) {
	c := start(t, "cat")
	p := c.lookup()
	stranger := p
	stranger.Start++
	bare := p
	bare.Start = 0
	for _, x := range []struct {
		p    Process
		want error
	}{{stranger, ErrDead}, {bare, ErrUnsure}, {Process{}, ErrPID}, {Process{PID: -1, Start: 1}, ErrPID}} {
		if err := Signal(x.p, syscall.SIGKILL); !errors.Is(err, x.want) {
			t.Errorf("%+v: %v, want %v", x.p, err, x.want)
		}
	}
	if v := Check(p); v != Alive {
		t.Fatalf("it is %v after signals to others", v)
	}
	if err := Signal(p, syscall.SIGUSR1); err != nil {
		t.Fatal(err)
	}
	var info unix.Siginfo
	if err := unix.Waitid(unix.P_PID, int(p.PID), &info, unix.WEXITED|unix.WNOWAIT, nil); err != nil {
		t.Fatal(err)
	}
	if err := Signal(p, syscall.SIGUSR1); !errors.Is(err, ErrDead) {
		t.Errorf("to a zombie: %v", err)
	}
	c.reap()
	if got := c.cmd.ProcessState.Sys().(syscall.WaitStatus).Signal(); got != syscall.SIGUSR1 {
		t.Errorf("ended by %v", got)
	}
	if err := Signal(p, syscall.SIGUSR1); !errors.Is(err, ErrDead) {
		t.Errorf("to one reaped: %v", err)
	}
}

// eventually waits for a condition that another process brings about.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("%s did not come about", what)
		}
		time.Sleep(time.Millisecond)
	}
}
