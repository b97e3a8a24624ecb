package main

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

	"github.com/lockerd/lockerd/pidprobe"
)

// TestMain lets the test binary be pidwatch, and a pidstatd.
func TestMain(m *testing.M) {
	switch kind := os.Getenv("PIDWATCH_TEST_MAIN"); kind {
	case "":
		os.Exit(m.Run())
	case "pidwatch":
		main()
	default:
		fmt.Println(serveAs(kind))
		os.Exit(1)
	}
}

// command is a pidwatch.
func command(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0], args...)
	// The race detector makes each of its processes linger for a second otherwise.
	cmd.Env = append(os.Environ(), "PIDWATCH_TEST_MAIN=pidwatch", "GORACE="+os.Getenv("GORACE")+" atexit_sleep_ms=10")
	cmd.WaitDelay = 20 * time.Second
	return cmd
}

// sleeper starts a process that ends when it is told to.
func sleeper(t *testing.T) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { end(cmd) })
	return cmd
}

func end(cmd *exec.Cmd) {
	if cmd.ProcessState == nil {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}
}

func pidOf(cmd *exec.Cmd) string { return strconv.Itoa(cmd.Process.Pid) }

// status is 128+n for signal n.
func status(cmd *exec.Cmd) int {
	ws := cmd.ProcessState.Sys().(syscall.WaitStatus)
	if ws.Signaled() {
		return 128 + int(ws.Signal())
	}
	return ws.ExitStatus()
}

// running starts a pidwatch and waits until its command has printed a line.
func running(t *testing.T, cmd *exec.Cmd) (line string, out *bufio.Reader) {
	t.Helper()
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if cmd.Stderr == nil {
		cmd.Stderr = os.Stderr
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { end(cmd) })
	out = bufio.NewReader(pipe)
	line, err = out.ReadString('\n')
	if err != nil {
		t.Fatalf("the command says %q, %v", line, err)
	}
	return strings.TrimSuffix(line, "\n"), out
}

// The command is run as if there were no pidwatch.
func TestCommand(t *testing.T) {
	p := sleeper(t)
	dir := t.TempDir()
	missing := filepath.Join(dir, "missing")
	for _, c := range []struct {
		args []string
		code int
		out  string
		err  string
	}{
		{[]string{"exit", "5"}, 5, "", ""},
		{[]string{"true && echo a | cat; false"}, 1, "a\n", ""},
		{[]string{"kill -HUP $$"}, 129, "", ""},
		{[]string{"kill -9 $$"}, 137, "", ""},
		{[]string{"no-such-command 2>/dev/null"}, 127, "", ""},
		{[]string{"echo", "--pid", "x", "-v"}, 0, "--pid x -v\n", ""},
		{[]string{"--", "echo", "x"}, 0, "x\n", ""},
		{[]string{"--cd", dir, "pwd; echo $PWD"}, 0, dir + "\n" + dir + "\n", ""},
		{[]string{"--cd", missing, "echo ran"}, 0, "ran\n", "pidwatch: staying where we are: chdir " + missing + ": no such file"},
		{[]string{"-c", "/", "pwd"}, 0, "/\n", ""},
		{[]string{"--host", "localhost", "read x; echo got $x"}, 0, "got input\n", ""},
		{[]string{"echo $PIDWATCH_STAGE$PIDWATCH_TASK"}, 0, "\n", ""},
		// It has no children that it did not start.
		{[]string{"cat /proc/$$/task/$$/children"}, 0, "", ""},
	} {
		cmd := command(t, append([]string{"--pid", pidOf(p)}, c.args...)...)
		cmd.Stdin = strings.NewReader("input\n")
		var out, errs bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &errs
		_ = cmd.Run()
		if strings.HasPrefix(c.args[0], "cat /proc") {
			// cat itself, unless the shell has become it
			if n := len(strings.Fields(out.String())); n > 1 {
				t.Errorf("it has %d children: %s", n, out.String())
			}
			continue
		}
		if got := status(cmd); got != c.code || out.String() != c.out || !strings.HasPrefix(errs.String(), c.err) || (c.err == "") != (errs.Len() == 0) {
			t.Errorf("%q: %d, want %d\n%s%s", c.args, got, c.code, out.String(), errs.String())
		}
	}
}

// What the command inherits is what pidwatch has: limits, masks, ignored signals.
func TestInheritance(t *testing.T) {
	const script = `ulimit -Sn; grep "^Sig[IB]" /proc/self/status; umask; ls /proc/self/fd`
	inherit := func(args ...string) string {
		t.Helper()
		args = append([]string{"-c", `trap "" HUP INT QUIT; umask 026; ulimit -Sn 100; exec 7</dev/null; exec "$@"`, "sh"}, args...)
		cmd := exec.Command("sh", args...)
		cmd.Env = append(os.Environ(), "PIDWATCH_TEST_MAIN=pidwatch")
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		return string(out)
	}
	without := inherit("sh", "-c", script)
	with := inherit(os.Args[0], "--pid", "1", script)
	if with != without {
		t.Errorf("with pidwatch\n%s without it\n%s", with, without)
	}
}

// pidwatch becomes the command: its number is the one that its parent knows.
func TestProcessNumber(t *testing.T) {
	cmd := command(t, "--pid", "1", "echo $$; exec cat")
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	line, _ := running(t, cmd)
	if line != pidOf(cmd) {
		t.Errorf("the command is process %s, pidwatch was %s", line, pidOf(cmd))
	}
	stdin.Close()
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
}

// The barrier of the manual: sleep until another process has ended.
func TestEndsWithProcess(t *testing.T) {
	// Who polls once a second takes half a second for most of them. Others may keep the
	// processors busy for a while.
	for try := 1; ; try++ {
		took := endsWithProcess(t)
		slices.Sort(took)
		t.Logf("ended after %v", took)
		if median := took[len(took)/2]; t.Failed() || median < 250*time.Millisecond {
			return
		} else if try == 3 {
			t.Fatalf("half of them took more than %v: somebody polls", median)
		}
	}
}

func endsWithProcess(t *testing.T) (took []time.Duration) {
	for name, c := range map[string]struct {
		args []string
		code int
	}{
		"default": {nil, 129},
		"TERM":    {[]string{"--signal", "TERM"}, 143},
		"SIGINT":  {[]string{"--signal", "SIGINT"}, 130},
		"-TERM":   {[]string{"--signal", "-TERM"}, 143},
		"-SIGHUP": {[]string{"--signal=-SIGHUP"}, 129},
		"number":  {[]string{"--signal", "15"}, 143},
		"-9":      {[]string{"--sig", "-9"}, 137},
		"lower":   {[]string{"--signal", "usr1"}, 138},
		"host":    {[]string{"--host", "localhost"}, 129},
	} {
		t.Run(name, func(t *testing.T) {
			p := sleeper(t)
			cmd := command(t, append(append([]string{"--pid", pidOf(p)}, c.args...), "echo up; exec sleep 9999999")...)
			running(t, cmd)
			began := time.Now()
			end(p)
			_ = cmd.Wait()
			took = append(took, time.Since(began))
			if got := status(cmd); got != c.code {
				t.Errorf("exit %d, want %d", got, c.code)
			}
		})
	}
	return took
}

// kill -9 of the parent is what rsh does not tell its child.
func TestParentKilled(t *testing.T) {
	parent := exec.Command("sh", "-c", os.Args[0]+` --cd "$PWD" --host localhost --pid $$ 'echo $$; exec sleep 9999999' & wait`)
	parent.Env = append(os.Environ(), "PIDWATCH_TEST_MAIN=pidwatch")
	line, _ := running(t, parent)
	pid, err := pidprobe.ParsePID(line)
	if err != nil {
		t.Fatal(err)
	}
	cmd, err := pidprobe.Lookup(pid)
	if err != nil {
		t.Fatal(err)
	}
	end(parent)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := pidprobe.Await(ctx, cmd); err != nil {
		t.Errorf("the command goes on: %v", err)
		_ = pidprobe.Signal(cmd, syscall.SIGKILL)
	}
}

func TestProcessGoneBefore(t *testing.T) {
	p := sleeper(t)
	end(p)
	cmd := command(t, "--pid", pidOf(p), "exec sleep 1000")
	_ = cmd.Run()
	if got := status(cmd); got != 129 {
		t.Errorf("exit %d, want 129", got)
	}
}

// A zombie will not do anything any more.
func TestZombieHasEnded(t *testing.T) {
	p := sleeper(t)
	cmd := command(t, "--pid", pidOf(p), "echo up; exec sleep 1000")
	running(t, cmd)
	_ = p.Process.Kill() // and nobody waits for it
	_ = cmd.Wait()
	if got := status(cmd); got != 129 {
		t.Errorf("exit %d, want 129", got)
	}
}

// One that does not end is told again.
func TestSignalIsRepeated(t *testing.T) {
	p := sleeper(t)
	cmd := command(t, "--pid", pidOf(p), `n=0; trap 'n=$((n+1)); echo told $n; [ $n -lt 3 ] || exit 9' HUP; echo up; while :; do sleep 0.02; done`)
	_, out := running(t, cmd)
	end(p)
	rest, _ := io.ReadAll(out)
	_ = cmd.Wait()
	if got := status(cmd); got != 9 || string(rest) != "told 1\ntold 2\ntold 3\n" {
		t.Errorf("exit %d, %q", got, rest)
	}
}

func TestKiller(t *testing.T) {
	dir := t.TempDir()
	killer := filepath.Join(dir, "killer")
	script := "#!/bin/sh\necho \"$# $*\" >>" + dir + "/calls\nkill -TERM $2\n"
	if err := os.WriteFile(killer, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	for signal, want := range map[string]string{"": "-HUP", "SIGUSR1": "-USR1", "-15": "-15", "-term": "-TERM"} {
		_ = os.Remove(dir + "/calls")
		p := sleeper(t)
		args := []string{"--pid", pidOf(p), "--killer", "./killer", "--signal", signal}
		if signal == "" {
			args = args[:4]
		}
		cmd := command(t, append(args, "echo up; exec sleep 1000")...)
		cmd.Dir = dir
		running(t, cmd)
		end(p)
		_ = cmd.Wait()
		calls, err := os.ReadFile(dir + "/calls")
		if err != nil {
			t.Fatal(err)
		}
		if want := fmt.Sprintf("2 %s %s\n", want, pidOf(cmd)); string(calls) != want || status(cmd) != 143 {
			t.Errorf("called with %q, want %q; exit %d", calls, want, status(cmd))
		}
	}
}

func TestForeground(t *testing.T) {
	p, fg := sleeper(t), sleeper(t)
	cmd := command(t, "--pid", pidOf(p), "--foreground", pidOf(fg), "--signal", "TERM")
	if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
		t.Fatalf("%v, %s", err, out)
	}
	if v := pidprobe.Check(pidprobe.Process{PID: int32(fg.Process.Pid)}); v != pidprobe.Alive {
		t.Fatalf("at once, the foreground process is %v", v)
	}
	end(p)
	_ = fg.Wait()
	if got := status(fg); got != 143 {
		t.Errorf("it ended with %d, want 143", got)
	}
}

// With the foreground process the background ends too.
func TestWatchEnds(t *testing.T) {
	fg := sleeper(t)
	cmd := command(t, "--debug", "--pid", "1", "--foreground", pidOf(fg))
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	in := bufio.NewReader(stderr)
	if line, err := in.ReadString('\n'); !strings.Contains(line, "watching process 1 of localhost") {
		t.Fatalf("%q, %v", line, err)
	}
	end(fg)
	rest, err := io.ReadAll(in) // to its end, which is the background's
	if err != nil || !strings.Contains(string(rest), "process "+pidOf(fg)+" has ended\n") {
		t.Errorf("%q, %v", rest, err)
	}
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}

	// One that has gone already is no error.
	if out, err := command(t, "--pid", "1", "--foreground", pidOf(fg)).CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("%v, %s", err, out)
	}
}

func TestErrorsComeBeforeTheCommand(t *testing.T) {
	for _, c := range []struct {
		args string
		code int
		err  string
	}{
		{"touch MARK", 64, "%Error: --pid not specified\n"},
		{"--pid 1", 64, "%Error: No command specified\n"},
		{"--pid 1 --foreground 1 touch MARK", 64, "%Error: --foreground option does not take additional command arguments\n"},
		{"--pid x touch MARK", 64, `%Error: --pid "x": a process number is`},
		{"--pid 0 touch MARK", 64, `%Error: --pid "0": `},
		{"--pid 1 --foreground -1", 64, `%Error: --foreground "-1": `},
		{"--pid 1 --signal FROB touch MARK", 64, `%Error: --signal: no signal "FROB"`},
		{"--pid 1 --signal 0 touch MARK", 64, `%Error: --signal: no signal "0"`},
		{"--pid 1 --port x! touch MARK", 64, "%Error: --port: "},
		{"--pid 1 --killer no-such-killer touch MARK", 64, "%Error: --killer: "},
		{"--pid 1 --frob touch MARK", 64, "%Error: unknown option --frob, see --help\n"},
		{"--pid 1 --p 2 touch MARK", 64, "%Error: --p is short for --pid and for --port, see --help\n"},
		{"--pid 1 --host no-such-host.invalid touch MARK", 68, "%Error: can't find host no-such-host.invalid: "},
		{"--pid 1 --host no-such-host.invalid --foreground 1", 68, "%Error: can't find host no-such-host.invalid: "},
	} {
		mark := filepath.Join(t.TempDir(), "mark")
		cmd := command(t, strings.Fields(strings.ReplaceAll(c.args, "MARK", mark))...)
		out, err := cmd.CombinedOutput()
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() != c.code || !strings.HasPrefix(string(out), c.err) || strings.Count(string(out), "\n") != 1 {
			t.Errorf("%s: %v, want %d\n%s", c.args, err, c.code, out)
		}
		if _, err := os.Stat(mark); err == nil {
			t.Errorf("%s: the command was run", c.args)
		}
	}
}

func TestHelpAndVersion(t *testing.T) {
	var out, errs bytes.Buffer
	if code := run([]string{"-version"}, &out, &errs); code != 0 || out.String() != "Version: "+version+"\n" {
		t.Errorf("%d, %q, %q", code, out.String(), errs.String())
	}
	out.Reset()
	if code := run([]string{"--help"}, &out, &errs); code != 0 || errs.Len() > 0 {
		t.Errorf("%d, %q", code, errs.String())
	}
	for _, name := range []string{"--cd", "--help", "--host", "--killer", "--foreground", "--pid", "--port", "--signal", "--version", "--debug"} {
		if !strings.Contains(out.String(), " "+name+" ") {
			t.Errorf("%s is not in the help", name)
		}
	}
}
