package fencefile

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestPath(t *testing.T) {
	for lock, want := range map[string]string{
		"job-1_A": "/run/lockersh/job-1_A.fence", "a/../b": "/run/lockersh/a%2F%2E%2E%2Fb.fence", "%": "/run/lockersh/%25.fence", "\xff": "/run/lockersh/%FF.fence",
	} {
		if got := Path(lock); got != want || !Is(got) {
			t.Errorf("%q: %s", lock, got)
		}
	}
	for _, path := range []string{"", "/run/lockersh", "/run/lockersh/a", "/run/lockersh/../a.fence", "/run/lockersh/a/b.fence", "run/lockersh/a.fence", "/tmp/a.fence"} {
		if Is(path) {
			t.Errorf("%q may be written to", path)
		}
	}
}

func TestHold(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	if _, err := Hold(t.Context(), path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("without a file: %v", err)
	}
	if err := os.WriteFile(path, text(7), 0o644); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := Hold(ctx, path); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("while it is locked: %v", err)
	}
	held := make(chan func(), 1)
	go func() {
		release, err := Hold(t.Context(), path)
		if err != nil {
			t.Error(err)
		}
		held <- release
	}()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_UN); err != nil {
		t.Fatal(err)
	}
	release := <-held
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != unix.EWOULDBLOCK {
		t.Errorf("the job can lock it while it is held: %v", err)
	}
	release()
	release()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		t.Errorf("the job cannot lock it again: %v", err)
	}
}
