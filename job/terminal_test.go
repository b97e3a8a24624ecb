package job

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/creack/pty"
)

// screen is a terminal with somebody at it.
type screen struct {
	t    *testing.T
	pty  *os.File
	cmd  *exec.Cmd
	mu   sync.Mutex
	text bytes.Buffer
	more chan struct{}
	seen int
}

func newScreen(t *testing.T, cmd *exec.Cmd) *screen {
	t.Helper()
	f, err := pty.Start(cmd)
	if err != nil {
		t.Fatal(err)
	}
	s := &screen{t: t, pty: f, cmd: cmd, more: make(chan struct{}, 1)}
	go func() {
		buf := make([]byte, 4096)
		for {
			n, err := f.Read(buf)
			s.mu.Lock()
			s.text.Write(buf[:n])
			s.mu.Unlock()
			select {
			case s.more <- struct{}{}:
			default:
			}
			if err != nil {
				return
			}
		}
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		f.Close()
		_ = cmd.Wait()
	})
	return s
}

func (s *screen) send(text string) {
	s.t.Helper()
	if _, err := s.pty.WriteString(text); err != nil {
		s.t.Fatal(err)
	}
}

// press sends a key until text appears: right behind fg, while the shell has the
// terminal still, a key is nobody's.
func (s *screen) press(key, text string) {
	s.t.Helper()
	deadline := time.Now().Add(patience)
	for {
		s.send(key)
		next := time.Now().Add(300 * time.Millisecond)
		for time.Now().Before(next) {
			if i := strings.Index(s.all()[s.seen:], text); i >= 0 {
				s.seen += i + len(text)
				return
			}
			time.Sleep(time.Millisecond)
		}
		if time.Now().After(deadline) {
			s.t.Fatalf("no %q on the terminal, but:\n%s", text, s.all()[s.seen:])
		}
	}
}

func (s *screen) all() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.String()
}

// expect waits until text appears after what was expected last.
func (s *screen) expect(text string) {
	s.t.Helper()
	deadline := time.After(patience)
	for {
		all := s.all()
		if i := strings.Index(all[s.seen:], text); i >= 0 {
			s.seen += i + len(text)
			return
		}
		select {
		case <-s.more:
		case <-deadline:
			s.t.Fatalf("no %q on the terminal, but:\n%s", text, all[s.seen:])
		}
	}
}

// shell starts an interactive shell with job control, where $W runs a command
// under the wrapper.
func shell(t *testing.T) *screen {
	t.Helper()
	bash, err := exec.LookPath("bash")
	if err != nil {
		t.Fatal("these tests need bash for its job control")
	}
	cmd := exec.Command(bash, "--norc", "--noprofile", "-i")
	cmd.Env = append(os.Environ(), "PS1=$ ", "TERM=dumb", "HISTFILE=", "W="+os.Args[0]+" wrap 1s")
	s := newScreen(t, cmd)
	s.expect("$ ")
	return s
}

// report prints whether the command has the terminal, and what its group is.
const report = `'set -- $(cat /proc/$$/stat); [ $5 = $8 ] && echo front || echo back; [ $5 = $1 ] && echo own || echo shared; echo begun; '`

func TestCommandHasTheTerminal(t *testing.T) {
	s := shell(t)
	s.send("$W sh -c " + report + "'read line; echo \"<$line>\"; exit 6'\n")
	s.expect("front\r\nown\r\nbegun")
	s.send("typed\n")
	s.expect("<typed>")
	s.send("echo status $?\n")
	s.expect("status 6")
}

func TestCtrlCReachesTheCommand(t *testing.T) {
	s := shell(t)
	s.send("$W sh -c " + report + "'exec sleep 1000'\n")
	s.expect("begun\r\n")
	s.send("\x03")
	s.expect("$ ")
	s.send("echo status $?\n")
	s.expect("status 130")
}

func TestCtrlCWithATrap(t *testing.T) {
	s := shell(t)
	s.send(`$W sh -c 'trap "echo caug""ht" INT; echo be""gun; while :; do read x && exit 3; done'` + "\n")
	s.expect("begun\r\n")
	s.send("\x03")
	s.expect("caught\r\n")
	s.send("end\n")
	s.expect("$ ")
	if n := strings.Count(s.all(), "caught\r\n"); n != 1 {
		t.Errorf("one Ctrl-C came %d times", n)
	}
}

func TestCtrlZStopsBothAndFgContinues(t *testing.T) {
	s := shell(t)
	s.send("$W sh -c " + report + "'read line; echo \"<$line>\"; exit 5'\n")
	s.expect("begun\r\n")
	for range 2 {
		s.press("\x1a", "Stopped")
		s.expect("$ ")
		s.send("fg\n")
		s.expect("$W sh")
	}
	s.send("again\n")
	s.expect("<again>")
	s.send("echo status $?\n")
	s.expect("status 5")
}

func TestBgContinuesWithoutTheTerminal(t *testing.T) {
	s := shell(t)
	s.send("$W sh -c " + `'echo be""gun; exec sleep 1000'` + "\n")
	s.expect("begun\r\n")
	s.send("\x1a")
	s.expect("Stopped")
	s.send("bg\n")
	s.expect("&\r\n")
	s.send("kill -USR1 $!; wait $!; echo status $?\n")
	s.expect("status 138")
}

func TestBackgroundReaderIsStoppedByTheTerminal(t *testing.T) {
	s := shell(t)
	s.send("$W sh -c " + `'echo be""gun; read line; echo "<$line>"; exit 4' &` + "\n")
	s.expect("begun\r\n")
	s.send("\n\n")
	s.send("while ! jobs | grep -q Stop; do sleep 0.05; done; echo sto''od\n")
	s.expect("stood")
	s.send("fg\n")
	s.expect("$W sh")
	s.send("late\n")
	s.expect("<late>")
	s.send("echo status $?\n")
	s.expect("status 4")
}

func TestPipelineKeepsItsGroup(t *testing.T) {
	s := shell(t)
	// The last member reads the terminal: it would be stopped if the command had
	// taken the terminal away.
	s.send("$W sh -c " + report + ` | sh -c 'cat; read l </dev/tty; echo "<$l>"'` + "\n")
	s.expect("front\r\nshared\r\nbegun")
	s.send("pager\n")
	s.expect("<pager>")
}

func TestCtrlZStopsAPipeline(t *testing.T) {
	s := shell(t)
	s.send(`$W sh -c 'echo be""gun; read line </dev/tty; echo "<$line>"; exit 5' | cat; echo status ${PIPESTATUS[0]}` + "\n")
	s.expect("begun\r\n")
	for range 2 {
		s.press("\x1a", "Stopped")
		s.expect("$ ")
		s.send("fg\n")
		s.expect("$W sh")
	}
	s.send("again\n")
	s.expect("<again>")
}

func TestCtrlCEndsTheScriptToo(t *testing.T) {
	s := shell(t)
	s.send(`bash -c '$W sh -c "echo be""gun; exec sleep 1000"; echo script went on'` + "\n")
	s.expect("begun\r\n")
	s.send("\x03")
	s.expect("$ ")
	s.send("echo status $?\n")
	s.expect("status 130")
	if strings.Contains(s.all(), "\nscript went on") {
		t.Error("the script goes on after Ctrl-C")
	}
}

func TestPasswordPromptWithRedirectedInput(t *testing.T) {
	s := shell(t)
	s.send(`$W sh -c 'read l </dev/tty; echo "<$l>"' </dev/null` + "\n")
	s.send("secret\n")
	s.expect("<secret>")
}

func TestTerminalGoesBack(t *testing.T) {
	s := shell(t)
	// A shell without job control relies on getting the terminal back.
	s.send("exec sh\n")
	s.send("$W true; $W true; echo do''ne\n")
	s.expect("done")
	s.send("read x; echo \"<$x>\"\n")
	s.send("mine\n")
	s.expect("<mine>")
}

func TestCtrlZWithoutAShell(t *testing.T) {
	// The wrapper is the session leader, as under ssh -t or script: nobody would
	// ever continue it.
	cmd := wrapper("1s", "sh", "-c", `echo begun; read line; echo "<$line>"; exit 2`)
	s := newScreen(t, cmd)
	s.expect("begun\r\n")
	s.send("\x1a")
	s.send("on\n")
	s.expect("<on>")
	if got := code(t, cmd.Wait()); got != 2 {
		t.Errorf("exit status %d", got)
	}
}

func TestWindowSizeReachesTheCommand(t *testing.T) {
	cmd := wrapper("1s", "sh", "-c", `trap 'stty size; exit 0' WINCH; echo begun; while :; do sleep 0.02; done`)
	s := newScreen(t, cmd)
	s.expect("begun\r\n")
	if err := pty.Setsize(s.pty, &pty.Winsize{Rows: 33, Cols: 77}); err != nil {
		t.Fatal(err)
	}
	s.expect("33 77")
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
}

func ExampleShell() {
	fmt.Printf("%q\n", Shell([]string{"make", "clean", "&&", "make"}))
	// Output: ["/bin/sh" "-c" "make clean && make"]
}
