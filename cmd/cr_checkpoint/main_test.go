package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"

	"github.com/lockerd/lockerd/freezer/checkpoint"
	"github.com/lockerd/lockerd/freezer/checkpoint/self"
)

func TestMain(m *testing.M) {
	checkpoint.AtStage()
	testscript.Main(m, map[string]func(){"cr_checkpoint": main, "revive": revive, "traced": traced, "connected": connected, "alone": alone, "served": served})
}

// TestScripts runs testdata/*.txtar. What is in works.txtar takes root and CRIU, and fails
// without them only if LOCKERD_REQUIRE_CRIU is set.
func TestScripts(t *testing.T) {
	criu, missing := checkpoint.Find(t.Context())
	if os.Geteuid() != 0 {
		missing = errors.New("it takes root to checkpoint processes")
	}
	if missing != nil && os.Getenv("LOCKERD_REQUIRE_CRIU") != "" {
		t.Fatal(missing)
	}
	testscript.Run(t, testscript.Params{
		Dir: "testdata",
		Setup: func(env *testscript.Env) error {
			if criu != nil { // it may be below a home that scripts have not
				env.Setenv("LOCKERD_CRIU", criu.Path)
			}
			return nil
		},
		Condition: func(cond string) (bool, error) {
			if cond == "criu" {
				return missing == nil, nil
			}
			return false, errors.New("unknown condition " + cond)
		},
	})
}

// revive is revive FILE: it restarts, and ends with the job's status.
func revive() {
	job, err := checkpoint.Restart(context.Background(), checkpoint.Plan{File: os.Args[1]})
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	status, err := job.Wait()
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	os.Exit(status.ExitStatus())
}

// connected is a process with an open TCP connection to itself.
func connected() {
	var plain net.ListenConfig
	plain.SetMultipathTCP(false) // which CRIU does not know
	l, err := plain.Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err == nil {
		if _, err = net.Dial("tcp", l.Addr().String()); err == nil {
			_, err = l.Accept()
		}
	}
	fmt.Println("connected", err)
	for {
		_ = unix.Pause()
	}
}

// traced is traced PID: it traces a process, says so, and goes with SIGTERM.
func traced() {
	var pid int
	if _, err := fmt.Sscan(os.Args[1], &pid); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	end := make(chan os.Signal, 1)
	signal.Notify(end, syscall.SIGTERM)
	if _, _, errno := unix.Syscall6(unix.SYS_PTRACE, unix.PTRACE_SEIZE, uintptr(pid), 0, 0, 0, 0); errno != 0 {
		fmt.Println(errno)
		os.Exit(1)
	}
	fmt.Println("traced")
	<-end
}

// served is served COMMAND...: a job that may checkpoint itself. It ends as the job does.
func served() {
	const socket = "checkpoint.socket"
	l, err := self.Listen(socket)
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	here, err := os.Getwd()
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	cmd := exec.Command(os.Args[1], os.Args[2:]...)
	cmd.Env = append(os.Environ(), self.SocketVariable+"="+here+"/"+socket)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	go func() { // it lasts as long as we do
		if err := self.Serve(context.Background(), l, self.Options{}); err != nil && !errors.Is(err, net.ErrClosed) {
			fmt.Println(err)
		}
	}()
	_ = cmd.Wait()
	_ = l.Close()
	status := cmd.ProcessState.Sys().(syscall.WaitStatus)
	if status.Signaled() {
		os.Exit(128 + int(status.Signal()))
	}
	os.Exit(status.ExitStatus())
}

// aloneTime is many times what a test takes.
const aloneTime = 3 * time.Minute

// alone is alone COMMAND...: its orphans are its children, and when the command has ended
// it kills and reaps them, so that their numbers are free. It bounds what a script that
// waits for the wrong thing may take.
func alone() {
	_ = unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
	_ = unix.CloseRange(3, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC) // what we were given may be of other mounts
	pid, err := syscall.ForkExec("/bin/sh", os.Args, &syscall.ProcAttr{Env: os.Environ(), Files: []uintptr{0, 1, 2}})
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	time.AfterFunc(aloneTime, func() {
		fmt.Fprintln(os.Stderr, "alone: it did not end in", aloneTime)
		_ = syscall.Kill(pid, syscall.SIGKILL)
	})
	code, ended := 0, false
	for {
		var status syscall.WaitStatus
		got, err := syscall.Wait4(-1, &status, 0, nil)
		if err == syscall.ECHILD {
			os.Exit(code)
		}
		if err == nil && got == pid {
			code, ended = status.ExitStatus(), true
		}
		if ended {
			killChildren()
		}
	}
}

func killChildren() {
	text, _ := os.ReadFile(fmt.Sprintf("/proc/self/task/%d/children", os.Getpid()))
	for word := range strings.FieldsSeq(string(text)) {
		if pid, err := strconv.Atoi(word); err == nil {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	}
}
