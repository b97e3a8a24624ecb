package pidprobe

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

// clientOf is a client for the port of a server.
func clientOf(port int) *Client { return &Client{Port: uint16(port), Names: []string{"own.example"}} }

// impostor answers on loopback as it likes: with each of its lines, where PID and
// HOST stand for what was asked.
func impostor(t *testing.T, host string, lines ...string) int {
	t.Helper()
	conn, err := net.ListenPacket("udp", host+":0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	go func() {
		b := make([]byte, 512)
		for {
			n, from, err := conn.ReadFrom(b)
			if err != nil {
				return
			}
			q, ok := parseQuestion(b[:n])
			if !ok {
				t.Errorf("asked %q", b[:n])
			}
			for _, l := range lines {
				l = strings.NewReplacer("PID", fmt.Sprint(q.pid), "HOST", string(q.host)).Replace(l)
				_, _ = conn.WriteTo([]byte(l), from)
			}
		}
	}()
	return conn.LocalAddr().(*net.UDPAddr).Port
}

func TestClientExists(t *testing.T) {
	s := serve(t, "127.0.0.1", ServerConfig{})
	c := clientOf(s.Addr().Port)
	z := start(t, "cat")
	z.zombie()
	for _, x := range []struct {
		host string
		pid  int32
		want Verdict
	}{
		{"127.0.0.1", int32(os.Getpid()), Alive},
		{"127.0.0.1", 1<<31 - 1, Dead},
		{"127.0.0.1", z.pid(), Dead},
		{"localhost", int32(os.Getpid()), Alive},
		{"OWN.example", 1<<31 - 1, Dead},
		{hostname(), z.pid(), Dead},
	} {
		if v, err := c.Exists(t.Context(), x.host, x.pid); v != x.want || err != nil {
			t.Errorf("%s:%d is %v, %v", x.host, x.pid, v, err)
		}
	}
	if got := s.Stats().Asked; got != 3 {
		t.Errorf("%d datagrams, want 3: the rest is local", got)
	}
	for _, x := range []struct {
		host string
		pid  int32
		want error
	}{
		{"127.0.0.1", 0, ErrPID},
		{"localhost", -1, ErrPID},
		{"no-such-host.invalid", 1, ErrNoHost},
		{"", 1, ErrNoHost},
		{"two words", 1, ErrNoHost},
		{"line\nPIDR", 1, ErrNoHost},
		{strings.Repeat("h", 256), 1, ErrNoHost},
	} {
		if v, err := c.Exists(t.Context(), x.host, x.pid); v != Unknown || !errors.Is(err, x.want) {
			t.Errorf("%.20q:%d is %v, %v, want %v", x.host, x.pid, v, err, x.want)
		}
	}
}

// Only the answer to the question counts.
func TestClientTakesOnlyItsAnswer(t *testing.T) {
	port := impostor(t, "127.0.0.1",
		"EXIS 999999 0 HOST", "EXIS PID 0 other.example", "EXIS PID 2 HOST", "garbage", "PIDR PID HOST",
		"EXIS PID 1 HOST", "EXIS PID 0 HOST")
	if v, err := clientOf(port).Exists(t.Context(), "127.0.0.1", 7); v != Alive || err != nil {
		t.Errorf("%v, %v", v, err)
	}
	port = impostor(t, "127.0.0.1", "UNKN PID na HOST", "EXIS PID 0 HOST")
	if v, err := clientOf(port).Exists(t.Context(), "127.0.0.1", 7); v != Unknown || err != nil {
		t.Errorf("a host that cannot tell: %v, %v", v, err)
	}
}

// A second address of this host answers what the first was asked.
func TestClientChecksTheSource(t *testing.T) {
	asked, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer asked.Close()
	stranger, err := net.ListenPacket("udp", "127.0.0.2:0")
	if err != nil {
		t.Fatal(err)
	}
	defer stranger.Close()
	go func() {
		b := make([]byte, 512)
		_, from, err := asked.ReadFrom(b)
		if err != nil {
			return
		}
		_, _ = stranger.WriteTo([]byte("EXIS 7 0 127.0.0.1"), from)
		_, _ = asked.WriteTo([]byte("EXIS 7 1 127.0.0.1"), from)
	}()
	c := clientOf(asked.LocalAddr().(*net.UDPAddr).Port)
	if v, err := c.Exists(t.Context(), "127.0.0.1", 7); v != Alive || err != nil {
		t.Errorf("%v, %v", v, err)
	}
}

func TestClientGivesUp(t *testing.T) {
	// Nobody listens: the network says so.
	began := time.Now()
	if v, err := clientOf(1).Exists(t.Context(), "127.0.0.1", 7); v != Unknown || !errors.Is(err, ErrNoAnswer) {
		t.Errorf("%v, %v", v, err)
	}
	if took := time.Since(began); took > 4*time.Second {
		t.Errorf("it takes %v to learn that nobody listens", took)
	}
	// Somebody does, and says nothing.
	c := clientOf(impostor(t, "127.0.0.1"))
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if v, err := c.Exists(ctx, "127.0.0.1", 7); v != Unknown || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v, %v", v, err)
	}
}

// The first question is lost.
func TestClientAsksAgain(t *testing.T) {
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	go func() {
		b := make([]byte, 512)
		for i := 0; ; i++ {
			_, from, err := conn.ReadFrom(b)
			if err != nil {
				return
			}
			if i == 1 {
				_, _ = conn.WriteTo([]byte("EXIS 7 1 127.0.0.1"), from)
			}
		}
	}()
	c := clientOf(conn.LocalAddr().(*net.UDPAddr).Port)
	if v, err := c.Exists(t.Context(), "127.0.0.1", 7); v != Alive || err != nil {
		t.Errorf("%v, %v", v, err)
	}
}

func TestAwaitDeath(t *testing.T) {
	s := serve(t, "127.0.0.1", ServerConfig{})
	c := clientOf(s.Addr().Port)
	for _, host := range []string{"127.0.0.1", "localhost"} {
		x := start(t, "cat")
		done := make(chan error, 1)
		go func() { done <- c.AwaitDeath(t.Context(), host, x.pid()) }()
		if host == "127.0.0.1" {
			eventually(t, "a question", func() bool { return s.Stats().Asked > 0 })
		}
		select {
		case err := <-done:
			t.Fatalf("%s: it ends with %v while the process lives", host, err)
		default:
		}
		x.zombie()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("%s: %v", host, err)
			}
		case <-time.After(time.Minute):
			t.Errorf("%s: no news", host)
		}
	}
	for host, port := range map[string]int{"127.0.0.1": 1, "localhost": 1} { // nobody listens
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		if err := clientOf(port).AwaitDeath(ctx, host, 1); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s: %v", host, err)
		}
		cancel()
	}
	if err := c.AwaitDeath(t.Context(), "no-such-host.invalid", 1); !errors.Is(err, ErrNoHost) {
		t.Error(err)
	}
	if err := c.AwaitDeath(t.Context(), "localhost", 0); !errors.Is(err, ErrPID) {
		t.Error(err)
	}
	if err := c.Resolve(t.Context(), "no-such-host.invalid"); !errors.Is(err, ErrNoHost) {
		t.Error(err)
	}
}

func TestStream(t *testing.T) {
	s := serve(t, "127.0.0.1", ServerConfig{})
	st, err := clientOf(s.Addr().Port).Stream()
	if err != nil {
		t.Fatal(err)
	}
	own := int32(os.Getpid())
	const free = 1<<31 - 1
	for _, q := range []struct {
		host string
		pid  int32
		want Flags
	}{
		{"127.0.0.1", own, AllAnswers},
		{"127.0.0.1", free, AllAnswers},
		{"127.0.0.1", 1, IfDead},
		{"localhost", own, AllAnswers},
		{"localhost", free, IfAlive},
		{"own.example", free, IfDead},
	} {
		if err := st.Request(t.Context(), q.host, q.pid, q.want); err != nil {
			t.Fatal(err)
		}
	}
	var got []string
	for range 4 {
		a, err := st.Receive(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, fmt.Sprint(a))
	}
	slices.Sort(got)
	want := []string{
		fmt.Sprintf("{127.0.0.1 %d alive}", own),
		fmt.Sprintf("{127.0.0.1 %d dead}", free),
		fmt.Sprintf("{localhost %d alive}", own),
		fmt.Sprintf("{own.example %d dead}", free),
	}
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	if n := st.Pending(); n != 1 { // the one that was to be answered only if dead
		t.Errorf("%d pending", n)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := st.Receive(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("with a context that has ended: %v", err)
	}
	st.Forget()
	if n := st.Pending(); n != 0 {
		t.Errorf("%d pending after Forget", n)
	}
	if err := st.Request(t.Context(), "127.0.0.1", 0, AllAnswers); !errors.Is(err, ErrPID) {
		t.Error(err)
	}
	if err := st.Request(t.Context(), "no-such-host.invalid", 1, AllAnswers); !errors.Is(err, ErrNoHost) {
		t.Error(err)
	}
	ended := make(chan error, 1)
	go func() {
		_, err := st.Receive(t.Context())
		ended <- err
	}()
	st.Close()
	if err := <-ended; !errors.Is(err, ErrClosed) {
		t.Errorf("Receive after Close: %v", err)
	}
}

func TestStreamRefusesWhatItDidNotAsk(t *testing.T) {
	port := impostor(t, "127.0.0.1", "EXIS 999999 0 HOST", "EXIS PID 0 other", "EXIS PID 1 HOST", "EXIS PID 0 HOST")
	st, err := clientOf(port).Stream()
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	ask := func() Answer {
		t.Helper()
		if err := st.Request(t.Context(), "127.0.0.1", 7, AllAnswers); err != nil {
			t.Fatal(err)
		}
		a, err := st.Receive(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	if a := ask(); a != (Answer{"127.0.0.1", 7, Alive}) {
		t.Errorf("%+v", a)
	}
}

func TestPort(t *testing.T) {
	for text, want := range map[string]uint16{"1": 1, "65535": 65535, "tftp": 69, "0": 0, "65536": 0, "-1": 0, "no-such-service": 0, "99999999999999999999": 0} {
		got, err := Port(t.Context(), text)
		if got != want || (err == nil) != (want != 0) {
			t.Errorf("%q: %d, %v", text, got, err)
		}
	}
	if got, err := Port(t.Context(), ""); got != DefaultPort || err != nil {
		t.Errorf("the default is %d, %v", got, err) // unless this host's /etc/services says otherwise
	}
}
