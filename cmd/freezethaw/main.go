// Command freezethaw runs a command while other processes stand still.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/lockerd/lockerd/cmd/internal/freezing"
	"github.com/lockerd/lockerd/freezer"
	"github.com/lockerd/lockerd/getopt"
	"github.com/lockerd/lockerd/job"
)

// version is set by the linker in releases.
var version = "2.0"

var program = getopt.Program{
	Name: "freezethaw", Version: version, Usage: usage, UsageEnd: usageEnd, Statuses: freezing.Statuses,
}

// grace is the time that a command has to end in when it is no longer alone.
const grace = 10 * time.Second

func main() {
	freezer.AtGuard()
	job.AtGate()
	os.Exit(run(os.Args[1:]))
}

func run(args []string) int {
	o, err := parse(args)
	switch {
	case err != nil:
		return program.Misused(err)
	case o.Asked():
		return program.Answer(o.Standard, flags(&options{}))
	case o.list:
		return list(o.json)
	case o.recover:
		return recovered(o.json)
	case o.dryRun:
		return survey(o)
	}
	return freeze(o)
}

// freeze runs the command while everything is frozen. From the freeze to the thaw
// nothing is written: the terminal may stand still.
func freeze(o *options) int {
	signals := job.Notify()
	pipe := make(chan os.Signal, 1) // not for the command, which has its own pipes
	signal.Notify(pipe, syscall.SIGPIPE)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	// Before Prepare: afterwards a guard would be our child.
	guard, err := freezer.Start(ctx, "")
	if err != nil {
		return complain(err)
	}
	defer guard.Close()
	j, err := job.Prepare(job.Options{Argv: o.command, Signals: signals, LostSignal: syscall.SIGTERM, Grace: grace})
	if err != nil {
		fmt.Fprintln(os.Stderr, "freezethaw:", err)
		return job.StartCode(err)
	}
	o.order.Except = []int{j.PID()}
	var report freezer.Report
	answer := make(chan error, 1)
	go func() {
		var err error
		report, err = guard.Freeze(ctx, o.order)
		answer <- err
	}()
	var sig os.Signal
	select {
	case err = <-answer:
	case sig = <-signals:
	case sig = <-pipe:
	}
	if sig != nil {
		cancel()
		if <-answer == nil {
			_ = guard.Thaw()
		}
		j.Abandon()
		return interrupted(sig.(syscall.Signal))
	}
	if err != nil {
		j.Abandon()
		return complain(err)
	}
	if err := j.Open(nil, nil); err != nil {
		_ = guard.Thaw()
		fmt.Fprintln(os.Stderr, "freezethaw:", err)
		return job.StartCode(err)
	}
	piped := false
	select {
	case <-j.Done():
	case <-guard.Done():
		j.Lost() // does nothing if the command has ended meanwhile
	case <-pipe:
		piped = true
		_ = guard.Thaw()
		j.Lost()
	}
	exit := j.Wait()
	err = guard.Thaw()
	signal.Stop(pipe) // who writes to a broken pipe ends by it, as ever
	if o.verbose {
		tell(&report)
	}
	switch {
	case err != nil:
		fmt.Fprintln(os.Stderr, "freezethaw:", err)
		if exit.Left > 0 {
			fmt.Fprintf(os.Stderr, "freezethaw: %d processes of the command cannot be killed\n", exit.Left)
		}
		return freezing.ExitThawed
	case piped:
		return 128 + int(syscall.SIGPIPE)
	case exit.Interrupted:
		job.Interrupt()
	}
	return exit.Code
}

func interrupted(sig syscall.Signal) int {
	if sig == syscall.SIGINT && job.HasTerminal() {
		job.Interrupt()
	}
	return 128 + int(sig)
}

// complain says why nothing was frozen.
func complain(err error) int {
	if errors.Is(err, freezer.ErrUnstoppable) {
		err = fmt.Errorf("%w; --partial goes on without it", err)
	}
	return program.Complain(err)
}
