package main

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/lockerd/lockerd/client"
	"github.com/lockerd/lockerd/job"
)

const (
	// releaseTime bounds the release after the command's end. Past it the cluster
	// finds out by itself that the process is gone.
	releaseTime = 10 * time.Second
	// anchorTime bounds the anchoring of the lock, by a node on this host.
	anchorTime = 5 * time.Second
)

// hold takes the lock for the command's process, runs the command and gives the
// lock up.
func hold(s *settings) int {
	signals := job.Notify()
	s.job.Signals = signals
	id := newID()
	guard, err := startGuard(s, id)
	if err != nil {
		fmt.Fprintln(os.Stderr, "lockersh:", err)
		return exitInternal
	}
	defer guard.dismiss()
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
	anchored, err := open(j, l, guard, id)
	if err != nil {
		fmt.Fprintln(os.Stderr, "lockersh:", err)
		release(l)
		return job.StartCode(err)
	}
	return finish(s, j, l, guard, anchored)
}

// open runs the command with an anchor of the lock, where there can be one.
func open(j *job.Job, l *client.Locker, guard *guard, id string) (anchored bool, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), anchorTime)
	anchor, err := l.Anchor(ctx)
	cancel()
	if err == nil {
		// Ours must go: what counts is who else has it open.
		defer anchor.Close()
	}
	if err := guard.watch(j.PID(), anchor); err != nil {
		j.Abandon()
		return false, err
	}
	return err == nil, j.Open(environment(l, id), anchor)
}

// finish waits for the end of the command, or ends it when the lock is lost.
func finish(s *settings, j *job.Job, l *client.Locker, guard *guard, anchored bool) int {
	ended := j.Ended()
	lost := l.Lost()
	for running := true; running; {
		select {
		case <-j.Done():
			running = false
		case <-ended:
			ended = nil
			if !s.job.WaitAll {
				break
			}
			// What is left has no process that the cluster could watch, but us.
			ctx, cancel := context.WithTimeout(context.Background(), releaseTime)
			err := l.Transfer(ctx, os.Getpid())
			cancel()
			if err != nil && !errors.Is(err, client.ErrLost) && !anchored {
				fmt.Fprintln(os.Stderr, "lockersh: the cluster watches the command still, and not lockersh:", err)
			}
			if err == nil {
				lost = l.Lost()
			}
		case loss := <-lost:
			lost = nil
			if loss.Cause == "" {
				break // Transfer has closed the channel
			}
			fmt.Fprintf(os.Stderr, "lockersh: lost the lock %s: %v; ending the command\n", s.lockNames(), loss)
			j.Lost()
		case <-guard.gone():
			guard.forget()
			fmt.Fprintln(os.Stderr, "lockersh: its guard was killed, and nothing would end the command in time if lockersh hung; ending the command")
			j.Lost()
		}
	}
	exit := j.Wait()
	if exit.Remains > 0 && guard != nil {
		// Nobody would renew the lease for what is left.
		guard.strike()
		exit.Remains = 0
	}
	if exit.Remains > 0 && anchored {
		fmt.Fprintf(os.Stderr, "lockersh: the command was killed, but %d processes that it started run on; the lock %s ends with them\n",
			exit.Remains, s.lockNames())
		_ = l.Close()
	} else {
		release(l)
	}
	switch {
	case exit.Left > 0:
		fmt.Fprintf(os.Stderr, "lockersh: %d processes of the command cannot be killed\n", exit.Left)
		return exitLost
	case exit.Lost:
		return exitLost
	case exit.Interrupted:
		guard.dismiss()
		job.Interrupt()
	}
	return exit.Code
}

// guard is the lease's guard, nil without a lease.
type guard struct {
	process *job.Guard
	dead    bool
}

// startGuard makes the lease one that ends with the command dead: the guard's
// deadline is before the lease's end, and after the time at which the command is
// killed by ourselves if we can.
func startGuard(s *settings, id string) (*guard, error) {
	lease := s.locker.Lease
	if lease == 0 {
		return nil, nil
	}
	process, err := job.StartGuard(id, "guards the lease of "+s.lockNames())
	if err != nil {
		return nil, err
	}
	s.locker.Hooks.Renewed = func(until time.Duration) {
		// Without a guard the command is ended, by whoever reads gone.
		_ = process.Extend(until - guardAhead(lease))
	}
	return &guard{process: process}, nil
}

func (g *guard) watch(pid int, inherited *os.File) error {
	if g == nil {
		return nil
	}
	return g.process.Watch(pid, inherited)
}

func (g *guard) gone() <-chan struct{} {
	if g == nil || g.dead {
		return nil
	}
	return g.process.Gone()
}

func (g *guard) forget() { g.dead = true }

// strike has the guard kill what there is of the command.
func (g *guard) strike() { g.process.Strike() }

func (g *guard) dismiss() {
	if g != nil {
		g.process.Dismiss()
	}
}

// newID is the mark of one hold in the environment of its processes.
func newID() string {
	var id [16]byte
	rand.Read(id[:])
	return hex.EncodeToString(id[:])
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
func environment(l *client.Locker, id string) []string {
	changes := []string{job.Mark(id), "LOCKER_LOCK=" + strings.Join(l.LockNames(), ":"), "LOCKER_FENCE"}
	if f := l.Fence(); f != 0 {
		changes[2] += "=" + strconv.FormatUint(f, 10)
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
