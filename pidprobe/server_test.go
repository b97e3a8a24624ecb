package pidprobe

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"
)

// serve runs a server on loopback until the test ends.
func serve(t testing.TB, host string, cfg ServerConfig) *Server {
	t.Helper()
	conn, err := Listen(t.Context(), host, 0)
	if err != nil {
		t.Fatal(err)
	}
	if cfg.Name == "" {
		cfg.Name = "own.example"
	}
	s, err := NewServer(conn, cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(ctx) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-ended:
			if err != nil {
				t.Errorf("the server ended: %v", err)
			}
		case <-time.After(time.Minute):
			t.Error("the server does not end")
		}
	})
	return s
}

func dialServer(t testing.TB, s *Server, host string) net.Conn {
	t.Helper()
	conn, err := net.Dial("udp", net.JoinHostPort(host, fmt.Sprint(s.Addr().Port)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

func tell(t testing.TB, conn net.Conn, text string) {
	t.Helper()
	if _, err := conn.Write([]byte(text)); err != nil {
		t.Fatal(err)
	}
}

func hear(t testing.TB, conn net.Conn) string {
	t.Helper()
	b := make([]byte, 2048)
	_ = conn.SetReadDeadline(time.Now().Add(5 * time.Second))
	n, err := conn.Read(b)
	if err != nil {
		t.Fatal(err)
	}
	return string(b[:n])
}

func TestServerAnswers(t *testing.T) {
	c := start(t, "cat")
	c.zombie()
	own, zombie := fmt.Sprint(os.Getpid()), fmt.Sprint(c.pid())
	const free = "2147483647"
	s := serve(t, "", ServerConfig{Workers: 1})
	for _, host := range []string{"127.0.0.1", "127.0.0.7", "::1"} {
		conn := dialServer(t, s, host)
		// One worker answers in order, so what comes next shows that there was
		// nothing before.
		for _, x := range []struct{ ask, want string }{
			{"PIDR " + own, "EXIS " + own + " 1 own.example"},
			{"PIDR " + own + "\n", "EXIS " + own + " 1 own.example"},
			{"PIDR " + own + " there\n", "EXIS " + own + " 1 there"},
			{"PIDR " + own + " 0 0\n", "EXIS " + own + " 1 own.example"},
			{"PIDR 1 \xfe\xff 7", "EXIS 1 1 \xfe\xff"},
			{"PIDR " + free + " there\n", "EXIS " + free + " 0 there"},
			{"PIDR " + zombie + " there\n", "EXIS " + zombie + " 0 there"},
			{"PIDR " + own + " there 1", "EXIS " + own + " 1 there"},
			{"PIDR " + own + " there 2", ""},
			{"PIDR " + own + " there x", ""},
			{"PIDR " + free + " there 2", "EXIS " + free + " 0 there"},
			{"PIDR " + free + " there 1", ""},
			{"PIDR " + free + " there 4", ""},
			{"PIDR abc", ""},
			{"PIDR", ""},
			{"", ""},
			{"PIDR 0", ""},
			{"PIDR -1", ""},
			{"PIDR 99999999999999999999", ""},
			{"\x00\xff\x00", ""},
			{"PIDR 1 h " + strings.Repeat("x", 60_000), ""},
			{"EXIS 1 1 h", ""},
			{"PIDR 1 end", "EXIS 1 1 end"},
		} {
			tell(t, conn, x.ask)
			if x.want == "" {
				continue
			}
			if got := hear(t, conn); got != x.want {
				t.Errorf("%s: %.60q is answered %q, want %q", host, x.ask, got, x.want)
			}
		}
	}
	eventually(t, "the count of the last answer", func() bool { return s.Stats().Answered == 3*10 })
	st := s.Stats()
	if st.Answered != 3*10 || st.Refused != 3*9 || st.Asked != 3*23 || st.Limited != 0 {
		t.Errorf("counted %+v", st)
	}
}

// What is kept of a process is no longer true once it has ended.
func TestServerForgetsTheDead(t *testing.T) {
	s := serve(t, "127.0.0.1", ServerConfig{})
	conn := dialServer(t, s, "127.0.0.1")
	c := start(t, "cat")
	ask := fmt.Sprintf("PIDR %d h", c.pid())
	for i, step := range []struct {
		do   func()
		want string
	}{
		{func() {}, "1"},
		{func() {}, "1"},
		{c.zombie, "0"},
		{func() {}, "0"},
		{c.reap, "0"},
	} {
		step.do()
		tell(t, conn, ask)
		if got, want := hear(t, conn), fmt.Sprintf("EXIS %d %s h", c.pid(), step.want); got != want {
			t.Errorf("step %d: %q, want %q", i, got, want)
		}
	}
}

func TestPortInUse(t *testing.T) {
	s := serve(t, "", ServerConfig{})
	conn, err := Listen(t.Context(), "", uint16(s.Addr().Port))
	if !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("a second one listens: %v", err)
		conn.Close()
	}
}

func TestServerName(t *testing.T) {
	conn, err := Listen(t.Context(), "127.0.0.1", 0)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := NewServer(conn, ServerConfig{Name: strings.Repeat("h", 256)}); err == nil {
		t.Error("a name that makes answers too long is accepted")
	}
}

func TestServerLimit(t *testing.T) {
	s := serve(t, "127.0.0.1", ServerConfig{SourceRate: 1, Workers: 1}) // bursts of 64
	flood := dialServer(t, s, "127.0.0.1")
	for range 100 {
		tell(t, flood, "PIDR 1 h")
	}
	// The other's answer comes after those to the flood.
	d := net.Dialer{LocalAddr: &net.UDPAddr{IP: net.IPv4(127, 0, 0, 2)}}
	other, err := d.Dial("udp", s.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	tell(t, other, "PIDR 1 h")
	if got := hear(t, other); got != "EXIS 1 1 h" {
		t.Fatal(got)
	}
	eventually(t, "the count of the last answer", func() bool { st := s.Stats(); return st.Answered+st.Limited == 101 })
	if st := s.Stats(); st.Limited < 30 || st.Answered < 65 {
		t.Errorf("of 100 from one address %+v", st)
	}
}

func TestLimiter(t *testing.T) {
	l := newLimiter(1000, 100)
	now := time.Minute
	count := func(n int, key sourceKey) (allowed int) {
		from, ok := make([]sourceKey, n), make([]bool, n)
		for i := range from {
			from[i] = key
		}
		l.allow(now, from, ok)
		for _, y := range ok {
			if y {
				allowed++
			}
		}
		return allowed
	}
	a, b := sourceKey{1}, sourceKey{2}
	if got := count(500, a); got != 64 {
		t.Errorf("%d at once to one, want 64", got)
	}
	if got := count(500, b); got != 36 {
		t.Errorf("%d to the next, want 36: the total is 100", got)
	}
	now += 500 * time.Millisecond
	if got := count(500, a); got != 50 {
		t.Errorf("%d after half a second, want 50", got)
	}
	if got := count(0, a); got != 0 {
		t.Errorf("%d of none", got)
	}
	// However many sources there are, the table stays, and each has its due.
	l = newLimiter(0, 100)
	for i := range 100_000 {
		now += time.Second
		if got := count(1, sourceKey{byte(i), byte(i >> 8), byte(i >> 16), 9}); got != 1 {
			t.Fatalf("source %d is refused", i)
		}
	}
	l = newLimiter(0, 0)
	if got := count(10_000, a); got != 10_000 {
		t.Errorf("%d without a limit", got)
	}
}

func TestSourceKey(t *testing.T) {
	var b batch
	key := func(addr ...byte) sourceKey {
		d := &b.grams[0]
		d.peer.Family = syscall.AF_INET6
		copy(d.peer.Addr[:], addr)
		return b.source(0)
	}
	one := key(0x20, 1, 0xd, 0xb8, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1)
	if one != key(0x20, 1, 0xd, 0xb8, 0, 0, 0, 1, 9, 9, 9, 9, 9, 9, 9, 9) {
		t.Error("two addresses of a network count as two")
	}
	if one == key(0x20, 1, 0xd, 0xb8, 0, 0, 0, 2, 1, 1, 1, 1, 1, 1, 1, 1) {
		t.Error("two networks count as one")
	}
	v4 := key(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 0, 0, 1)
	if v4 == key(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 0, 0, 2) {
		t.Error("two IPv4 hosts count as one")
	}
}

func TestLookout(t *testing.T) {
	c, d := start(t, "cat"), start(t, "cat")
	d.zombie()
	own := int32(os.Getpid())
	l := newLookout()
	defer l.close()
	// The last shares its slot with the first, and the one before with nobody.
	pids := []int32{own, 1, c.pid(), d.pid(), own, 1<<31 - 1, own + lookoutSize*100_000}
	want := []Verdict{Alive, Alive, Alive, Dead, Alive, Dead, Dead}
	for round := range 4 {
		got := make([]Verdict, len(pids))
		l.look(pids, got)
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Fatalf("round %d: %v, want %v", round, got, want)
		}
		if round == 1 {
			c.zombie()
			want[2] = Dead
		}
	}
	// Without a descriptor to spare it keeps none.
	l.close()
	l.maxFD = 0
	got := make([]Verdict, len(pids))
	l.look(pids, got)
	if fmt.Sprint(got) != fmt.Sprint(want) || len(l.polls) > 0 {
		t.Fatalf("without descriptors: %v, want %v; %d kept", got, want, len(l.polls))
	}
}

func TestReplyFitsInItsBuffer(t *testing.T) {
	a := appendAnswer(make([]byte, 0, maxReply), []byte("2147483647"), Unknown, bytes.Repeat([]byte("h"), maxHost), strings.Repeat("1", maxBirth))
	if len(a) != maxReply || cap(a) != maxReply {
		t.Errorf("%d bytes in a buffer of %d", len(a), cap(a))
	}
}
