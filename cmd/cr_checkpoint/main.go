// Command cr_checkpoint saves running processes in a checkpoint file.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/lockerd/lockerd/freezer/checkpoint"
	"github.com/lockerd/lockerd/freezer/checkpoint/self"
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
	case o.self:
		return o.checkpointSelf()
	}
	// Without this a reader of --fd 1 that goes away ends us before we have cleaned up.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	if o.timeout > 0 {
		var stop context.CancelFunc
		ctx, stop = context.WithTimeoutCause(ctx, o.timeout, errLate)
		defer stop()
	}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGHUP, syscall.SIGINT, syscall.SIGTERM)
	go func() { // it lasts as long as we do
		s := <-signals
		signal.Stop(signals)
		cancel(checkpoint.NewError(checkpoint.Temp, syscall.EINTR, fmt.Errorf("given up: %v", s)))
	}()
	if o.backup != "" {
		if o.order.Backup, err = backupName(o.order.File, o.backup); err != nil {
			return o.failed(err)
		}
	}
	report, err := checkpoint.Checkpoint(ctx, o.order)
	if err != nil {
		return o.failed(err)
	}
	if o.kmsg == kmsgWarning {
		o.tell(report.Warnings)
	}
	if o.verbose {
		o.report(report)
	}
	return 0
}

// exitRestored says with --self that it is a restart.
const exitRestored = 10

// checkpointSelf has the job saved that we are of. A signal ends us as it does any
// program: what is under way is the server's.
func (o *options) checkpointSelf() int {
	restored, err := self.Checkpoint(context.Background(), o.file, self.Mode(o.exit))
	var no *self.Error
	switch {
	case errors.As(err, &no):
		err = checkpoint.NewError(checkpoint.Env, no.Errno, err)
	case errors.Is(err, self.ErrNoServer):
		err = checkpoint.NewError(checkpoint.Env, syscall.ENOENT, err)
	case err != nil:
		errno := syscall.EIO
		errors.As(err, &errno)
		err = checkpoint.NewError(checkpoint.Env, errno, err)
	case restored:
		return exitRestored
	default:
		return 0
	}
	if code := o.failed(err); code != exitRestored {
		return code
	}
	return int(syscall.EIO)
}

var errLate = checkpoint.NewError(checkpoint.Temp, syscall.ETIMEDOUT, errors.New("it took longer than --time allows"))

func (o *options) report(r *checkpoint.Report) {
	to := o.order.File
	if to == "" {
		to = fmt.Sprintf("file descriptor %d", o.fd)
	}
	n := len(r.Manifest.Processes)
	what := fmt.Sprintf("%d processes", n)
	if n == 1 {
		what = "1 process"
	}
	line := fmt.Sprintf("cr_checkpoint: %s, %.1f MB in %s", what, float64(r.Size)/1e6, to)
	if r.Pause > 0 {
		line += fmt.Sprintf("; they stood still for %v", r.Pause.Round(time.Millisecond))
	}
	o.say(line)
}

// failed says what an error is, and returns the exit status.
func (o *options) failed(err error) int {
	e := &checkpoint.Error{Class: checkpoint.Perm, Errno: syscall.EIO}
	errors.As(err, &e)
	o.say("Checkpoint failed: " + err.Error())
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
