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
	"sync"
	"syscall"
	"time"

	"github.com/lockerd/lockerd/client"
	"github.com/lockerd/lockerd/freezer/checkpoint/fencefile"
	"github.com/lockerd/lockerd/job"
)

const (
	// releaseTime bounds the release after the command's end. Past it the cluster
	// finds out by itself that the process is gone.
	releaseTime = 10 * time.Second
	// anchorTime bounds the anchoring of the lock, by a node on this host.
	anchorTime = 5 * time.Second
	// signalLag is how much later than another process of our group we may get a signal
	// of the terminal.
	signalLag = 100 * time.Millisecond
	// remainInterval is the pause between two looks at what a killed command has left.
	remainInterval = 50 * time.Millisecond
)

// hold takes the lock for the command's process, runs the command and gives the
// lock up.
func hold(s *settings) int {
	b, code, err := prepareBatch(s)
	if err != nil {
		fmt.Fprintln(os.Stderr, "lockersh:", err)
		return code
	}
	signals := b.notify(s)
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
	if s.job.WaitAll {
		// The hold is to outlive the command, so it is ours: we end last.
		s.locker.PID = os.Getpid()
	}
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
		if sig := late(signals); sig != 0 {
			return interrupted(sig)
		}
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
	var anchor *os.File
	if b == nil {
		anchor = takeAnchor(l)
	}
	if anchor != nil {
		// Ours stays open: the lock is to be released by us when the command has
		// ended, and not by the node, which hears of that end at the same moment.
		defer anchor.Close()
	}
	if guard != nil && anchor == nil {
		bare, err := withoutAutounlock(s, l)
		if err != nil {
			fmt.Fprintln(os.Stderr, "lockersh:", err)
			j.Abandon()
			release(l)
			return lockCode(err)
		}
		l = bare
	}
	if err := guard.watch(j.PID(), anchor, l.Grant().Since+s.locker.Lease); err != nil {
		fmt.Fprintln(os.Stderr, "lockersh:", err)
		j.Abandon()
		release(l)
		return exitInternal
	}
	if err := guard.know(b); err != nil {
		fmt.Fprintln(os.Stderr, "lockersh:", err)
		j.Abandon()
		release(l)
		return exitInternal
	}
	if err := j.Open(environment(l, id, b), anchor); err != nil {
		release(l)
		if errors.Is(err, job.ErrFallen) {
			if sig := late(signals); sig != 0 {
				return interrupted(sig)
			}
		}
		fmt.Fprintln(os.Stderr, "lockersh:", err)
		return job.StartCode(err)
	}
	b.run()
	watch(s, j, l, guard)
	exit := j.Wait()
	if b != nil && exit.Signaled {
		// It may have been the runner that was killed, and not the command.
		if guard != nil {
			guard.strike()
		} else if left := job.KillBelow(); left > 0 {
			fmt.Fprintf(os.Stderr, "lockersh: %d processes of the command cannot be killed\n", left)
		}
	}
	return b.status(finish(s, exit, l, guard, anchor))
}

// late is the signal that has ended the process at the gate, if the terminal sent it
// to both of us: ours may come a moment later. 0 if it was not that.
func late(signals <-chan os.Signal) syscall.Signal {
	select {
	case sig := <-signals:
		return sig.(syscall.Signal)
	case <-time.After(signalLag):
		return 0
	}
}

// takeAnchor ties the lock to who inherits the file, where there is a node that can
// do that. Nil elsewhere: then the command's process alone counts.
func takeAnchor(l *client.Locker) *os.File {
	ctx, cancel := context.WithTimeout(context.Background(), anchorTime)
	defer cancel()
	anchor, err := l.Anchor(ctx)
	if err != nil {
		return nil
	}
	return anchor
}

// withoutAutounlock asks for the same hold again, as one that only its lease and its
// release end. With no anchor, the death of the command alone would free the lock
// while the guard still kills what the command has started.
func withoutAutounlock(s *settings, l *client.Locker) (*client.Locker, error) {
	o := s.locker
	o.Autounlock, o.Try = false, true
	o.User, o.Request = l.User(), l.Grant().ID
	o.Locks = l.LockNames()
	o.All = len(o.Locks) > 1
	ctx, cancel := context.WithTimeout(context.Background(), o.Lease)
	defer cancel()
	bare, err := client.Acquire(ctx, o)
	if err != nil {
		return nil, err
	}
	if bare.Fence() != l.Fence() {
		release(bare)
		return nil, client.ErrLost
	}
	_ = l.Close() // which keeps it
	return bare, nil
}

// watch waits for the end of the command, and ends it when the lock is lost.
func watch(s *settings, j *job.Job, l *client.Locker, guard *guard) {
	lost := l.Lost()
	for {
		select {
		case <-j.Done():
			return
		case loss := <-lost:
			lost = nil
			if loss.Cause == client.CauseProcess && !s.job.WaitAll {
				// The cluster has heard of the command's end before us.
				break
			}
			if loss.Cause == client.CauseSuspended {
				// What is on disk is to go on, and not this. Who has put it there ends it
				// too, unless he was ended before he came to it.
				j.Lost()
				break
			}
			fmt.Fprintf(os.Stderr, "lockersh: lost the lock %s: %v; ending the command\n", s.lockNames(), loss)
			j.Lost()
		case <-guard.gone():
			if guard.due() {
				fmt.Fprintf(os.Stderr, "lockersh: the lease of %s ran out while lockersh stood still; its guard has ended the command\n", s.lockNames())
			} else {
				fmt.Fprintln(os.Stderr, "lockersh: its guard was killed, and nothing would end the command in time if lockersh hung; ending the command")
			}
			guard.forget()
			j.Lost()
		}
	}
}

// finish releases the lock after the command, unless something of it runs on against
// its will.
func finish(s *settings, exit job.Exit, l *client.Locker, guard *guard, anchor *os.File) int {
	suspended := false
	switch {
	case exit.Remains > 0 && guard != nil:
		// Nobody would renew the lease for what is left.
		guard.strike()
		suspended = release(l)
	case exit.Remains > 0:
		outlive(s, exit.Remains, l, anchor)
	default:
		suspended = release(l)
	}
	switch {
	case exit.Left > 0:
		fmt.Fprintf(os.Stderr, "lockersh: %d processes of the command cannot be killed\n", exit.Left)
		return exitLost
	case suspended:
		fmt.Fprintf(os.Stderr, "lockersh: the command has been put on disk, and the lock %s is kept for it: see lockctl locks\n", s.lockNames())
		return exitSuspended
	case exit.Lost:
		return exitLost
	case exit.Interrupted:
		guard.dismiss()
		job.Interrupt()
	}
	return exit.Code
}

// outlive leaves the lock to what a killed command has left running, if all of that
// has the anchor, and otherwise waits for it: or until a signal comes.
func outlive(s *settings, remain int, l *client.Locker, anchor *os.File) {
	fmt.Fprintf(os.Stderr, "lockersh: the command was killed, but %d of the processes that it started run on; the lock %s ends with them\n",
		remain, s.lockNames())
	again := time.NewTicker(remainInterval)
	defer again.Stop()
	for {
		all, without := job.Remaining(anchor)
		switch {
		case all == 0:
			release(l)
			return
		case without == 0:
			_ = l.Close() // which keeps it
			return
		}
		select {
		case <-again.C:
		case <-s.job.Signals:
			_ = l.Close()
			return
		}
	}
}

// guard is the lease's guard, nil without a lease.
type guard struct {
	process *job.Guard
	dead    bool
	ahead   time.Duration

	mu    sync.Mutex
	until time.Duration // its deadline
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
	g := &guard{process: process, ahead: guardAhead(lease)}
	s.locker.Hooks.Renewed = g.extend
	return g, nil
}

// watch has to come before the command runs.
func (g *guard) watch(pid int, inherited *os.File, until time.Duration) error {
	if g == nil {
		return nil
	}
	g.extend(until)
	return g.process.Watch(pid, inherited)
}

// know tells the guard how processes are known that are restored.
func (g *guard) know(b *batch) error {
	mark := b.mark()
	if g == nil || mark == "" {
		return nil
	}
	return g.process.Mark(mark)
}

// extend is for the end of the lease. What comes late, with an earlier one, counts
// no more.
func (g *guard) extend(until time.Duration) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if until -= g.ahead; until > g.until {
		g.until = until
		// Without a guard the command is ended, by whoever reads gone.
		_ = g.process.Extend(until)
	}
}

func (g *guard) gone() <-chan struct{} {
	if g == nil || g.dead {
		return nil
	}
	return g.process.Gone()
}

// due says whether the guard had reason to act.
func (g *guard) due() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return client.Clock() >= g.until
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

// release gives the lock up, unless it is kept for the command, which is on disk. Its
// failure does not change what the command's exit status says, and is not for ever: the
// lock ends with this process.
func release(l *client.Locker) (suspended bool) {
	ctx, cancel := context.WithTimeout(context.Background(), releaseTime)
	defer cancel()
	names := strings.Join(l.LockNames(), ":")
	err := l.Unlock(ctx)
	if err != nil && !errors.Is(err, client.ErrLost) && !errors.Is(err, client.ErrUncertain) {
		fmt.Fprintf(os.Stderr, "lockersh: cannot release the lock %s: %v; the cluster does it when it learns of the command's end\n", names, err)
	}
	return errors.Is(err, client.ErrSuspended)
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
func environment(l *client.Locker, id string, b *batch) []string {
	changes := []string{job.Mark(id), "LOCKER_LOCK=" + strings.Join(l.LockNames(), ":"), "LOCKER_FENCE"}
	if mark := b.mark(); mark != "" {
		changes[0] = job.Mark(id, mark)
		changes = append(changes, fencefile.Variable+"="+fencefile.Path(b.Lock))
	}
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
