package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// A restored job has the environment that it was checkpointed with, and LOCKER_FENCE in
// there is that of an earlier hold. The fence of now is in a file, whose name is the same on
// every host and is in the environment too. It is not on a disk that hosts share: an
// instance that has outlived its hold must not find the fence of the next one there.
//
// It is also what a job locks (flock(2)) while it must not be checkpointed: from its look at
// the fence, and at what has been done, to its doing. Restored in between it would do it
// again, with a fence that is not its own.
const (
	fenceFileVariable = "LOCKERSH_FENCE_FILE"
	fenceFileDir      = "/run/lockersh"
)

func fenceFile(name string) string { return filepath.Join(fenceFileDir, name+".fence") }

// tellFence writes the file. It always has the same size, because CRIU restores no
// process that had it open for reading if that has changed.
func tellFence(name string, fence uint64) error {
	if err := os.MkdirAll(fenceFileDir, 0o755); err != nil {
		return fmt.Errorf("tell the fence: %w", err)
	}
	if err := replaceFile(fenceFile(name), fmt.Appendf(nil, "%20d\n", fence), 0o644); err != nil {
		return fmt.Errorf("tell the fence: %w", err)
	}
	return nil
}

func forgetFence(name string) { _ = os.Remove(fenceFile(name)) }

const (
	// commitPatience is how long a job may keep the file locked before there is no
	// checkpoint this time, and commitPause is the time between two looks.
	commitPatience = 10 * time.Second
	commitPause    = time.Millisecond
)

// holdCommits returns when the job has not locked the file, and cannot until what is
// returned is closed.
func holdCommits(ctx context.Context, name string) (*os.File, error) {
	f, err := os.Open(fenceFile(name))
	if err != nil {
		return nil, fmt.Errorf("no checkpoint: %w", err)
	}
	for until := time.Now().Add(commitPatience); ; {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return f, nil
		}
		if err != unix.EWOULDBLOCK && err != unix.EINTR {
			_ = f.Close()
			return nil, fmt.Errorf("no checkpoint: lock %s: %w", f.Name(), err)
		}
		if time.Now().After(until) {
			_ = f.Close()
			return nil, fmt.Errorf("no checkpoint: %s was locked for %v", f.Name(), commitPatience)
		}
		select {
		case <-ctx.Done():
			_ = f.Close()
			return nil, context.Cause(ctx)
		case <-time.After(commitPause):
		}
	}
}
