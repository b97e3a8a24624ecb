package transport

import (
	"errors"
	"io"
	"net"
	"testing"
	"time"
)

// serveMux runs a Mux on a loopback port until the test ends. set may change it first.
func serveMux(t *testing.T, set func(*Mux)) *Mux {
	t.Helper()
	ln, err := Listen(t.Context(), "127.0.0.1:0", nil)
	if err != nil {
		t.Fatal(err)
	}
	m := NewMux(ln)
	set(m)
	served := make(chan error, 1)
	go func() { served <- m.Serve() }()
	t.Cleanup(func() {
		m.Close()
		if err := <-served; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return m
}

func dial(t *testing.T, m *Mux, send string) net.Conn {
	t.Helper()
	c, err := new(Dialer).Dial(t.Context(), m.ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if _, err := io.WriteString(c, send); err != nil {
		t.Fatal(err)
	}
	return c
}

// ended waits until the far side has closed c.
func ended(t *testing.T, c net.Conn) {
	t.Helper()
	c.SetReadDeadline(time.Now().Add(10 * time.Second))
	n, err := c.Read(make([]byte, 1))
	var ne net.Error
	if n > 0 || errors.As(err, &ne) && ne.Timeout() {
		t.Fatalf("connection is still open (read %d, %v)", n, err)
	}
}

func TestMuxByFirstByte(t *testing.T) {
	var a, b net.Listener
	m := serveMux(t, func(m *Mux) { a, b = m.Listen('A'), m.Listen('B') })
	ca, cb := dial(t, m, "Afirst"), dial(t, m, "Bsecond")
	for _, x := range []struct {
		ln   net.Listener
		cl   net.Conn
		want string
	}{{b, cb, "second"}, {a, ca, "first"}} {
		c, err := x.ln.Accept()
		if err != nil {
			t.Fatal(err)
		}
		x.cl.Close()
		got, err := io.ReadAll(c)
		if err != nil || string(got) != x.want {
			t.Errorf("read %q, %v; want %q", got, err, x.want)
		}
		c.Close()
	}
}

func TestMuxTurnsAway(t *testing.T) {
	t.Run("unknown first byte", func(t *testing.T) {
		m := serveMux(t, func(m *Mux) { m.Listen('A') })
		ended(t, dial(t, m, "Z"))
		if s := m.Stats(); s.Strangers != 1 {
			t.Errorf("%+v, want one stranger", s)
		}
	})
	t.Run("silence", func(t *testing.T) {
		m := serveMux(t, func(m *Mux) { m.Listen('A'); m.FirstByteTimeout = 20 * time.Millisecond })
		ended(t, dial(t, m, ""))
		if s := m.Stats(); s.Silent != 1 {
			t.Errorf("%+v, want one silent", s)
		}
	})
	t.Run("a closed share", func(t *testing.T) {
		var a net.Listener
		m := serveMux(t, func(m *Mux) { a = m.Listen('A') })
		waiting := dial(t, m, "A")
		a.Close()
		ended(t, waiting)
		ended(t, dial(t, m, "A"))
		if _, err := a.Accept(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("Accept after Close: %v", err)
		}
	})
	t.Run("too many pending", func(t *testing.T) {
		var a net.Listener
		m := serveMux(t, func(m *Mux) { a = m.Listen('A'); m.MaxPending = 1 })
		first := dial(t, m, "") // silent, and in the only place
		ended(t, dial(t, m, "A"))
		if s := m.Stats(); s.Refused != 1 {
			t.Errorf("%+v, want one refused", s)
		}
		io.WriteString(first, "A")
		c, err := a.Accept()
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
	})
}

// raft's NetworkTransport does not close what it accepted, so the Mux must.
func TestMuxCloseEndsAcceptedConnections(t *testing.T) {
	var a net.Listener
	m := serveMux(t, func(m *Mux) { a = m.Listen('A') })
	client := dial(t, m, "A")
	if _, err := a.Accept(); err != nil {
		t.Fatal(err)
	}
	pending, silent := dial(t, m, "A"), dial(t, m, "")
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	for _, c := range []net.Conn{client, pending, silent} {
		ended(t, c)
	}
	if _, err := a.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept after Close: %v", err)
	}
	if len(m.conns) != 0 || m.pending != 0 {
		t.Errorf("%d connections, %d pending after Close", len(m.conns), m.pending)
	}
}
