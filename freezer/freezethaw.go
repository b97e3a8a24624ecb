package freezer

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

// Signals are those that [FreezeThaw] thaws on.
var Signals = []os.Signal{
	syscall.SIGHUP, syscall.SIGINT, syscall.SIGTERM, syscall.SIGPIPE,
	syscall.SIGALRM, syscall.SIGUSR1, syscall.SIGUSR2,
}

// Interrupt is the error of [FreezeThaw] when a signal has ended the freeze.
type Interrupt struct{ Signal os.Signal }

func (e *Interrupt) Error() string { return fmt.Sprintf("thawed because of a signal: %v", e.Signal) }

// FreezeThaw calls f while everything that the order names is frozen. When f returns,
// panics or calls runtime.Goexit, everything is thawed first; a panic then goes on.
//
// On one of [Signals], at the order's deadline and at the end of ctx, everything is
// thawed at once, though f goes on; the error then is an [Interrupt], [ErrDeadline]
// or that of ctx, joined with f's own. The signals are caught from before the first
// process is stopped until all run again. One that comes after the first has its
// usual effect, and those that the program ignores it goes on to ignore.
//
// f had better do little: a line that it writes to the terminal is read by a frozen
// process, and it would wait for that until the deadline.
func FreezeThaw(ctx context.Context, o Order, f func() error) (err error) {
	signals := make(chan os.Signal, 1)
	for _, s := range Signals {
		if !signal.Ignored(s) {
			signal.Notify(signals, s)
		}
	}
	defer signal.Stop(signals)
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	over, watched := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(watched)
		select {
		case s := <-signals:
			signal.Stop(signals)
			cancel(&Interrupt{s})
		case <-over:
		}
	}()
	defer func() {
		close(over)
		<-watched
	}()

	g, err := Start(ctx, "")
	if err != nil {
		return err
	}
	if _, err := g.Freeze(ctx, o); err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = g.Thaw() })
	defer func() { // without recover: a panic goes on by itself
		first := stop()
		terr := g.Thaw()
		if !first {
			terr = context.Cause(ctx)
		}
		err = errors.Join(err, terr)
	}()
	return f()
}
