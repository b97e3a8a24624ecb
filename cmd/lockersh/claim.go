package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/lockerd/lockerd/client"
	"github.com/lockerd/lockerd/job"
	"github.com/lockerd/lockerd/pidprobe"
)

// claim takes the lock for a process that runs already, which holds it until its
// end, or gives it up for that process.
func claim(s *settings) int {
	p, err := pidprobe.Lookup(s.process)
	if err != nil {
		fmt.Fprintln(os.Stderr, "lockersh:", err)
		return exitUsage
	}
	s.locker.PID = int(s.process)
	signals := job.Notify()
	if s.release {
		return giveBack(s)
	}
	s.locker.Request = request(p, s.locker.Locks)
	l, code := take(s, signals)
	if l == nil {
		return code
	}
	// A node that is not on this host does not see the process end, so the lock
	// would never.
	ctx, cancel := context.WithTimeout(context.Background(), anchorTime)
	defer cancel()
	anchor, err := l.Anchor(ctx)
	switch {
	case err == nil:
		// It is asked for to learn that it can be had.
		anchor.Close()
	case errors.Is(err, client.ErrElsewhere) && s.locker.HoldLimit != client.NoLimit:
		// Then the lock ends with its limit.
	default:
		release(l)
		fmt.Fprintf(os.Stderr, "lockersh: %v; nobody would see the end of process %d: run a node on this host, or set a limit with --hold\n", err, s.process)
		return exitUnavailable
	}
	if pidprobe.Check(p) == pidprobe.Dead {
		release(l)
		fmt.Fprintf(os.Stderr, "lockersh: process %d has ended\n", s.process)
		return exitLost
	}
	if err := writeFence(s.fenceFD, l.Fence()); err != nil {
		release(l)
		fmt.Fprintf(os.Stderr, "lockersh: cannot write the fence to descriptor %d: %v\n", s.fenceFD, err)
		return exitInternal
	}
	_ = l.Close() // which keeps it
	return 0
}

// request is the same for one process and the same locks, so that to ask again for
// what one has is no wait for oneself.
func request(p pidprobe.Process, locks []string) (id [16]byte) {
	text := fmt.Sprintf("%d %d %s %q", p.PID, p.Start, p.Boot, slices.Sorted(slices.Values(locks)))
	sum := sha256.Sum256([]byte(text))
	copy(id[:], sum[:])
	return id
}

func giveBack(s *settings) int {
	l, err := client.New(s.locker)
	if err != nil {
		return misused(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), releaseTime)
	defer cancel()
	switch err := l.Relinquish(ctx); {
	case err == nil:
		return 0
	case errors.Is(err, client.ErrLost):
		fmt.Fprintf(os.Stderr, "lockersh: process %d does not hold %s\n", s.process, s.lockNames())
		return exitLost
	default:
		fmt.Fprintln(os.Stderr, "lockersh:", err)
		return lockCode(err)
	}
}
