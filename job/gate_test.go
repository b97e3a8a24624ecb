package job

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// prepared makes a job whose output goes to a pipe: it has our standard streams,
// so the command is one that opens its own.
func prepared(t *testing.T, script string) (*Job, func() string) {
	t.Helper()
	out := t.TempDir() + "/out"
	j, err := Prepare(Options{Argv: []string{"/bin/sh", "-c", "exec >" + out + " 2>&1; " + script}})
	if err != nil {
		t.Fatal(err)
	}
	return j, func() string {
		b, err := os.ReadFile(out)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
		return string(b)
	}
}

func TestTheGateKeepsTheProcess(t *testing.T) {
	t.Setenv("KEPT", "kept")
	t.Setenv("CHANGED", "before")
	t.Setenv("REMOVED", "before")
	j, out := prepared(t, `echo $$; echo "$KEPT $CHANGED ${REMOVED-none} $ADDED"; ls -l /proc/$$/fd | grep -o "inherited-.*"`)
	if !running(j.PID()) {
		t.Fatal("nothing waits at the gate")
	}
	file, err := os.Create(t.TempDir() + "/inherited-file")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	long := strings.Repeat("x", 100_000)
	if err := j.Open([]string{"CHANGED=a=b", "REMOVED", "ADDED=\xff", "LONG=" + long, "LONG2=" + long}, file); err != nil {
		t.Fatal(err)
	}
	if exit := j.Wait(); exit.Code != 0 {
		t.Errorf("%+v", exit)
	}
	want := fmt.Sprintf("%d\nkept a=b none \xff\ninherited-file\n", j.PID())
	if got := out(); got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestAbandonRunsNothing(t *testing.T) {
	j, out := prepared(t, "echo ran")
	j.Abandon()
	if running(j.PID()) || out() != "" {
		t.Errorf("running: %v, output %q", running(j.PID()), out())
	}
}

func TestKilledAtTheGate(t *testing.T) {
	j, out := prepared(t, "echo ran")
	if err := syscall.Kill(j.PID(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	select {
	case <-j.Done():
	case <-time.After(patience):
		t.Fatal("nobody noticed")
	}
	if err := j.Open(nil, nil); StartCode(err) != CodeNotExecutable || out() != "" {
		t.Errorf("%v, output %q", err, out())
	}
}

// TestSignalsAtTheGate: what the terminal sends while we wait for a lock is for us
// to act upon, but what comes afterwards is the command's.
func TestSignalsAtTheGate(t *testing.T) {
	j, out := prepared(t, "echo ran; exec sleep 1000")
	await(t, "the gate", func() bool { return reads(t, j.PID()) })
	for _, s := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGTSTP} {
		if err := syscall.Kill(j.PID(), s); err != nil {
			t.Fatal(err)
		}
	}
	if err := j.Open(nil, nil); err != nil {
		t.Fatal(err)
	}
	await(t, "the command", func() bool { return out() == "ran\n" })
	if err := syscall.Kill(j.PID(), syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if exit := j.Wait(); exit.Code != 128+int(syscall.SIGTERM) {
		t.Errorf("%+v", exit)
	}
}

// reads says whether a thread of a process is in recvmsg(2), where nothing but the
// gate's own code takes it.
func reads(t *testing.T, pid int) bool {
	t.Helper()
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/syscall", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		text, _ := os.ReadFile(f)
		if number, _, _ := strings.Cut(string(text), " "); number == strconv.Itoa(unix.SYS_RECVMSG) {
			return true
		}
	}
	return false
}

func await(t *testing.T, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !done(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not in %v", what, patience)
		}
	}
}

func TestTheGateGoesWithItsParent(t *testing.T) {
	cmd := exec.Command(os.Args[0], "prepare", "sleep", "1000")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var pid int
	if _, err := fmt.Fscan(out, &pid); err != nil {
		t.Fatal(err)
	}
	if !running(pid) {
		t.Fatal("nothing waits at the gate")
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	await(t, "the end of the gate", func() bool { return !running(pid) })
}

// prepare is a wrapper that waits for a lock it never gets.
func prepare(argv []string) int {
	j, err := Prepare(Options{Argv: argv})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return StartCode(err)
	}
	fmt.Println(j.PID())
	j.Wait()
	return 1
}

func TestWaitAll(t *testing.T) {
	out := t.TempDir() + "/out"
	argv := Shell([]string{"(setsid sh -c 'sleep 0.3; echo last >>" + out + "' &) ; exit 3"})
	j, err := Prepare(Options{Argv: argv, WaitAll: true})
	if err != nil {
		t.Fatal(err)
	}
	if err := j.Open(nil, nil); err != nil {
		t.Fatal(err)
	}
	<-j.Ended()
	exit := j.Wait()
	if text, _ := os.ReadFile(out); exit.Code != 3 || string(text) != "last\n" {
		t.Errorf("%+v, %q", exit, text)
	}
}

func TestWhatAKilledShellLeaves(t *testing.T) {
	dir := t.TempDir()
	for _, tc := range []struct {
		name, end string
		remains   int
	}{
		{"killed", "kill -9 $$", 1},
		{"by itself", "exit 1", 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			pidFile := dir + "/" + tc.name
			script := fmt.Sprintf("sleep 1000 & echo $! >'%s'; _=$(setsid sh -c 'sleep 1 >&- & echo'); %s", pidFile, tc.end)
			j, err := Start(Options{Argv: Shell([]string{script})})
			if err != nil {
				t.Fatal(err)
			}
			exit := j.Wait()
			var pid int
			text, _ := os.ReadFile(pidFile)
			if _, err := fmt.Sscan(string(text), &pid); err != nil {
				t.Fatal(err)
			}
			defer func() {
				_ = syscall.Kill(pid, syscall.SIGKILL)
				_, _ = syscall.Wait4(pid, nil, 0, nil)
			}()
			if exit.Remains != tc.remains {
				t.Errorf("%+v, want %d to remain", exit, tc.remains)
			}
		})
	}
}

func FuzzOpening(f *testing.F) {
	f.Add([]byte("0\x00A=b\x00\x00"))
	f.Add([]byte("ffff\x00\x00"))
	f.Add([]byte("\x00\x00"))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, text []byte) {
		pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(pair[1])
		if len(text) > 32<<10 {
			text = text[:32<<10] // fits the socket's buffer
		}
		if len(text) > 0 {
			if _, err := unix.Write(pair[0], text); err != nil {
				t.Fatal(err)
			}
		}
		unix.Close(pair[0])
		_, changes, inherited, ok := readOpening(pair[1])
		if inherited != -1 {
			t.Errorf("descriptor %d from nowhere", inherited)
		}
		if ok && !bytes.HasSuffix(text, []byte{0, 0}) {
			t.Errorf("%q opens the gate", text)
		}
		changeEnviron(nil, changes)
	})
}
