// Package fencefile has the files in which jobs find the fences of their locks.
//
// A restored job has the environment that it was checkpointed with, and the fence in there is
// that of an earlier hold. The fence of now is in a file, whose path is in the environment too,
// is made of the lock's name, and is the same on every host. It is not on a disk that
// hosts share: an instance that has outlived its hold must not find the fence of the next one
// there.
//
// It is also what a job locks (flock(2)) while it must not be checkpointed: from its look at
// the fence, and at what has been done, to its doing. Restored in between it would do it
// again, with a fence that is not its own.
//
// A file always has the same size, because CRIU restores no process that had it open for
// reading if that has changed.
package fencefile

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// Variable, in a job's environment, is the path of its file.
	Variable = "LOCKERSH_FENCE_FILE"
	// Dir is where all of them are.
	Dir = "/run/lockersh"

	end = ".fence"
)

// Escape makes a part of a file's name of a lock's: all but letters, digits, "-" and "_" is %XX. No two
// locks have the same.
func Escape(lock string) string {
	var b strings.Builder
	for i := range len(lock) {
		switch c := lock[i]; {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '-', c == '_':
			b.WriteByte(c)
		default:
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	return b.String()
}

// Path is that of a lock's file.
func Path(lock string) string { return filepath.Join(Dir, Escape(lock)+end) }

// Is says whether a path is one of Path.
func Is(path string) bool {
	return filepath.Dir(path) == Dir && filepath.Clean(path) == path && strings.HasSuffix(path, end)
}

func text(fence uint64) []byte { return fmt.Appendf(nil, "%20d\n", fence) }

// Place makes a file where there is none, with the fence of no hold, for a job that had it open.
func Place(path string) error {
	err := os.MkdirAll(Dir, 0o755)
	if err == nil {
		var f *os.File
		f, err = os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
		if errors.Is(err, os.ErrExist) {
			return nil
		}
		if err == nil {
			_, err = f.Write(text(0))
			err = errors.Join(err, f.Close())
		}
	}
	if err != nil {
		return fmt.Errorf("make a file for the job's fence: %w", err)
	}
	return nil
}

// Replace has a fence in a new file, so that who has the old one open does not see it.
func Replace(path string, fence uint64) error {
	made := path + ".new"
	err := os.MkdirAll(Dir, 0o755)
	if err == nil {
		err = os.WriteFile(made, text(fence), 0o644)
	}
	if err == nil {
		err = os.Rename(made, path)
	}
	if err != nil {
		return fmt.Errorf("tell the job its fence: %w", err)
	}
	return nil
}

// Tell writes a fence into the file that is there, for a job that stands still and may have it
// open.
func Tell(path string, fence uint64) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err == nil {
		_, err = f.WriteAt(text(fence), 0)
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		return fmt.Errorf("tell the job its fence: %w", err)
	}
	return nil
}

const (
	// patience is how long a job may keep its file locked.
	patience = 10 * time.Second
	pause    = time.Millisecond
)

// Hold returns when the job has not locked its file, and cannot until release is called.
func Hold(ctx context.Context, path string) (release func(), err error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0) // it may be no file of ours
	if err != nil {
		return nil, err
	}
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
		_ = f.Close()
		return nil, cmp.Or(err, fmt.Errorf("%s is no regular file", path))
	}
	release = sync.OnceFunc(func() { _ = f.Close() })
	for until := time.Now().Add(patience); ; {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		switch {
		case err == nil:
			return release, nil
		case err != unix.EWOULDBLOCK && err != unix.EINTR:
			err = fmt.Errorf("lock %s: %w", path, err)
		case ctx.Err() != nil:
			err = context.Cause(ctx)
		case time.Now().After(until):
			err = fmt.Errorf("the job must not be saved while %s is locked, and that was so for %v", path, patience)
		default:
			err = nil
		}
		if err != nil {
			release()
			return nil, err
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
}
