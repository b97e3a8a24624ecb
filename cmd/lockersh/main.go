// Lockersh runs a command for as long as it holds a lock of the cluster.
package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/lockerd/lockerd/client"
	"github.com/lockerd/lockerd/job"
)

// version is set by the linker in releases.
var version = "2.0"

// Exit statuses of our own, after sysexits(3) where it has one.
const (
	exitUsage       = 64
	exitUnavailable = 69
	exitTempFail    = 75
	exitLost        = 76
	exitInternal    = 70
)

// releaseTime bounds the release after the command's end. Past it the cluster
// finds out by itself that this process is gone.
const releaseTime = 10 * time.Second

func main() {
	job.AtGate()
	os.Exit(run(os.Args[1:]))
}

func run(args []string) int {
	s, err := read(args)
	if err != nil {
		if e := (*usageError)(nil); errors.As(err, &e) && e.detail != "" {
			fmt.Fprintln(os.Stderr, e.detail)
		}
		fmt.Fprintf(os.Stderr, "%%Error: %v\n", err)
		return exitUsage
	}
	switch {
	case s.help:
		fmt.Print(usage, flags(&raw{}).FlagUsagesWrapped(79), usageEnd)
		return 0
	case s.version:
		fmt.Println("Version:", version)
		return 0
	}
	if s.verbose {
		s.locker.Verbose = os.Stdout
	}
	if s.list {
		l, err := client.New(s.locker)
		if err != nil {
			return misused(err)
		}
		return list(l, s.json)
	}
	return hold(s)
}

func misused(err error) int {
	fmt.Fprintf(os.Stderr, "%%Error: %v; see --help\n", err)
	return exitUsage
}

// hold takes the lock for the command's process, runs the command and gives the
// lock up.
func hold(s *settings) int {
	signals := job.Notify()
	s.job.Signals = signals
	j, err := job.Prepare(s.job)
	if err != nil {
		fmt.Fprintln(os.Stderr, "lockersh:", err)
		return job.StartCode(err)
	}
	s.locker.PID = j.PID()
	l, err := client.New(s.locker)
	if err != nil {
		j.Abandon()
		return misused(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	answer := make(chan error, 1)
	go func() { answer <- l.Lock(ctx) }()
	giveUp := func() {
		cancel()
		if <-answer == nil {
			release(l)
		}
		j.Abandon()
	}
	select {
	case err = <-answer:
	case sig := <-signals:
		giveUp()
		return interrupted(sig.(syscall.Signal))
	case <-j.Done():
		giveUp()
		fmt.Fprintln(os.Stderr, "lockersh: the process that was to run the command has been killed")
		return exitInternal
	}
	if err != nil {
		j.Abandon()
		fmt.Fprintln(os.Stderr, "lockersh:", err)
		return lockCode(err)
	}

	if err := writeFence(s.fenceFD, l.Fence()); err != nil {
		fmt.Fprintf(os.Stderr, "lockersh: cannot write the fence to descriptor %d: %v\n", s.fenceFD, err)
		j.Abandon()
		release(l)
		return exitInternal
	}
	if err := j.Open(environment(l), nil); err != nil {
		fmt.Fprintln(os.Stderr, "lockersh:", err)
		release(l)
		return job.StartCode(err)
	}
	select {
	case <-j.Done():
	case loss := <-l.Lost():
		fmt.Fprintf(os.Stderr, "lockersh: lost the lock %s: %v; ending the command\n", strings.Join(l.LockNames(), ":"), loss)
		j.Lost()
	}
	exit := j.Wait()
	release(l)
	switch {
	case exit.Left > 0:
		fmt.Fprintf(os.Stderr, "lockersh: %d processes of the command cannot be killed\n", exit.Left)
		return exitLost
	case exit.Lost:
		return exitLost
	case exit.Interrupted:
		job.Interrupt()
	}
	return exit.Code
}

// release gives the lock up. Its failure does not change what the command's exit
// status says, and is not for ever: the lock ends with this process.
func release(l *client.Locker) {
	ctx, cancel := context.WithTimeout(context.Background(), releaseTime)
	defer cancel()
	if err := l.Unlock(ctx); err != nil && !errors.Is(err, client.ErrLost) {
		fmt.Fprintln(os.Stderr, "lockersh: the lock is released by the cluster later, since it could not be now:", err)
	}
}

// interrupted ends a wait as the signal would have.
func interrupted(sig syscall.Signal) int {
	if sig == syscall.SIGINT && job.HasTerminal() {
		job.Interrupt()
	}
	return 128 + int(sig)
}

func lockCode(err error) int {
	switch {
	case errors.Is(err, client.ErrBusy), errors.Is(err, client.ErrTimeout):
		return exitTempFail
	case errors.Is(err, client.ErrNoServer), errors.Is(err, client.ErrRefused), errors.Is(err, client.ErrUnsupported):
		return exitUnavailable
	}
	return exitInternal
}

// environment is what the command may want to know of its lock, as changes to our
// own environment.
func environment(l *client.Locker) []string {
	changes := []string{"LOCKER_LOCK=" + strings.Join(l.LockNames(), ":"), "LOCKER_FENCE"}
	if f := l.Fence(); f != 0 {
		changes[1] += "=" + strconv.FormatUint(f, 10)
	}
	return changes
}

// writeFence writes to a descriptor that stays the command's: no os.File, which
// would close it.
func writeFence(fd int, fence uint64) error {
	if fd < 0 {
		return nil
	}
	text := strconv.AppendUint(nil, fence, 10)
	text = append(text, '\n')
	for len(text) > 0 {
		n, err := syscall.Write(fd, text)
		if err == syscall.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		text = text[n:]
	}
	return nil
}

// list prints who holds what.
func list(l *client.Locker, asJSON bool) int {
	ctx := context.Background()
	var err error
	if asJSON {
		var t client.Table
		if t, err = l.Table(ctx); err == nil {
			out := json.NewEncoder(os.Stdout)
			out.SetIndent("", "  ")
			err = out.Encode(t)
		}
	} else {
		var locks []client.Entry
		if locks, err = l.LockList(ctx); err == nil {
			slices.SortFunc(locks, func(a, b client.Entry) int {
				return cmp.Or(cmp.Compare(a.Lock, b.Lock), cmp.Compare(a.Owner, b.Owner))
			})
			for _, e := range locks {
				if _, err = fmt.Printf("%-20s %s\n", e.Lock, e.Owner); err != nil {
					break
				}
			}
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "lockersh:", err)
		return lockCode(err)
	}
	return 0
}
