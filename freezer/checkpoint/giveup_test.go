package checkpoint

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// spin writes over and over how often it has written, without a pause.
func spin([]string) {
	f, err := os.Create("spun")
	if err != nil {
		panic(err)
	}
	for n := 1; ; n++ {
		if _, err := f.WriteAt(fmt.Appendf(nil, "%20d", n), 0); err != nil {
			panic(err)
		}
		if n == 1 {
			fmt.Println(n, "pid", os.Getpid())
		}
	}
}

// allButFree says whether CRIU has a process in its last system call, which gives it the
// registers with which it is to go on: let go then, it runs. See proc_pid_syscall(5).
func allButFree(pid int) bool {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/syscall", pid))
	return err == nil && strings.HasPrefix(string(text), fmt.Sprint(unix.SYS_RT_SIGRETURN, " "))
}

// knownAs finds the process below us that has a number in the innermost namespace that it is of,
// or 0. See proc_pid_status(5).
func knownAs(number int) (pid int) {
	all, _ := readTable()
	for pid := range all {
		text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		_, rest, _ := strings.Cut(string(text), "\nNSpid:\t")
		line, _, _ := strings.Cut(rest, "\n")
		if words := strings.Fields(line); len(words) > 1 && words[len(words)-1] == strconv.Itoa(number) && all.below(pid, os.Getpid()) {
			return pid
		}
	}
	return 0
}

// What was never let run has never run, also if the restart is given up in the moment in
// which the processes are whole and only CRIU still holds them.
func TestGivenUpRestartsHaveNotRun(t *testing.T) {
	c := need(t)
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	// The leader of its session and group is not saved.
	cmd := exec.Command("/bin/sh", "-c", `"$0" & wait $!; exit`, program)
	cmd.Env = append(os.Environ(), roleVariable+"=spin", "GORACE=atexit_sleep_ms=0")
	j := start(t, cmd)
	file, r := j.save(t, func(o *Order) { o.Target, o.Signal = Tree(j.field("pid")), 0 })
	j.kill()
	before, err := os.ReadFile(j.path("spun"))
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name string
		plan Plan
	}{
		{"a child", Plan{}},
		{"in its own session", Plan{KeepSessions: true, KeepGroups: true}},
		{"in a namespace", Plan{NewPIDs: true}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			strikes := 0
			for round := 0; strikes == 0 || strikes < 3 && round < 30; round++ {
				if round == 100 {
					t.Fatal("not one of 100 was given up in time")
				}
				p := tt.plan
				p.File, p.CRIU, p.Signal = file, c, syscall.SIGSTOP
				ctx, cancel := context.WithCancel(t.Context())
				done := make(chan error, 1)
				go func() {
					job, err := Restart(ctx, p)
					if err == nil { // given up too late
						job.Kill()
						_, _ = job.Wait()
					}
					cancel()
					done <- err
				}()
				pid := r.Manifest.Root
				if p.NewPIDs {
					for pid = 0; pid == 0 && ctx.Err() == nil; {
						pid = knownAs(r.Manifest.Root)
					}
				}
				struck := false
				for ctx.Err() == nil {
					if allButFree(pid) {
						struck = true
						cancel()
					}
				}
				err := <-done
				if err != nil && !errors.Is(err, context.Canceled) && !errors.Is(err, syscall.EINTR) {
					t.Fatal(err)
				}
				if err != nil && struck {
					strikes++
				}
				for _, p := range r.Manifest.Processes {
					reapAll([]int{p.PID})
					if exists(p.PID) {
						t.Fatalf("process %d is still there", p.PID)
					}
				}
				if after, err := os.ReadFile(j.path("spun")); err != nil || string(after) != string(before) {
					t.Fatalf("it had written %s times, and then %s: %v", before, after, err)
				}
				await(t, "the leader to end", func() bool { return !exists(j.pid()) })
				noBoxes(t, j.dir)
			}
		})
	}
}
