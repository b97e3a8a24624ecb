// Command cr_restart starts processes again from a checkpoint file.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/lockerd/lockerd/freezer/checkpoint"
)

// version is set by the linker in releases.
var version = "2.0"

func main() {
	checkpoint.AtStage()
	os.Exit(run(os.Args[1:]))
}

func run(args []string) int {
	o, err := parse(args)
	if err != nil {
		return o.failed(err)
	}
	switch {
	case o.help:
		fmt.Print(usage, flags(&options{}).FlagUsagesWrapped(79), usageEnd)
		return 0
	case o.version:
		fmt.Println("Version:", version)
		return 0
	}
	return restart(o)
}

func restart(o *options) int {
	signals := make(chan os.Signal, 8)
	for _, s := range passedOn {
		if !signal.Ignored(s) {
			signal.Notify(signals, s)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	type answer struct {
		job *checkpoint.Job
		err error
	}
	started := make(chan answer, 1)
	go func() {
		job, err := checkpoint.Restart(ctx, o.plan)
		started <- answer{job, err}
	}()
	var a answer
	select {
	case a = <-started:
	case s := <-signals:
		cancel()
		if a = <-started; a.err != nil {
			end(s.(syscall.Signal))
		}
		_ = a.job.Signal(s.(syscall.Signal)) // it was ready in the same moment
	}
	if a.err != nil {
		return o.failed(a.err)
	}
	job := a.job
	if o.kmsg == kmsgWarning {
		o.tell(job.Warnings)
	}
	if err := job.Mark(o.omit); err != nil {
		o.say("cr_restart: warning: " + err.Error())
	}
	if o.success != "" {
		if status := system(o.success); status != 0 {
			return status
		}
	}
	go func() { // it lasts as long as we do
		for s := range signals {
			// What the terminal sends reaches the job by itself if it is of our group.
			if s != syscall.SIGINT && s != syscall.SIGQUIT || o.plan.KeepGroups || o.plan.KeepSessions {
				_ = job.Signal(s.(syscall.Signal))
			}
		}
	}()
	status, err := job.Wait()
	if err != nil {
		o.say("cr_restart: " + err.Error())
		return int(syscall.ECHILD)
	}
	if status.Signaled() {
		end(status.Signal())
	}
	return status.ExitStatus()
}

// passedOn are the signals that are meant for the job when they are sent to us.
var passedOn = []os.Signal{
	syscall.SIGHUP, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGTERM, syscall.SIGUSR1, syscall.SIGUSR2,
}

// failed runs the hook for an error, or says what it is, and returns the exit status.
func (o *options) failed(err error) int {
	e := &checkpoint.Error{Class: checkpoint.Perm, Errno: syscall.EIO}
	errors.As(err, &e)
	if hook := o.failure[e.Class]; hook != "" {
		if status := system(hook); status != 0 {
			return status
		}
	}
	hint := ""
	switch {
	case errors.Is(err, checkpoint.ErrUntrusted):
		hint = ", or say --trust"
	case errors.Is(err, checkpoint.ErrInUse) && !o.plan.NewPIDs:
		hint = ": end that, or say --no-restore-pid"
	case errors.Is(err, checkpoint.ErrSuspended):
		hint = ", or without it, with --without-lock"
	}
	o.say("Restart failed: " + err.Error() + hint)
	if o.kmsg != kmsgNone {
		o.tell(e.Log)
	}
	return int(e.Errno)
}

func (o *options) tell(log []string) {
	for _, line := range log {
		o.say("CRIU: " + line)
	}
}

func (o *options) say(line string) {
	if !o.quiet {
		fmt.Fprintln(os.Stderr, strings.ReplaceAll(line, "\n", "; "))
	}
}

// system is system(3), but for the status of a command that a signal has ended, which
// is 128 and its number.
func system(command string) int {
	cmd := exec.Command("/bin/sh", "-c", command)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	err := cmd.Run()
	if err == nil {
		return 0
	}
	if cmd.ProcessState == nil {
		return 127
	}
	if status := cmd.ProcessState.Sys().(syscall.WaitStatus); status.Signaled() {
		return 128 + int(status.Signal())
	}
	return cmd.ProcessState.ExitCode()
}

// end ends this process by a signal, as the job was, and without a core: that would be
// ours, not the job's.
func end(sig syscall.Signal) {
	_ = unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{})
	// struct kernel_sigaction with SIG_DFL. signal.Reset leaves the handlers of the
	// runtime, which for SIGABRT and the like prints all goroutines.
	var action [4]uint64
	_, _, _ = syscall.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(sig), uintptr(unsafe.Pointer(&action)), 0, 8, 0, 0)
	_ = unix.Kill(os.Getpid(), sig)
	for {
		_ = unix.Pause()
	}
}
