package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lockerd/lockerd/jepsen/check"
	"github.com/lockerd/lockerd/jepsen/run"
)

// longestBuild is how long a build, or jx versus, may leave its directory as it is
// while it is under way.
const longestBuild = time.Hour

// maxStored bounds the arguments of commands that take stored runs.
const maxStored = 1 << 20

var errNoRuns = errors.New("none of these is a run: give directories that jx run, ci, all or soak have made")

func cmdCheck(_ context.Context, args []string, out io.Writer) (int, error) {
	fs := newFlags("check", "RUN...", out)
	if err := parse(fs, args, 1, maxStored); err != nil {
		return exitPass, err
	}
	worst := exitPass
	checked := 0
	for _, dir := range fs.Args() {
		c, err := run.LoadConfig(dir)
		if errors.Is(err, run.ErrNoRun) && fs.NArg() > 1 {
			fmt.Fprintf(out, "left out: %v\n", err) // of store/*, some are none
			continue
		}
		if err != nil {
			return exitHarness, err
		}
		checked++
		in, err := run.Load(dir)
		if errors.Is(err, run.ErrNoHistory) {
			fmt.Fprintf(out, "%s ... %s: %v\n", dir, check.Undecided, err)
			if worst == exitPass {
				worst = exitUndecided
			}
			continue
		}
		if err != nil {
			return exitHarness, err
		}
		c.Store = dir
		fmt.Fprintf(out, "%s ... ", dir)
		code, err := judge(c, in, out)
		if err != nil {
			return exitHarness, err
		}
		if code == exitFail || worst == exitPass {
			worst = code
		}
	}
	if checked == 0 {
		return exitHarness, errNoRuns
	}
	return worst, nil
}

func cmdReplay(ctx context.Context, args []string, out io.Writer) (int, error) {
	fs := newFlags("replay", "RUN", out)
	binary := fs.String("lockerd", "", "test this `program` in place of the one of that run")
	if err := parse(fs, args, 1, 1); err != nil {
		return exitPass, err
	}
	c, err := run.LoadConfig(fs.Arg(0))
	if err != nil {
		return exitHarness, err
	}
	o := options{Config: c, root: filepath.Dir(fs.Arg(0))}
	switch _, err := os.Stat(o.Binary); {
	case *binary != "":
		o.Binary = *binary
	case errors.Is(err, os.ErrNotExist):
		fmt.Fprintf(out, "the program of that run (commit %s) is gone: built anew from this source tree (commit %s)\n", o.Commit, commit(ctx))
		o.Binary = ""
	}
	if err := o.prepare(ctx); err != nil {
		return exitHarness, err
	}
	return one(o.Config)
}

// cmdSweep removes what runs have left that were killed together with their parents:
// file systems that are frozen still, and empty directories.
func cmdSweep(_ context.Context, args []string, out io.Writer) (int, error) {
	if err := parse(newFlags("sweep", "", out), args, 0, 0); err != nil {
		return exitPass, err
	}
	backing, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		return exitHarness, err
	}
	for _, path := range backing {
		b, err := os.ReadFile(path)
		dev := "/dev/" + strings.Split(path, "/")[3]
		image := strings.TrimPrefix(strings.TrimSuffix(strings.TrimSpace(string(b)), " (deleted)"), "/memfd:")
		dir := filepath.Dir(image)
		if err != nil || !strings.HasPrefix(filepath.Base(dir), run.Prefix) || run.Alive(dir) {
			continue
		}
		switch err := thaw(dev); {
		case err == nil:
			fmt.Fprintf(out, "%s of %s: thawed\n", dev, image)
		case !errors.Is(err, unix.EINVAL): // it is not frozen, and goes by itself
			fmt.Fprintf(out, "%s of %s: %v\n", dev, image, err)
		}
	}
	dirs, err := filepath.Glob(filepath.Join(os.TempDir(), run.Prefix+"*"))
	if err != nil {
		return exitHarness, err
	}
	for _, dir := range dirs {
		info, err := os.Stat(dir)
		if err != nil || run.Alive(dir) || time.Since(info.ModTime()) < time.Minute {
			continue // a run is in it, or about to begin
		}
		remove := os.Remove // fails for what is not ours: ours are empty
		name := filepath.Base(dir)
		if (strings.HasPrefix(name, buildPrefix) || strings.HasPrefix(name, versusPrefix)) && time.Since(info.ModTime()) > longestBuild {
			remove = os.RemoveAll
		}
		if remove(dir) == nil {
			fmt.Fprintf(out, "%s: removed\n", dir)
		}
	}
	return exitPass, nil
}

// thaw mounts a device of a frozen file system once more, which gives the same file
// system, and thaws that.
func thaw(dev string) error {
	dir, err := os.MkdirTemp("", run.Prefix)
	if err != nil {
		return err
	}
	defer os.Remove(dir)
	if err := unix.Mount(dev, dir, "ext4", unix.MS_RDONLY, ""); err != nil {
		if err = unix.Mount(dev, dir, "ext4", 0, ""); err != nil {
			return fmt.Errorf("mount: %w", err)
		}
	}
	defer func() { _ = unix.Unmount(dir, unix.MNT_DETACH) }()
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.IoctlSetInt(int(f.Fd()), run.IoctlThaw, 0)
}
