package main

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lockerd/lockerd/jepsen/disk"
	"github.com/lockerd/lockerd/jepsen/run"
)

// What a run leaves that was killed together with its parent, while a disk was frozen, is
// swept: the file system has no mount any more, and would stay for ever.
func TestSweepThawsWhatIsLeft(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("file systems are made by root only")
	}
	dir, err := os.MkdirTemp("", run.Prefix)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	d, err := disk.New(dir, "n1")
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Freeze(); err != nil {
		t.Fatal(err)
	}
	// So a mount goes with the last process of its namespace.
	if err := unix.Unmount(d.Dir, unix.MNT_DETACH); err != nil {
		t.Fatal(err)
	}
	left := func() bool {
		paths, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range paths {
			if b, _ := os.ReadFile(p); strings.Contains(string(b), d.Dir) {
				return true
			}
		}
		return false
	}
	if !left() {
		t.Fatal("nothing is left that could be swept")
	}
	var out, errs bytes.Buffer
	if code := dispatch(context.Background(), []string{"sweep"}, &out, &errs); code != exitPass || !strings.Contains(out.String(), d.Dir) {
		t.Errorf("status %d, %s%s", code, out.String(), errs.String())
	}
	for end := time.Now().Add(30 * time.Second); left(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("it has its loop device still: %s", out.String())
		}
	}
}
