package pipenet

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/nettest"
)

func TestConformance(t *testing.T) {
	nettest.TestConn(t, func() (net.Conn, net.Conn, func(), error) {
		n := New()
		ln, err := n.Listen("b")
		if err != nil {
			return nil, nil, nil, err
		}
		c1, err := n.Dial(context.Background(), "a", "b")
		if err != nil {
			return nil, nil, nil, err
		}
		c2, err := ln.Accept()
		return c1, c2, func() { c1.Close(); c2.Close(); ln.Close() }, err
	})
}

// connect gives both ends of a connection from a to b, and the listener at b.
func connect(t *testing.T, n *Net) (a, b net.Conn, ln net.Listener) {
	t.Helper()
	ln, err := n.Listen("b")
	if err != nil {
		t.Fatal(err)
	}
	a, err = n.Dial(t.Context(), "a", "b")
	if err != nil {
		t.Fatal(err)
	}
	b, err = ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	if a.RemoteAddr().String() != "b" || b.RemoteAddr().String() != "a" {
		t.Fatalf("ends at %v and %v", a.RemoteAddr(), b.RemoteAddr())
	}
	return a, b, ln
}

func write(t *testing.T, c net.Conn, s string) {
	t.Helper()
	if _, err := io.WriteString(c, s); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, c net.Conn, want string) {
	t.Helper()
	b := make([]byte, len(want))
	if _, err := io.ReadFull(c, b); err != nil || string(b) != want {
		t.Fatalf("read %q, %v; want %q", b, err, want)
	}
}

func TestRefusedAndInUse(t *testing.T) {
	n := New()
	if _, err := n.Dial(t.Context(), "a", "b"); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("nobody listens: %v", err)
	}
	ln, err := n.Listen("b")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := n.Listen("b"); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("two listeners: %v", err)
	}
	c, err := n.Dial(t.Context(), "a", "b")
	if err != nil {
		t.Fatal(err)
	}
	ln.Close()
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("never accepted: %v, want ECONNRESET", err)
	}
	if _, err := ln.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept after Close: %v", err)
	}
	if _, err := n.Dial(t.Context(), "a", "b"); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("after Close: %v", err)
	}
}

func TestDeadlineInVirtualTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b, _ := connect(t, New())
		start := time.Now()
		a.SetReadDeadline(start.Add(time.Hour))
		if _, err := a.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("read: %v", err)
		}
		if d := time.Since(start); d != time.Hour {
			t.Fatalf("it took %v", d)
		}
		a.SetDeadline(time.Now().Add(time.Minute))
		if sent, err := a.Write(make([]byte, 2*Window)); sent != Window || !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("wrote %d, %v; want one window and a timeout", sent, err)
		}
		a.SetDeadline(time.Time{})
		go b.Close()
		synctest.Wait()
		if _, err := a.Write([]byte("x")); !errors.Is(err, syscall.EPIPE) {
			t.Fatalf("write to a closed end: %v", err)
		}
		if _, err := a.Read(make([]byte, 1)); err != io.EOF {
			t.Fatalf("read from a closed end: %v", err)
		}
	})
}

func TestCutHoldsBackAndHealDelivers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := New()
		a, b, _ := connect(t, n)
		n.Cut("b", "a")
		write(t, a, "held")
		b.SetReadDeadline(time.Now().Add(time.Second))
		if _, err := b.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("read over a cut link: %v", err)
		}
		b.SetReadDeadline(time.Time{})
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		if _, err := n.Dial(ctx, "a", "b"); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("dial over a cut link: %v", err)
		}
		if _, err := n.Dial(t.Context(), "c", "b"); err != nil {
			t.Fatalf("dial from a third host: %v", err)
		}
		n.Heal()
		write(t, a, " and sent")
		read(t, b, "held and sent")
	})
}

func TestLongCutBreaksBothEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := New()
		a, b, _ := connect(t, n)
		n.Isolate("b")
		start := time.Now()
		for _, c := range []net.Conn{a, b} {
			if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ETIMEDOUT) {
				t.Fatalf("read: %v, want ETIMEDOUT", err)
			}
		}
		if d := time.Since(start); d != n.UserTimeout {
			t.Fatalf("it took %v, want %v", d, n.UserTimeout)
		}
	})
}

func TestKillResetsAndRefuses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := New()
		a, b, ln := connect(t, n)
		write(t, b, "never read")
		n.Kill("b")
		for _, c := range []net.Conn{a, b} {
			if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("read: %v, want ECONNRESET", err)
			}
		}
		if _, err := ln.Accept(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("accept: %v", err)
		}
		if _, err := n.Dial(t.Context(), "a", "b"); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("dial: %v, want ECONNREFUSED", err)
		}
		if _, err := n.Listen("b"); err != nil {
			t.Errorf("listen again: %v", err)
		}
		if _, err := n.Dial(t.Context(), "a", "b"); err != nil {
			t.Errorf("dial again: %v", err)
		}
	})
}

// A host that dies behind a cut is not noticed before the cut is healed.
func TestKillBehindCutIsSilent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := New()
		n.UserTimeout = 0
		a, _, _ := connect(t, n)
		n.Isolate("b")
		n.Kill("b")
		a.SetReadDeadline(time.Now().Add(time.Hour))
		if _, err := a.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("read: %v, want silence", err)
		}
		a.SetReadDeadline(time.Time{})
		n.Heal()
		if _, err := a.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Fatalf("read: %v, want ECONNRESET", err)
		}
	})
}

func TestWindowPassesLargeWrites(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b, _ := connect(t, New())
		msg := bytes.Repeat([]byte("0123456789"), 50_000)
		go func() {
			a.Write(msg)
			a.Close()
		}()
		got, err := io.ReadAll(b)
		if err != nil || !bytes.Equal(got, msg) {
			t.Fatalf("read %d bytes, %v", len(got), err)
		}
	})
}

func TestClosedLinksAreForgotten(t *testing.T) {
	n := New()
	a, b, _ := connect(t, n)
	a.Close()
	b.Close()
	if len(n.links) != 0 {
		t.Fatalf("%d links remembered", len(n.links))
	}
}
