package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"

	"github.com/lockerd/lockerd/pidprobe"
)

// This process is to become the command. So the watch is another process, and no
// child of this one: a shell would wonder whose it is. A first stage starts it and
// ends at once.
const (
	stageEnv   = "PIDWATCH_STAGE"
	taskEnv    = "PIDWATCH_TASK"
	stageStart = "start"
	stageWatch = "watch"

	readyFD   = 3
	startedFD = 4
)

// What the watch says through its pipe, before any error.
const (
	isReady = "ready"
	noHost  = "nohost "
)

// startWatch starts the process in the background, and returns when it is ready.
// It acts when the other end of started closes; nil is at once. The error may be
// [pidprobe.ErrNoHost].
func startWatch(t task, started *os.File) error {
	if started == nil {
		f, err := os.Open(os.DevNull)
		if err != nil {
			return err
		}
		defer f.Close()
		started = f
	}
	text, err := json.Marshal(t)
	if err != nil {
		return err
	}
	ready, tell, err := os.Pipe()
	if err != nil {
		return err
	}
	defer ready.Close()
	failed := spawn(t, stageStart, string(text), tell, started).Run()
	tell.Close()
	said, err := io.ReadAll(ready)
	if err != nil {
		return err
	}
	switch text := string(said); {
	case text == isReady:
		return nil
	case text == "" && failed != nil:
		return failed
	case strings.HasPrefix(text, noHost):
		return noHostError(strings.TrimPrefix(text, noHost))
	case text == "":
		return errors.New("it has ended without a word")
	default:
		return errors.New(text)
	}
}

// noHostError is an ErrNoHost of the other process.
type noHostError string

func (e noHostError) Error() string        { return string(e) }
func (e noHostError) Is(target error) bool { return target == pidprobe.ErrNoHost }

// spawn makes this program's next stage. It is called by what it does in lists of
// processes.
func spawn(t task, stage, text string, tell, started *os.File) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe")
	cmd.Args = []string{"pidwatch", "--host", t.Host, "--pid", fmt.Sprint(t.PID), "--foreground", fmt.Sprint(t.Foreground)}
	cmd.Env = append(os.Environ(), stageEnv+"="+stage, taskEnv+"="+text)
	cmd.Dir = "/"
	cmd.ExtraFiles = []*os.File{tell, started}
	if t.Debug {
		cmd.Stderr = os.Stderr
	}
	return cmd
}

// runStage is the program in one of its stages in the background.
func runStage(stage string, stderr io.Writer) int {
	text := os.Getenv(taskEnv)
	os.Unsetenv(stageEnv)
	os.Unsetenv(taskEnv)
	ready, started := os.NewFile(readyFD, "pipe"), os.NewFile(startedFD, "pipe")
	syscall.CloseOnExec(readyFD)
	syscall.CloseOnExec(startedFD)
	var t task
	err := json.Unmarshal([]byte(text), &t)
	if err == nil && stage == stageStart {
		cmd := spawn(t, stageWatch, text, ready, started)
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
		if err = cmd.Start(); err == nil {
			return 0
		}
	}
	if err != nil {
		fmt.Fprint(ready, err)
		return exitInternal
	}
	// What the terminal's end does to the command is the command's business.
	signal.Ignore(syscall.SIGHUP, syscall.SIGPIPE)
	out := io.Discard
	if t.Debug {
		out = stderr
	}
	c := &pidprobe.Client{Port: t.Port, Names: t.Names}
	return t.watch(context.Background(), c, ready, started, log.New(out, "pidwatch: ", log.Lmicroseconds))
}
