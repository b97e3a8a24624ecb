package job

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// patience is how long a test waits for what must happen.
const patience = time.Minute

// TestMain makes this test binary a wrapper too: "wrap GRACE ARGV..." runs a
// command as cmd/lockersh does, and calls Lost when descriptor 3 is closed, and
// "prepare ARGV..." only prepares one.
func TestMain(m *testing.M) {
	AtGate()
	if len(os.Args) > 1 && os.Args[1] == "wrap" {
		os.Exit(wrap(os.Args[2], os.Args[3:]))
	}
	if len(os.Args) > 1 && os.Args[1] == "prepare" {
		os.Exit(prepare(os.Args[2:]))
	}
	os.Exit(m.Run())
}

func wrap(graceText string, argv []string) int {
	grace, err := time.ParseDuration(graceText)
	if err != nil {
		panic(err)
	}
	j, err := Start(Options{Argv: argv, Grace: grace, Signals: Notify()})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return StartCode(err)
	}
	if os.Getenv("WRAP_LOST") != "" {
		syscall.CloseOnExec(3)
		go func() {
			_, _ = io.Copy(io.Discard, os.NewFile(3, "lost"))
			j.Lost()
		}()
	}
	e := j.Wait()
	if e.Lost {
		fmt.Fprintf(os.Stderr, "lost: code %d, left %d\n", e.Code, e.Left)
		return 76
	}
	if e.Interrupted {
		Interrupt()
	}
	return e.Code
}

func wrapper(grace string, argv ...string) *exec.Cmd {
	cmd := exec.Command(os.Args[0], append([]string{"wrap", grace}, argv...)...)
	cmd.Env = os.Environ()
	return cmd
}

func code(t *testing.T, err error) int {
	t.Helper()
	if err == nil {
		return 0
	}
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		t.Fatal(err)
	}
	s := exit.Sys().(syscall.WaitStatus)
	if s.Signaled() {
		t.Fatalf("the wrapper died of %v", s.Signal())
	}
	return s.ExitStatus()
}

func TestExitStatus(t *testing.T) {
	dir := t.TempDir()
	file := func(name, text string, mode os.FileMode) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	plain := file("plain", "", 0o644)
	script := file("script", "exit $1\n", 0o755)
	broken := file("broken", "#!/no/such/interpreter\n", 0o755)
	for _, tc := range []struct {
		name string
		argv []string
		want int
	}{
		{"success", []string{"true"}, 0},
		{"own status", Shell([]string{"exit", "7"}), 7},
		{"killed", Shell([]string{"kill -9 $$"}), 137},
		{"interrupted", Shell([]string{"kill -INT $$"}), 130},
		{"not found", []string{"no-such-command-here"}, 127},
		{"no such file", []string{dir + "/nothing"}, 127},
		{"not found by sh", Shell([]string{"no-such-command-here"}), 127},
		{"not executable", []string{plain}, 126},
		{"directory", []string{dir}, 126},
		{"no interpreter", []string{broken}, 127},
		{"script without #!", []string{script, "5"}, 5},
		{"status beyond a byte", Shell([]string{"exit 300"}), 300 & 255},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := code(t, wrapper("0s", tc.argv...).Run()); got != tc.want {
				t.Errorf("exit status %d, want %d", got, tc.want)
			}
		})
	}
}

func TestPathSearch(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "tool"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	cmd := wrapper("0s", "tool")
	cmd.Env = append(cmd.Env, "PATH="+dir)
	if got := code(t, cmd.Run()); got != 126 {
		t.Errorf("a file in PATH without the x bit: exit status %d, want 126", got)
	}
}

func TestShellJoinsByOneSpace(t *testing.T) {
	out, err := wrapper("0s", Shell([]string{"echo", "a   b", "&&", "echo c"})...).Output()
	if err != nil || string(out) != "a b\nc\n" {
		t.Errorf("got %q, %v", out, err)
	}
	out, err = wrapper("0s", "echo", "a   b", "&&").Output()
	if err != nil || string(out) != "a   b &&\n" {
		t.Errorf("vector: got %q, %v", out, err)
	}
}

func TestCommandNoticesNothing(t *testing.T) {
	script := `cat; echo "$GREETING $PWD"; read x <&9; echo $x; grep -E '^Sig(Blk|Ign):' /proc/self/status; ls /proc/self/fd; ulimit -n`
	dir := t.TempDir()
	run := func(name string, argv ...string) string {
		extra := filepath.Join(t.TempDir(), "nine")
		if err := os.WriteFile(extra, []byte("nine\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		// A shell between us and the wrapper opens descriptor 9, as users do.
		cmd := exec.Command("/bin/sh", append([]string{"-c", `exec "$@" 9<` + extra, "sh"}, argv...)...)
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "GREETING=hello")
		cmd.Stdin = strings.NewReader("input\n")
		cmd.Stderr = os.Stderr
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		return string(out)
	}
	without := run("without", "/bin/sh", "-c", script)
	with := run("with", os.Args[0], "wrap", "0s", "/bin/sh", "-c", script)
	if without != with {
		t.Errorf("without the wrapper:\n%s\nwith it:\n%s", without, with)
	}
}

func TestIgnoredSignalsStayIgnored(t *testing.T) {
	// Whoever runs the tests may ignore others beside these, so what counts is that
	// the wrapper makes no difference.
	ignored := func(argv ...string) uint64 {
		t.Helper()
		argv = append([]string{"-c", `trap "" HUP INT QUIT; exec "$@"`, "sh"}, argv...)
		out, err := exec.Command("/bin/sh", argv...).Output()
		if err != nil {
			t.Fatal(err)
		}
		mask, err := strconv.ParseUint(strings.Fields(string(out))[1], 16, 64)
		if err != nil {
			t.Fatal(err)
		}
		return mask
	}
	script := []string{"/bin/sh", "-c", `grep '^SigIgn:' /proc/self/status`}
	without := ignored(script...)
	with := ignored(append([]string{os.Args[0], "wrap", "0s"}, script...)...)
	want := uint64(1<<(syscall.SIGHUP-1) | 1<<(syscall.SIGINT-1) | 1<<(syscall.SIGQUIT-1))
	if with != without || with&want != want {
		t.Errorf("SigIgn of the command is %x, without the wrapper %x; %x must be in it", with, without, want)
	}
}

// lines reads a command's output line by line while it runs.
type lines struct {
	t  *testing.T
	ch chan string
}

func readLines(t *testing.T, r io.Reader) *lines {
	l := &lines{t: t, ch: make(chan string, 1000)}
	go func() {
		s := bufio.NewScanner(r)
		for s.Scan() {
			l.ch <- strings.TrimRight(s.Text(), "\r")
		}
		close(l.ch)
	}()
	return l
}

func (l *lines) next() string {
	l.t.Helper()
	select {
	case s, ok := <-l.ch:
		if !ok {
			l.t.Fatal("no more output")
		}
		return s
	case <-time.After(patience):
		l.t.Fatal("no output")
	}
	return ""
}

func TestSignalsAreForwarded(t *testing.T) {
	cmd := wrapper("0s", "/bin/sh", "-c", `
for s in HUP INT QUIT USR1 USR2 WINCH CONT TSTP ALRM; do trap "echo got $s" $s; done
trap 'echo got TERM; exit 3' TERM
echo ready; while :; do sleep 0.02; done`)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	l := readLines(t, out)
	if s := l.next(); s != "ready" {
		t.Fatalf("got %q", s)
	}
	for _, s := range []struct {
		name string
		sig  syscall.Signal
	}{
		{"HUP", syscall.SIGHUP},
		{"INT", syscall.SIGINT},
		{"QUIT", syscall.SIGQUIT},
		{"USR1", syscall.SIGUSR1},
		{"USR2", syscall.SIGUSR2},
		{"WINCH", syscall.SIGWINCH},
		{"CONT", syscall.SIGCONT},
		{"ALRM", syscall.SIGALRM},
		{"TERM", syscall.SIGTERM},
	} {
		if err := cmd.Process.Signal(s.sig); err != nil {
			t.Fatal(err)
		}
		if got := l.next(); got != "got "+s.name {
			t.Fatalf("after SIG%s: %q", s.name, got)
		}
	}
	if got := code(t, cmd.Wait()); got != 3 {
		t.Errorf("exit status %d, want 3", got)
	}
}

// startLosable starts a wrapper that loses when the returned file is closed.
//
// Its outputs are files to exec, which then does not wait for those who inherit them.
func startLosable(t *testing.T, grace, script string) (*exec.Cmd, *lines, *os.File, *os.File) {
	t.Helper()
	cmd := wrapper(grace, "/bin/sh", "-c", script)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.ExtraFiles = []*os.File{r}
	cmd.Env = append(cmd.Env, "WRAP_LOST=1")
	stderr, err := os.CreateTemp(t.TempDir(), "stderr")
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = stderr
	pr, pw, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdout = pw
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	pw.Close()
	r.Close()
	return cmd, readLines(t, pr), w, stderr
}

func running(pid int) bool {
	_, ok := readProcess(pid)
	return ok
}

func TestLostEndsEverything(t *testing.T) {
	for _, tc := range []struct {
		name, grace, script string
		pids                int
		want                string
	}{
		{"told", "2m", `echo $$; exec sleep 1000`, 1, "code 143"},
		{"its own way to end", "2m", `trap 'exit 9' TERM; echo $$; while :; do sleep 0.02; done`, 1, "code 9"},
		{"deaf", "50ms", `trap '' TERM; echo $$; while :; do sleep 0.1; done`, 1, "code 137"},
		{"children in the background", "2m", `sleep 1000 & echo $!; sleep 1000 & echo $!; echo $$; wait`, 3, "code 143"},
		{"own sessions", "2m", `setsid sh -c 'echo $$; exec sleep 1000' & setsid -f sh -c 'echo $$; exec sleep 1000'; wait; sleep 1000`, 2, "code 143"},
		{"deaf orphan outlives the command", "50ms", `(trap '' TERM; setsid sh -c 'echo $$; while :; do sleep 0.1; done') & exec sleep 1000`, 1, "code 143"},
		{"stopped", "2m", `sh -c 'echo $$; kill -STOP $$; exec sleep 1000'`, 1, "code 143"},
		{"no grace", "0s", `trap '' TERM; echo $$; while :; do sleep 0.1; done`, 1, "code 137"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			cmd, out, lose, stderr := startLosable(t, tc.grace, tc.script)
			var pids []int
			for range tc.pids {
				pid, err := strconv.Atoi(out.next())
				if err != nil {
					t.Fatal(err)
				}
				pids = append(pids, pid)
			}
			start := time.Now()
			lose.Close()
			if got := code(t, cmd.Wait()); got != 76 {
				t.Errorf("exit status %d", got)
			}
			if time.Since(start) > time.Minute {
				t.Errorf("took %v", time.Since(start))
			}
			said, err := os.ReadFile(stderr.Name())
			if err != nil {
				t.Fatal(err)
			}
			if !strings.Contains(string(said), tc.want+", left 0") {
				t.Errorf("got %q, want %q", said, tc.want)
			}
			for _, pid := range pids {
				if running(pid) {
					t.Errorf("process %d goes on", pid)
				}
			}
		})
	}
}

func TestLostSparesOurOwnGroup(t *testing.T) {
	// A bystander in the wrapper's process group, as other members of a pipeline are.
	script := `exec 3<&0 </dev/null; sleep 1000 & echo $!; WRAP_LOST=1 "$0" wrap 0s sh -c 'echo up; exec sleep 1000' & wait $!; echo $?; kill %1 2>/dev/null; kill $!`
	cmd := exec.Command("/bin/sh", "-c", script, os.Args[0])
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	lose, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL); _ = cmd.Wait() }()
	l := readLines(t, out)
	bystander, err := strconv.Atoi(l.next())
	if err != nil {
		t.Fatal(err)
	}
	if s := l.next(); s != "up" {
		t.Fatalf("got %q", s)
	}
	lose.Close()
	if s := l.next(); s != "76" {
		t.Errorf("exit status %s", s)
	}
	if !running(bystander) {
		t.Error("the bystander has been killed")
	}
}

func TestDaemonsOutliveTheCommand(t *testing.T) {
	cmd, out, lose, _ := startLosable(t, "1s", `setsid -f sh -c 'echo $$; exec sleep 1000 >/dev/null'; sleep 0.01; exit 4`)
	defer lose.Close()
	pid, err := strconv.Atoi(out.next())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = syscall.Kill(pid, syscall.SIGKILL) }()
	if got := code(t, cmd.Wait()); got != 4 {
		t.Errorf("exit status %d", got)
	}
	if !running(pid) {
		t.Error("what the command left running has been ended, though nothing was lost")
	}
}

func TestCommandDiesWithTheWrapper(t *testing.T) {
	cmd, out, lose, _ := startLosable(t, "1s", `echo $$; exec sleep 1000`)
	defer lose.Close()
	pid, err := strconv.Atoi(out.next())
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	deadline := time.Now().Add(patience)
	for running(pid) {
		if time.Now().After(deadline) {
			_ = syscall.Kill(pid, syscall.SIGKILL)
			t.Fatal("the command goes on without its wrapper")
		}
		time.Sleep(time.Millisecond)
	}
}

func TestParseSignal(t *testing.T) {
	for _, tc := range []struct {
		text string
		want syscall.Signal
	}{
		{"TERM", syscall.SIGTERM},
		{"sigterm", syscall.SIGTERM},
		{"-HUP", syscall.SIGHUP},
		{"-SIGINT", syscall.SIGINT},
		{"15", syscall.SIGTERM},
		{"-9", syscall.SIGKILL},
		{"0", 0},
		{"65", 0},
		{"SIGSIGTERM", 0},
		{"", 0},
		{"frob", 0},
	} {
		got, err := ParseSignal(tc.text)
		if got != tc.want || (err != nil) != (tc.want == 0) {
			t.Errorf("ParseSignal(%q) = %d, %v; want %d", tc.text, got, err, tc.want)
		}
	}
}
