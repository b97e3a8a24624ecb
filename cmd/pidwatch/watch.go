package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/lockerd/lockerd/pidprobe"
)

// repeat is the time between two signals to a command that goes on.
const repeat = time.Second

// task is what the process in the background does.
type task struct {
	Host  string // of the process watched
	PID   int32
	Port  uint16
	Names []string // of this host

	Foreground int32 // number of the process to end
	Signal     syscall.Signal
	SignalName string // as it was given, without - and SIG
	Killer     string // path of the program to end it with, or empty

	Debug bool
}

// source tells when a process has ended.
type source interface {
	// Resolve fails if there is no such host.
	Resolve(ctx context.Context, host string) error
	// AwaitDeath returns nil when the process has certainly ended, at once if the
	// host can tell, else within a second or so. It does not return for want of news.
	AwaitDeath(ctx context.Context, host string, pid int32) error
}

// watch is the life of the process in the background. It says through ready that
// it watches, or why it cannot, and acts once the command has started.
func (t *task) watch(ctx context.Context, from source, ready io.WriteCloser, started io.Reader, log *log.Logger) int {
	fail := func(err error) int {
		// For the one that started us: an error that it can tell from others.
		if errors.Is(err, pidprobe.ErrNoHost) {
			fmt.Fprint(ready, noHost)
		}
		fmt.Fprint(ready, err)
		ready.Close()
		return exitInternal
	}
	if err := from.Resolve(ctx, t.Host); err != nil {
		return fail(err)
	}
	fg, err := pidprobe.Lookup(t.Foreground)
	switch {
	case errors.Is(err, pidprobe.ErrDead):
	case err != nil:
		return fail(err)
	}
	fmt.Fprint(ready, isReady)
	ready.Close()
	if err != nil {
		log.Print(err)
		return 0
	}
	_, _ = io.Copy(io.Discard, started)
	log.Printf("watching process %d of %s, for process %d", t.PID, t.Host, fg.PID)

	ctx, cancel := context.WithCancel(ctx)
	gone := make(chan error, 1)
	go func() {
		err := pidprobe.Await(ctx, fg)
		if err == nil {
			cancel()
		} else if ctx.Err() == nil {
			log.Printf("no news of process %d: %v", fg.PID, err)
		}
		gone <- err
	}()
	defer func() {
		cancel()
		<-gone
	}()
	if err := from.AwaitDeath(ctx, t.Host, t.PID); err != nil {
		if ctx.Err() == nil {
			log.Printf("the watch ends: %v", err)
			return exitInternal
		}
		log.Printf("process %d has ended", fg.PID)
		return 0
	}
	log.Printf("process %d of %s has ended", t.PID, t.Host)
	return t.end(ctx, fg, log)
}

// end signals a process until it ends, or has the killer do it once.
func (t *task) end(ctx context.Context, fg pidprobe.Process, log *log.Logger) int {
	if t.Killer != "" {
		if pidprobe.Check(fg) == pidprobe.Dead {
			return 0
		}
		argv := []string{t.Killer, "-" + t.SignalName, strconv.Itoa(int(fg.PID))}
		log.Printf("calling %s", strings.Join(argv, " "))
		signal.Reset()
		err := syscall.Exec(t.Killer, argv, os.Environ())
		log.Printf("execute %s: %v; killing it ourselves", t.Killer, err)
	}
	for {
		log.Printf("signal %s to process %d", t.SignalName, fg.PID)
		switch err := pidprobe.Signal(fg, t.Signal); {
		case errors.Is(err, pidprobe.ErrDead):
			return 0
		case err != nil:
			log.Print(err) // and again: permission may come, as when it runs another program
		}
		select {
		case <-ctx.Done():
			return 0
		case <-time.After(repeat):
		}
	}
}
