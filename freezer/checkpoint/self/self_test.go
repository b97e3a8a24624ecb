package self

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/lockerd/lockerd/freezer/checkpoint"
)

func touch(t *testing.T, path string) {
	t.Helper()
	if err := os.WriteFile(path, nil, 0o644); err != nil {
		t.Fatal(err)
	}
}

// connect makes sure that something listens.
func connect(t *testing.T, address string) {
	t.Helper()
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Errorf("nothing listens: %v", err)
		return
	}
	conn.Close()
}

func TestCheckpointAndContinue(t *testing.T) {
	t.Parallel()
	need(t)
	j := begin(t, Options{}, 0, "app", "state.ckpt", "stay")
	connect(t, j.says(t, "begun")[1])
	touch(t, j.path("go"))
	connect(t, j.says(t, "false")[1])
	e := j.event(t)
	if e.Err != nil || e.PID != j.pid() || e.Root != j.pid() || e.UID != 0 || e.Path != j.path("state.ckpt") || e.Mode != Stay || e.Report == nil {
		t.Errorf("the server tells of %+v", e)
	}
	st, err := os.Stat(j.path("state.ckpt"))
	if err != nil || st.Sys().(*syscall.Stat_t).Uid != 0 || st.Mode() != 0o600 {
		t.Errorf("the file is %+v, %v", st, err)
	}
	j.kill()
	// Three restarts, of which two are at the same time, are told apart.
	j.restart(t, checkpoint.Plan{File: j.path("state.ckpt")})
	first := j.says(t, "true")
	connect(t, first[1])
	if first[4] != fmt.Sprint(j.pid()) {
		t.Errorf("it is another process: %q", first)
	}
	words := map[string]bool{first[2]: true}
	for n := 2; n <= 3; n++ {
		j.restart(t, checkpoint.Plan{File: j.path("state.ckpt"), NewPIDs: true})
		j.await(t, "one more restart", func() bool { return strings.Count(j.out(), "true ") == n })
		words[j.says(t, "true")[2]] = true
	}
	if len(words) != 3 {
		t.Errorf("three restarts have the words %v", words)
	}
}

func TestCheckpointAndExit(t *testing.T) {
	t.Parallel()
	need(t)
	j := begin(t, Options{Order: func() checkpoint.Order { return checkpoint.Order{Compress: true} }}, 0, "app", "state.ckpt", "exit")
	j.says(t, "begun")
	touch(t, j.path("go"))
	state, err := j.cmd.Process.Wait()
	if err != nil || state.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Errorf("it ended with %v, %v", state, err)
	}
	if e := j.event(t); e.Err != nil || e.Mode != Exit {
		t.Errorf("the server tells of %+v", e)
	}
	if strings.Contains(j.out(), "false") {
		t.Errorf("it ran on: %s", j.out())
	}
	j.restart(t, checkpoint.Plan{File: j.path("state.ckpt")})
	connect(t, j.says(t, "true")[1])
}

// Whoever may not is told so, and nothing is written anywhere.
func TestWhoMayNot(t *testing.T) {
	t.Parallel()
	need(t)
	idle := func(t *testing.T, uid uint32) *job {
		j := begin(t, Options{}, uid, "app", "state.ckpt", "stay")
		j.says(t, "begun")
		return j
	}
	for _, c := range []struct {
		name string
		job  uint32
		uid  uint32
		file string
		want string
	}{
		{"root, of another tree", 0, 0, "x", "is of no job that is checkpointed here: operation not permitted"},
		{"a stranger", 0, 65534, "x", "is of no job that is checkpointed here: operation not permitted"},
		{"the same user, of another tree", 65534, 65534, "x", "is of no job that is checkpointed here: operation not permitted"},
	} {
		t.Run(c.name, func(t *testing.T) {
			j := idle(t, c.job)
			out, err := j.command("asks", c.uid, c.file).CombinedOutput()
			if err != nil || !strings.Contains(string(out), c.want) {
				t.Errorf("it was told %q, %v", out, err)
			}
			if e := j.event(t); !errors.Is(e.Err, syscall.EPERM) || e.UID != int(c.uid) || e.Report != nil {
				t.Errorf("the server tells of %+v", e)
			}
			left(t, j)
		})
	}
}

// left says what is in the job's directory beside what is there anyway.
func left(t *testing.T, j *job) {
	t.Helper()
	all, err := os.ReadDir(j.dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range all {
		if n := e.Name(); n != "out" && n != "socket" && n != "go" {
			t.Errorf("left behind: %s", n)
		}
	}
}

// Who never ends the protocol is dropped, and others are served meanwhile.
func TestPatience(t *testing.T) {
	t.Parallel()
	need(t)
	for _, c := range []struct {
		name  string
		lines []string
		want  error
		told  string
	}{
		{"says nothing", nil, os.ErrDeadlineExceeded, "said \"failed"},
		{"does not hang up", []string{"ckpt PIPE /tmp/never"}, syscall.ETIMEDOUT, "then \"failed 110"},
		{"says too much", []string{"ckpt PIPE /tmp/never", "more"}, syscall.EINVAL, "then \"failed 22"},
		{"says something else", []string{"GET / HTTP/1.1"}, syscall.EINVAL, "said \"failed 22"},
		{"no absolute path", []string{"ckpt PIPE never"}, syscall.EINVAL, "said \"failed 22"},
		{"a path of a directory", []string{"ckpt PIPE /tmp/"}, syscall.EINVAL, "said \"failed 22"},
		{"no pipe", []string{"ckpt 0 /tmp/never"}, syscall.EBADF, "said \"failed 9"},
		{"no descriptor", []string{"ckpt 4000 /tmp/never"}, syscall.ENOENT, "said \"failed 2"},
		{"a line without an end", []string{"ckpt PIPE /" + strings.Repeat("x", maxLine)}, nil, "said \"failed"},
	} {
		t.Run(c.name, func(t *testing.T) {
			j := begin(t, Options{Patience: 300 * time.Millisecond}, 0, "connects", c.lines...)
			e := j.event(t)
			if e.Err == nil || c.want != nil && !errors.Is(e.Err, c.want) {
				t.Errorf("the server tells of %v", e.Err)
			}
			j.await(t, c.told, func() bool { return strings.Contains(j.out(), c.told) })
			if isThere("/tmp/never") {
				t.Error("there is a file")
			}
		})
	}
}

// The server's end is one of all requests, and leaves the job alone.
func TestTheServerEnds(t *testing.T) {
	t.Parallel()
	need(t)
	j := serve(t, Options{Patience: time.Hour}, 0)
	l, err := Listen(j.path("second"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() {
		served <- Serve(ctx, l, Options{Patience: time.Hour, Root: func(pid int) int { return pid }, Done: func(e Event) { j.events <- e }})
	}()
	j.socket = j.path("second")
	j.start(t, "connects", 0, "ckpt PIPE /tmp/never")
	j.says(t, "said")
	cancel()
	if err := <-served; err != nil {
		t.Errorf("it ended with %v", err)
	}
	if e := j.event(t); e.Err == nil {
		t.Error("it tells of no error")
	}
	j.says(t, "then")
}

func TestWithoutAServer(t *testing.T) {
	t.Setenv(SocketVariable, "")
	if _, err := Checkpoint(t.Context(), "x", Stay); !errors.Is(err, ErrNoServer) {
		t.Error(err)
	}
	t.Setenv(SocketVariable, filepath.Join(t.TempDir(), "none"))
	if _, err := Checkpoint(t.Context(), "x", Stay); !errors.Is(err, syscall.ENOENT) {
		t.Error(err)
	}
	if _, err := Checkpoint(t.Context(), "x\ny", Stay); !errors.Is(err, syscall.EINVAL) {
		t.Error(err)
	}
}

func TestCatches(t *testing.T) {
	t.Parallel()
	j := &job{dir: t.TempDir()}
	for _, c := range []struct {
		name string
		cmd  *exec.Cmd
		want bool
	}{
		{"a Go program that looks", j.command("signals", uint32(os.Getuid())), true},
		{"a Go program that does not", j.command("unaware", uint32(os.Getuid())), false},
		{"a program that does", exec.Command("/bin/bash", "-c", "trap 'echo' 40; echo ready; read line"), true},
		{"a program that does not", exec.Command("/bin/bash", "-c", "trap 'echo' 42; echo ready; read line"), false},
	} {
		t.Run(c.name, func(t *testing.T) {
			if os.Getuid() != 0 && c.cmd.SysProcAttr != nil {
				c.cmd.SysProcAttr.Credential = nil
			}
			in, err := c.cmd.StdinPipe()
			if err != nil {
				t.Fatal(err)
			}
			defer in.Close()
			out, err := c.cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := c.cmd.Start(); err != nil {
				t.Fatal(err)
			}
			defer func() {
				_ = c.cmd.Process.Kill()
				_ = c.cmd.Wait()
			}()
			if line, err := readLine(lineReader(out)); line != "ready" {
				t.Fatal(line, err)
			}
			got, err := Catches(c.cmd.Process.Pid, SIGCKPT)
			if got != c.want || err != nil {
				t.Errorf("%v, %v", got, err)
			}
		})
	}
	if _, err := Catches(4194303, SIGCKPT); err == nil {
		t.Error("no error for a process that is not there")
	}
}

func FuzzRequest(f *testing.F) {
	f.Add("ckpt 5 /a b")
	f.Add("ckpt exit 0 /x")
	f.Add("ckpt exit exit /x")
	f.Fuzz(func(t *testing.T, line string) {
		r, err := parseRequest(line)
		if err == nil && r.line() != line+"\n" {
			t.Errorf("%q is written %q", line, r.line())
		}
		if err == nil && (!filepath.IsAbs(r.path) || len(r.line()) > maxLine) {
			t.Errorf("%q is taken", line)
		}
	})
}

func FuzzAnswer(f *testing.F) {
	f.Add("running")
	f.Add("restored X")
	f.Add("failed 5 no disk")
	f.Fuzz(func(t *testing.T, line string) {
		o, err := parseAnswer(line)
		if o.Restored && (err != nil || o.Restart == "") {
			t.Errorf("%q is %+v, %v", line, o, err)
		}
		var e *Error
		if errors.As(err, &e) && strings.ContainsAny(refusal(err)[:len(refusal(err))-1], "\n") {
			t.Errorf("%q is passed on as %q", line, refusal(err))
		}
	})
}
