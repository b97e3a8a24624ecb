package executor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lockerd/lockerd/freezer/checkpoint"
)

// A job of lockersh --checkpoint finds the fence of its lock in a file, and locks that
// (flock(2)) while it must not be saved. The file always has the same size, as CRIU restores
// no process that had it open if that has changed.

// FenceFileVariable, in a job's environment, names a file that gets the fence of the lock
// under which the job runs now.
const FenceFileVariable = "LOCKERSH_FENCE_FILE"

const (
	// fenceDir is where lockersh has those files. What a job says of a file elsewhere is not
	// believed: it is we who write there.
	fenceDir = "/run/lockersh"
	fenceEnd = ".fence"

	// commitPatience is how long a job may keep the file locked.
	commitPatience = 10 * time.Second
	commitPause    = time.Millisecond
)

func fenceText(fence uint64) []byte { return fmt.Appendf(nil, "%20d\n", fence) }

// isFenceFile says whether a path is one that lockersh may have made.
func isFenceFile(path string) bool {
	return filepath.Dir(path) == fenceDir && filepath.Clean(path) == path && strings.HasSuffix(path, fenceEnd)
}

// fenceFile is the one that a process's environment names; "" if it names none.
func fenceFile(pid int) (path string, err error) {
	text, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/environ")
	if err != nil {
		return "", fmt.Errorf("read the environment of process %d: %w", pid, err)
	}
	for v := range strings.SplitSeq(string(text), "\x00") {
		if p, ok := strings.CutPrefix(v, FenceFileVariable+"="); ok && isFenceFile(p) {
			path = p
		}
	}
	return path, nil
}

// holdCommits returns when a job has not locked its fence file, and cannot until release is
// called.
func holdCommits(ctx context.Context, pid int) (release func(), err error) {
	path, err := fenceFile(pid)
	if err != nil {
		return nil, err
	}
	var f *os.File
	if path != "" {
		f, err = os.Open(filepath.Join("/proc", strconv.Itoa(pid), "root", path))
	}
	if path == "" || errors.Is(err, os.ErrNotExist) {
		return func() {}, nil
	}
	if err != nil {
		return nil, err
	}
	release = sync.OnceFunc(func() { _ = f.Close() })
	for until := time.Now().Add(commitPatience); ; {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return release, nil
		}
		if err != unix.EWOULDBLOCK && err != unix.EINTR {
			err = fmt.Errorf("lock %s: %w", path, err)
		} else if err = context.Cause(ctx); err == nil && time.Now().After(until) {
			err = fmt.Errorf("the job must not be saved while it has locked %s, and did so for %v", path, commitPatience)
		}
		if err != nil {
			release()
			return nil, err
		}
		time.Sleep(commitPause)
	}
}

// placeFences makes the fence files that the job has open, where they are missing.
func placeFences(m *checkpoint.Manifest) error {
	for _, f := range m.Files {
		if isFenceFile(f.Path) {
			if err := placeFence(f.Path); err != nil {
				return err
			}
		}
	}
	return nil
}

// placeFence makes a file, with the fence of no hold.
func placeFence(path string) error {
	text := fenceText(0)
	if st, err := os.Stat(path); err == nil && st.Size() == int64(len(text)) {
		return nil
	}
	err := os.MkdirAll(fenceDir, 0o755)
	if err == nil {
		err = os.WriteFile(path, text, 0o644)
	}
	if err != nil {
		return fmt.Errorf("make a file for the job's fence: %w", err)
	}
	return nil
}

// tellFence writes the fence into the file itself, and not into a new one: the job, which
// stands still, may have it open.
func tellFence(path string, fence uint64) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err == nil {
		_, err = f.WriteAt(fenceText(fence), 0)
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		return fmt.Errorf("tell the job its fence: %w", err)
	}
	return nil
}
