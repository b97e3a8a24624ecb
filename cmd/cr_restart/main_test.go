package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"

	"github.com/lockerd/lockerd/freezer/checkpoint"
)

func TestMain(m *testing.M) {
	checkpoint.AtStage()
	testscript.Main(m, map[string]func(){"cr_restart": main, "save": save, "inspect": inspect, "alone": alone, "able": able})
}

// TestScripts runs testdata/*.txtar. What is in works.txtar takes root and CRIU, and fails
// without them only if LOCKERD_REQUIRE_CRIU is set.
func TestScripts(t *testing.T) {
	criu, missing := checkpoint.Find(t.Context())
	if os.Geteuid() != 0 {
		missing = errors.New("it takes root to restart processes")
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
			switch cond {
			case "criu":
				return missing == nil, nil
			case "users":
				return !lacksResource() || asRoot("true").Run() == nil, nil
			}
			return false, errors.New("unknown condition " + cond)
		},
	})
}

// save is save PID FILE: it checkpoints and ends a tree.
func save() {
	pid, err := strconv.Atoi(os.Args[1])
	if err == nil {
		_, err = checkpoint.Checkpoint(context.Background(),
			checkpoint.Order{Target: checkpoint.Tree(pid), File: os.Args[2], Signal: syscall.SIGKILL, NoSync: true})
	}
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
}

// inspect is inspect FILE: it names the processes in it.
func inspect() {
	f, err := os.Open(os.Args[1])
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	m, err := checkpoint.Inspect(f, true)
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	for _, p := range m.Processes {
		fmt.Println(p.Command)
	}
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

// able is able COMMAND...: alone, where root may checkpoint processes of other users. In many
// containers it may not look at their limits, but the root of a user namespace may. (That one
// may not restart them.)
func able() {
	if !lacksResource() {
		alone()
	}
	cmd := asRoot("sh", append([]string{"-c", `mount -t proc proc /proc && exec alone "$@"`, "sh"}, os.Args[1:]...)...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if err := cmd.Run(); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
}

func lacksResource() bool {
	var data [2]unix.CapUserData
	err := unix.Capget(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &data[0])
	return err != nil || data[0].Effective&(1<<unix.CAP_SYS_RESOURCE) == 0
}

// asRoot runs a command as the root of new namespaces.
func asRoot(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(name, args...)
	ids := []syscall.SysProcIDMap{{Size: 65536}}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWPID | syscall.CLONE_NEWNS,
		UidMappings: ids, GidMappings: ids, GidMappingsEnableSetgroups: true,
	}
	return cmd
}

func killChildren() {
	text, _ := os.ReadFile(fmt.Sprintf("/proc/self/task/%d/children", os.Getpid()))
	for word := range strings.FieldsSeq(string(text)) {
		if pid, err := strconv.Atoi(word); err == nil {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	}
}
