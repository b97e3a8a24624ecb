package executor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/lockerd/lockerd/freezer/checkpoint"
	"github.com/lockerd/lockerd/freezer/checkpoint/fencefile"
)

// fenceFile is the one that a process's environment names; "" if it names none.
func fenceFile(pid int) (path string, err error) {
	text, err := readText(pid, "environ")
	if err != nil {
		return "", fmt.Errorf("read the environment of process %d: %w", pid, err)
	}
	for v := range strings.SplitSeq(string(text), "\x00") {
		if p, ok := strings.CutPrefix(v, fencefile.Variable+"="); ok && fencefile.Is(p) {
			path = p
		}
	}
	return path, nil
}

// holdCommits returns when a job has not locked its fence file, if it has one, and cannot
// until release is called.
func holdCommits(ctx context.Context, pid int) (release func(), err error) {
	path, err := fenceFile(pid)
	if err != nil {
		return nil, err
	}
	if path != "" { // ours, as what sees another is not saved
		release, err = fencefile.Hold(ctx, path)
	}
	if path == "" || errors.Is(err, os.ErrNotExist) {
		return func() {}, nil
	}
	return release, err
}

// placeFences makes the fence files that the job has open, where they are missing.
func placeFences(m *checkpoint.Manifest) error {
	for _, f := range m.Files {
		if fencefile.Is(f.Path) {
			if err := fencefile.Place(f.Path); err != nil {
				return err
			}
		}
	}
	return nil
}

// placeFenceOf finds the file in which a restored job looks for the fence of its lock, "" if it has
// none. It is there then, and can be written. What the job says of others is not believed: they
// are of locks that it does not have.
func placeFenceOf(job *checkpoint.Job) (path string, err error) {
	pid := job.PID()
	if pid != job.Manifest.Root { // a stage's, which has one child
		all, err := children(pid)
		if err != nil || len(all) == 0 {
			return "", errors.Join(errors.New("the job's eldest process is not found"), err)
		}
		pid = all[0]
	}
	if path, err = fenceFile(pid); err != nil || !slices.ContainsFunc(job.Manifest.Locks, func(l checkpoint.Lock) bool { return fencefile.Path(l.Name) == path }) {
		return "", err
	}
	return path, fencefile.Place(path)
}
