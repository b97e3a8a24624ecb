//go:build jepsen

package run_test

import (
	"errors"
	"fmt"
	"io"
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

// patience bounds what a test waits for. Nothing that works takes so long, however busy
// the machine.
const patience = 30 * time.Second

// On a slow disk writes that are forced to it wait for the end of a pause, again and
// again. A few may come through between two pauses, and that is no matter of this test.
func TestSlowDiskBites(t *testing.T) {
	d := newDisk(t, "slow")
	f, err := os.Create(filepath.Join(d.Dir, "f"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	const waits, pause = 5, 50 * time.Millisecond
	end, err := d.Slow(pause)
	if err != nil {
		t.Fatal(err)
	}
	writes, waited := 0, 0
	for began := time.Now(); waited < waits && time.Since(began) < patience; writes++ {
		at := time.Now()
		_, err := f.WriteString("x")
		if err := errors.Join(err, f.Sync()); err != nil {
			t.Error(err)
		}
		if time.Since(at) > pause/2 {
			waited++
		}
	}
	pauses, err := end()
	if err != nil {
		t.Fatal(err)
	}
	if waited < waits || pauses < waits {
		t.Errorf("%d of %d forced writes waited, with %d pauses of %v", waited, writes, pauses, pause)
	}
	if err := d.Freeze(); err != nil {
		t.Errorf("it is still frozen: %v", err)
	}
	if err := d.Thaw(); err != nil {
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
		for end := time.Now().Add(patience); err != nil && time.Now().Before(end); {
			err = dial(a, b)
		}
		if err != nil {
			t.Fatalf("before %s: %v", name, err)
		}
		if err := c.bite(); err != nil {
			t.Fatal(err)
		}
		// The greatest loss lets one packet of a hundred through, and a busy machine may be
		// late with an answer.
		bitten := false
		for end := time.Now().Add(patience); !bitten && time.Now().Before(end); {
			err = dial(a, b)
			bitten = c.ok(err)
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
	t.Run("deafen", func(t *testing.T) { deafenBites(t, a, b) })
	t.Run("delay", func(t *testing.T) { delayBites(t, a, b) })
}

// A port that is deaf hears nothing, and others do.
func deafenBites(t *testing.T, a, b *netns.Host) {
	var from net.PacketConn
	ports := map[string]net.PacketConn{"7": nil, "8": nil}
	listen := func(h *netns.Host, port string) (c net.PacketConn) {
		err := h.Within(func() (err error) { c, err = net.ListenPacket("udp", h.IP+":"+port); return err })
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		return c
	}
	from = listen(a, "0")
	for p := range ports {
		ports[p] = listen(b, p)
	}
	if err := b.Deafen("7"); err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{"7", "8"} {
		if _, err := from.WriteTo([]byte("x"), ports[p].LocalAddr()); err != nil {
			t.Fatal(err)
		}
	}
	hears := func(p string, within time.Duration) bool {
		if err := ports[p].SetReadDeadline(time.Now().Add(within)); err != nil {
			t.Fatal(err)
		}
		_, _, err := ports[p].ReadFrom(make([]byte, 1))
		return err == nil
	}
	// What was sent later has arrived, so what was sent before would have.
	if !hears("8", patience) || hears("7", 10*time.Millisecond) {
		t.Error("the wrong port is deaf")
	}
	if err := b.Heal(); err != nil {
		t.Fatal(err)
	}
}

// Held packets arrive late, all of them, whole, and in their order unless they may
// overtake each other.
func delayBites(t *testing.T, a, b *netns.Host) {
	const packets, least, most = 50, 30 * time.Millisecond, 60 * time.Millisecond
	var from, to net.PacketConn
	for h, c := range map[*netns.Host]*net.PacketConn{a: &from, b: &to} {
		err := h.Within(func() (err error) { *c, err = net.ListenPacket("udp", h.IP+":7"); return err })
		if err != nil {
			t.Fatal(err)
		}
		defer (*c).Close()
	}
	for _, overtake := range []bool{false, true} {
		if err := b.Delay(least, most, overtake); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		body := make([]byte, 1200)
		for i := range packets {
			body[0] = byte(i)
			if _, err := from.WriteTo(body, to.LocalAddr()); err != nil {
				t.Fatal(err)
			}
		}
		if err := to.SetReadDeadline(began.Add(patience)); err != nil {
			t.Fatal(err)
		}
		turned, last := 0, -1
		for i := range packets {
			n, _, err := to.ReadFrom(body)
			if err != nil || n != len(body) {
				t.Fatalf("packet %d: %d bytes, %v", i, n, err)
			}
			if took := time.Since(began); i == 0 && took < least {
				t.Errorf("the first packet took %v", took)
			}
			if int(body[0]) < last {
				turned++
			}
			last = int(body[0])
		}
		if overtake != (turned > 0) {
			t.Errorf("overtake %v: %d packets came after later ones", overtake, turned)
		}
		if n := b.Delayed(); n < packets {
			t.Errorf("only %d packets were held", n)
		}
		// A stream of any size goes through: what the kernel had left to a device is done.
		if err := stream(a, b, 1<<20); err != nil {
			t.Errorf("overtake %v: %v", overtake, err)
		}
		err := b.Heal()
		if err != nil {
			t.Fatal(err)
		}
		// A stream takes longer if a single packet of it is held.
		free := false
		began = time.Now()
		for !free && err == nil && time.Since(began) < patience {
			at := time.Now()
			err = stream(b, a, 1<<10)
			free = time.Since(at) < least
		}
		if !free {
			t.Errorf("after it was healed: %v, and packets are held still", err)
		}
	}
}

// stream sends so many bytes from one host to the other.
func stream(a, b *netns.Host, n int) error {
	var ln net.Listener
	err := b.Within(func() (err error) { ln, err = net.Listen("tcp", b.IP+":0"); return err })
	if err != nil {
		return err
	}
	defer ln.Close()
	got := make(chan error, 1)
	go func() {
		c, err := ln.Accept()
		if err != nil {
			got <- err
			return
		}
		defer c.Close()
		all, err := io.ReadAll(c)
		if err == nil && len(all) != n {
			err = fmt.Errorf("%d bytes of %d", len(all), n)
		}
		got <- err
	}()
	var c net.Conn
	err = a.Within(func() (err error) {
		c, err = (&net.Dialer{Timeout: patience}).Dial("tcp", ln.Addr().String())
		return err
	})
	if err != nil {
		return err
	}
	err = c.SetDeadline(time.Now().Add(patience))
	if err == nil {
		_, err = c.Write(make([]byte, n))
	}
	return errors.Join(err, c.Close(), <-got)
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
	for end := time.Now().Add(patience); size() == was; time.Sleep(time.Millisecond) {
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
