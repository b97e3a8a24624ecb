package job

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// This test binary is also the program that has a guard, "guarded ID ARGV...", and
// what runs under it, "member NAME [bare] [deaf]".
func init() {
	if len(os.Args) < 3 {
		return
	}
	switch os.Args[1] {
	case "guarded":
		os.Exit(beGuarded(os.Args[2], os.Args[3:]))
	case "member":
		if slices.Contains(os.Args, "deaf") {
			signal.Ignore(syscall.SIGTERM)
		}
		os.Exit(beMember(os.Args[2], slices.Contains(os.Args, "bare")))
	}
}

// beGuarded runs a command with a guard, and does what lines of its standard input
// say. Descriptor 3 is for the command to inherit.
func beGuarded(id string, argv []string) int {
	g, err := StartGuard(id, "a test")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	file := os.NewFile(3, "inherited")
	unix.CloseOnExec(3)
	j, err := Prepare(Options{Argv: argv})
	if err == nil {
		err = g.Watch(j.PID(), file)
	}
	if err == nil {
		err = j.Open([]string{Mark(id)}, file)
	}
	_ = file.Close()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	fmt.Println("pid", j.PID())
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		word, rest, _ := strings.Cut(in.Text(), " ")
		switch word {
		case "until":
			at, _ := time.ParseDuration(rest)
			err = g.Extend(at)
		case "mark":
			err = g.Mark(rest)
		case "strike":
			g.Strike()
		case "dismiss":
			g.Dismiss()
		case "gone":
			<-g.Gone()
		}
		fmt.Println("done", word, err)
	}
	return 0
}

func beMember(name string, bare bool) int {
	shut := func(from, to int) {
		for fd := from; bare && fd < to; fd++ {
			if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err == nil && flags&unix.FD_CLOEXEC == 0 {
				_ = unix.Close(fd)
			}
		}
	}
	shut(3, 1024)
	fmt.Println(name, os.Getpid())
	shut(0, 3)
	time.Sleep(time.Minute)
	return 0
}

func bootTime(t *testing.T) time.Duration {
	t.Helper()
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		t.Fatal(err)
	}
	return time.Duration(ts.Nano())
}

// guarded is a program with a guard, from outside.
type guarded struct {
	*exec.Cmd
	id   string
	in   io.WriteCloser
	out  *lines
	pids map[string]int // by name, with the command's own as "pid"
	far  *os.File       // the other end of what is inherited
}

// newID is another one for each, as the guard of a test before may still be at work.
func newID() string { return fmt.Sprintf("%016x", rand.Uint64()) }

// startGuarded runs a script of sh whose processes say their names and numbers. In
// it $1 is this program. It waits until so many have spoken.
func startGuarded(t *testing.T, script string, members int) *guarded {
	t.Helper()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.SetNonblock(pair[1], true); err != nil { // for deadlines
		t.Fatal(err)
	}
	g := &guarded{id: newID(), pids: make(map[string]int), far: os.NewFile(uintptr(pair[1]), "far end")}
	t.Cleanup(func() { _ = g.far.Close() })
	near := os.NewFile(uintptr(pair[0]), "near end")
	defer near.Close()
	g.Cmd = exec.Command(os.Args[0], "guarded", g.id, "sh", "-c", script, "sh", os.Args[0])
	g.ExtraFiles = []*os.File{near}
	g.Env = append(os.Environ(), "GORACE=atexit_sleep_ms=0") // it is 1000
	g.Stderr = os.Stderr
	if g.in, err = g.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	g.Stdout = w
	if err := g.Start(); err != nil {
		t.Fatal(err)
	}
	_ = w.Close()
	t.Cleanup(func() {
		_ = g.Process.Kill()
		_ = g.Wait()
		for _, pid := range g.pids {
			if running(pid) {
				_ = syscall.Kill(pid, syscall.SIGKILL)
			}
		}
	})
	g.out = readLines(t, r)
	for range members + 1 {
		name, number, _ := strings.Cut(g.out.next(), " ")
		pid, err := strconv.Atoi(number)
		if err != nil {
			t.Fatalf("%q is no process: %v", number, err)
		}
		g.pids[name] = pid
	}
	return g
}

// tell gives the program an order, and waits for it to be done.
func (g *guarded) tell(t *testing.T, order string) {
	t.Helper()
	if _, err := io.WriteString(g.in, order+"\n"); err != nil {
		t.Fatal(err)
	}
	word, _, _ := strings.Cut(order, " ")
	if got := g.out.next(); got != "done "+word+" <nil>" {
		t.Fatalf("%s: %q", order, got)
	}
}

func (g *guarded) living() (names []string) {
	for name, pid := range g.pids {
		if running(pid) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// scattered starts processes that are found by one thing only when the program and
// the command are dead.
const scattered = `setsid -f "$1" member marked bare
setsid -f env -i "$1" member holding
"$1" member child &
exec "$1" member command`

// untied is one that is found by nothing then.
const untied = `setsid -f env -i "$1" member untied bare
`

func TestTheGuardEndsEverything(t *testing.T) {
	for _, tc := range []struct {
		name, script string
		members      int
		fault        func(t *testing.T, g *guarded) error
	}{
		{"killed", scattered, 4, func(_ *testing.T, g *guarded) error { return g.Process.Kill() }},
		{"stopped", untied + scattered, 5, func(t *testing.T, g *guarded) error {
			g.tell(t, "until "+(bootTime(t)+100*time.Millisecond).String())
			return g.Process.Signal(syscall.SIGSTOP)
		}},
		{"asked", untied + scattered, 5, func(t *testing.T, g *guarded) error { g.tell(t, "strike"); return nil }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			g := startGuarded(t, tc.script, tc.members)
			// Those that it is not for: with another mark, with a like one, with none.
			var others []*exec.Cmd
			for _, env := range []string{markName + "=" + g.id + "0", markName + "=x" + g.id + ",y", "X=" + g.id} {
				c := exec.Command("sleep", "1000")
				c.Env = append(os.Environ(), env)
				if err := c.Start(); err != nil {
					t.Fatal(err)
				}
				defer func() {
					_ = c.Process.Kill()
					_ = c.Wait()
				}()
				others = append(others, c)
			}
			if got := g.living(); len(got) != tc.members+1 {
				t.Fatalf("%v run", got)
			}
			over := make(chan []string, 1)
			go func() {
				_, _ = io.Copy(io.Discard, g.far)
				over <- g.living()
			}()
			if err := tc.fault(t, g); err != nil {
				t.Fatal(err)
			}
			await(t, "the end of all", func() bool { return len(g.living()) == 0 })
			if tc.name == "stopped" {
				_ = g.Process.Kill() // it has the far end open, too
			}
			_ = g.in.Close()
			select {
			case left := <-over:
				if len(left) > 0 {
					t.Errorf("what they inherit was closed before the end of %v", left)
				}
			case <-time.After(patience):
				t.Error("what they inherit is still open")
			}
			for _, c := range others {
				if !running(c.Process.Pid) {
					t.Errorf("a stranger was killed: %q", c.Env[len(c.Env)-1])
				}
			}
		})
	}
}

// TestTheGuardKnowsTheRestored: what is restored has the mark of an earlier life.
func TestTheGuardKnowsTheRestored(t *testing.T) {
	earlier := newID()
	g := startGuarded(t, `setsid -f env `+markName+`=x,`+earlier+` "$1" member restored bare
exec "$1" member command`, 2)
	g.tell(t, "mark "+earlier)
	if err := g.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	await(t, "the end of all", func() bool { return len(g.living()) == 0 })
}

func TestExtendMovesTheDeadline(t *testing.T) {
	g := startGuarded(t, `exec "$1" member command`, 1)
	first := bootTime(t) + 3*time.Second
	g.tell(t, "until "+first.String())
	last := first + 500*time.Millisecond
	g.tell(t, "until "+last.String())
	if err := g.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	await(t, "the end of the command", func() bool { return !running(g.pids["command"]) })
	if at := bootTime(t); at < last || at > last+patience {
		t.Errorf("killed %v after its deadline", at-last)
	}
}

func TestADeadlineThatHasPassed(t *testing.T) {
	g := startGuarded(t, `exec "$1" member command`, 1)
	g.tell(t, "until -1s")
	await(t, "the end of the command", func() bool { return !running(g.pids["command"]) })
	g.tell(t, "gone")
}

func TestDismissHarmsNobody(t *testing.T) {
	g := startGuarded(t, scattered, 4)
	deadline := bootTime(t) + 2*time.Second
	g.tell(t, "until "+deadline.String())
	g.tell(t, "dismiss")
	g.tell(t, "gone")
	g.tell(t, "dismiss")
	// Nothing must happen until long after.
	time.Sleep(deadline + 200*time.Millisecond - bootTime(t))
	if got := g.living(); len(got) != 5 {
		t.Errorf("only %v run", got)
	}
}

func TestAKilledGuardIsNoticed(t *testing.T) {
	g := startGuarded(t, `exec "$1" member command`, 1)
	guard := 0
	numbers, err := processNumbers()
	if err != nil {
		t.Fatal(err)
	}
	for _, pid := range numbers {
		text, _ := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cmdline")
		if argv := strings.Split(string(text), "\x00"); len(argv) > 2 && argv[0] == guardName && argv[2] == g.id && sameProgram(pid) {
			guard = pid
		}
	}
	if guard == 0 {
		t.Fatal("there is no guard")
	}
	if err := syscall.Kill(guard, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	g.tell(t, "gone")
	if !running(g.pids["command"]) {
		t.Error("the command has ended with it")
	}
}

// sameProgram says whether a process executes this test binary.
func sameProgram(pid int) bool {
	theirs, err := os.Stat("/proc/" + strconv.Itoa(pid) + "/exe")
	ours, oursErr := os.Stat("/proc/self/exe")
	return errors.Join(err, oursErr) == nil && os.SameFile(theirs, ours)
}

// TestTheGuardFindsWhatKeepsMoving: one that forks and goes, again and again, and is
// in the middle of an exec half of the time.
func TestTheGuardFindsWhatKeepsMoving(t *testing.T) {
	hop := t.TempDir() + "/hop"
	text := "#!/bin/sh\n[ \"$1\" ] && echo hop $$ && shift\nexec </dev/null >/dev/null 2>&1\nsetsid -f \"$0\" ''\n"
	if err := os.WriteFile(hop, []byte(text), 0o700); err != nil {
		t.Fatal(err)
	}
	g := startGuarded(t, `setsid -f `+hop+` first; exec "$1" member command`, 2)
	// For our cleanup it has another number by then, but it does not go on without this.
	defer os.Remove(hop)
	_ = g.Process.Kill()
	if err := g.far.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, g.far); err != nil {
		t.Fatalf("what it inherits is still open: %v", err)
	}
	k := &kin{fd: -1, master: -1, mark: g.id}
	for range 10 {
		if left := k.find(); len(left) > 0 {
			t.Fatalf("%v run on", left)
		}
	}
}
