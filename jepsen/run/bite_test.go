//go:build jepsen

package run_test

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lockerd/lockerd/jepsen/disk"
	"github.com/lockerd/lockerd/jepsen/netns"
	"github.com/lockerd/lockerd/jepsen/proc"
	"github.com/lockerd/lockerd/jepsen/run"
)

// dir is the tmpfs of the sandbox; empty outside of one.
var dir string

// The tests run in a sandbox, as runs do.
func TestMain(m *testing.M) {
	os.Exit(sandboxed(m))
}

func sandboxed(m *testing.M) int {
	if run.Inside() {
		var err error
		if dir, _, err = run.Enter(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		return m.Run()
	}
	if os.Geteuid() != 0 {
		return m.Run()
	}
	code, err := run.Sandbox(os.Stdout, os.Args[1:]...)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return code
}

func needSandbox(t *testing.T) {
	t.Helper()
	if dir == "" {
		t.Skip("faults need root, for namespaces and file systems")
	}
}

func newDisk(t *testing.T, name string) *disk.Disk {
	t.Helper()
	needSandbox(t)
	d, err := disk.New(dir, name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	return d
}

// A disk without power keeps what was forced to it, and nothing else.
func TestPowerLossBites(t *testing.T) {
	d := newDisk(t, "power")
	synced, loose := filepath.Join(d.Dir, "synced"), filepath.Join(d.Dir, "loose")
	write := func(path string, sync bool) {
		t.Helper()
		f, err := os.Create(path)
		if err == nil {
			_, err = f.WriteString("x")
		}
		if sync {
			err = errors.Join(err, f.Sync())
		}
		if err := errors.Join(err, f.Close()); err != nil {
			t.Fatal(err)
		}
	}
	write(synced, true)
	write(loose, false)
	if err := d.PowerOff(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(loose, nil, 0o600); err == nil {
		t.Error("a disk without power takes writes")
	}
	if err := d.PowerOn(); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(synced); string(b) != "x" {
		t.Errorf("what was forced to the disk: %q, %v", b, err)
	}
	if b, err := os.ReadFile(loose); len(b) > 0 {
		t.Errorf("what was not forced to the disk is there: %q, %v", b, err)
	}
}

func TestStallBites(t *testing.T) {
	d := newDisk(t, "stall")
	if err := d.Freeze(); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- os.WriteFile(filepath.Join(d.Dir, "f"), []byte("x"), 0o600) }()
	select {
	case err := <-done:
		t.Errorf("a write went through: %v", err)
	case <-time.After(200 * time.Millisecond):
	}
	if err := d.Thaw(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestFullDiskBites(t *testing.T) {
	d := newDisk(t, "full")
	if err := d.Fill(0); err != nil {
		t.Fatal(err)
	}
	big := make([]byte, 1<<20)
	if err := os.WriteFile(filepath.Join(d.Dir, "f"), big, 0o600); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("got %v, want ENOSPC", err)
	}
	if err := d.Empty(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(d.Dir, "f"), big, 0o600); err != nil {
		t.Error(err)
	}
}

// One network serves all its tests: a sandbox has room for one.
func TestNetworkFaultsBite(t *testing.T) {
	needSandbox(t)
	w, err := netns.New(2)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.Close(); err != nil {
			t.Error(err)
		}
	})
	a, b := w.Hosts()[0], w.Hosts()[1]
	listen := func(h *netns.Host) {
		var ln net.Listener
		err := h.Within(func() (err error) { ln, err = net.Listen("tcp", h.IP+":7"); return err })
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = ln.Close() })
	}
	listen(a)
	listen(b)
	dial := func(from, to *netns.Host) (err error) {
		return from.Within(func() error {
			// No fast fallback: the connection is to be made on this thread.
			d := net.Dialer{Timeout: 300 * time.Millisecond}
			c, err := d.Dial("tcp", to.IP+":7")
			if err == nil {
				_ = c.Close()
			}
			return err
		})
	}
	for name, c := range map[string]struct {
		bite func() error
		ok   func(err error) bool
	}{
		"cut":    {func() error { return b.Cut(a.IP) }, os.IsTimeout},
		"mute":   {func() error { return a.Cut(b.IP) }, os.IsTimeout},
		"reset":  {func() error { return b.Reset(a.IP) }, func(err error) bool { return errors.Is(err, unix.ECONNREFUSED) }},
		"unplug": {b.Unplug, func(err error) bool { return err != nil }},
		"lose":   {func() error { return b.Lose(99) }, os.IsTimeout},
	} {
		// A link that was down takes a moment.
		err := dial(a, b)
		for end := time.Now().Add(5 * time.Second); err != nil && time.Now().Before(end); {
			err = dial(a, b)
		}
		if err != nil {
			t.Fatalf("before %s: %v", name, err)
		}
		if err := c.bite(); err != nil {
			t.Fatal(err)
		}
		// The greatest loss lets one packet of a hundred through.
		bitten := false
		for range 3 {
			err = dial(a, b)
			bitten = bitten || c.ok(err)
		}
		if !bitten {
			t.Errorf("%s: %v", name, err)
		}
		if err := b.Heal(); err != nil {
			t.Error(err)
		}
		if err := a.Heal(); err != nil {
			t.Error(err)
		}
	}
}

func TestStopBites(t *testing.T) {
	needSandbox(t)
	p := &proc.Proc{Name: "counter", Path: "/bin/sh", Args: []string{"-c", "while :; do echo x; done"}, Log: filepath.Join(dir, "counter.log")}
	if err := p.Start(func(f func() error) error { return f() }); err != nil {
		t.Fatal(err)
	}
	defer p.Kill()
	size := func() int64 {
		i, err := os.Stat(p.Log)
		if err != nil {
			t.Fatal(err)
		}
		return i.Size()
	}
	if err := p.Stop(); err != nil {
		t.Fatal(err)
	}
	was := size()
	time.Sleep(50 * time.Millisecond) // what is stopped does nothing, however long
	if is := size(); is != was {
		t.Errorf("it wrote %d bytes while it was stopped", is-was)
	}
	if err := p.Continue(); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(5 * time.Second); size() == was; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("it does not go on")
		}
	}
	if p.Kill(); len(p.EndedAlone()) > 0 {
		t.Errorf("it was killed, not %v", p.EndedAlone())
	}
}

// A process that ends by itself is found out.
func TestEndIsNoticed(t *testing.T) {
	needSandbox(t)
	p := &proc.Proc{Name: "brief", Path: "/bin/false", Log: filepath.Join(dir, "brief.log")}
	if err := p.Start(func(f func() error) error { return f() }); err != nil {
		t.Fatal(err)
	}
	<-p.Ended()
	if got := p.EndedAlone(); len(got) != 1 {
		t.Errorf("got %v", got)
	}
}
