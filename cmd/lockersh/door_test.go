package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestListen has sockets at one name after the other for those that share a lock, and for a
// lock that is one's own only the first: another's of that name is of another cluster, be it
// that it goes away in time.
func TestListen(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "made")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	// Whoever can see the directory can lock it.
	seen, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer seen.Close()
	if err := unix.Flock(int(seen.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	first, err := listenAlone(dir, "a/b", time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	shared, err := listen(dir, "a/b", maxSockets)
	if err != nil {
		t.Fatal(err)
	}
	defer shared.Close()
	for l, want := range map[string]string{first.Addr().String(): "a%2Fb.checkpoint", shared.Addr().String(): "a%2Fb.checkpoint.2"} {
		if l != filepath.Join(dir, want) {
			t.Errorf("%s is served, and not %s", l, want)
		}
	}
	if l, err := listenAlone(dir, "a/b", time.Millisecond); err == nil || !strings.Contains(err.Error(), "of another cluster") {
		t.Errorf("two have one lock: %v, %v", l, err)
	}
	got := make(chan error)
	go func() {
		l, err := listenAlone(dir, "a/b", time.Minute)
		if err == nil {
			err = l.Close()
		}
		got <- err
	}()
	first.SetUnlinkOnClose(false) // as of one that is killed
	_ = first.Close()
	if err := <-got; err != nil {
		t.Error(err)
	}
	if err := os.RemoveAll(dir); err != nil {
		t.Error(err)
	}
}
