package pidprobe

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// relay passes datagrams between clients and a server, and does to them what a
// network or another server might.
type relay struct {
	conn *net.UDPConn

	mu     sync.Mutex
	server string
	alter  func(fromServer bool, text string) string // empty is lost
	log    []string                                  // questions, and > before what came back
}

func newRelay(t *testing.T, s *Server, alter func(fromServer bool, text string) string) *relay {
	t.Helper()
	conn, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	r := &relay{conn: conn, server: s.Addr().String(), alter: alter}
	t.Cleanup(func() { conn.Close() })
	go r.up(t)
	return r
}

func (r *relay) port() int { return r.conn.LocalAddr().(*net.UDPAddr).Port }

// divert makes another the server, which knows nothing.
func (r *relay) divert(s *Server) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.server = s.Addr().String()
}

func (r *relay) pass(fromServer bool, b []byte) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	text := r.alter(fromServer, string(b))
	if text != "" {
		if fromServer {
			r.log = append(r.log, ">"+text)
		} else {
			r.log = append(r.log, text)
		}
	}
	return text
}

// seen is what has passed.
func (r *relay) seen() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.log)
}

type way struct {
	client netip.AddrPort
	server string
}

func (r *relay) up(t *testing.T) {
	ways := map[way]net.Conn{}
	defer func() {
		for _, c := range ways {
			c.Close()
		}
	}()
	b := make([]byte, maxDatagram)
	for {
		n, from, err := r.conn.ReadFromUDPAddrPort(b)
		if err != nil {
			return
		}
		text := r.pass(false, b[:n])
		if text == "" {
			continue
		}
		r.mu.Lock()
		w := way{from, r.server}
		r.mu.Unlock()
		if ways[w] == nil {
			c, err := net.Dial("udp", w.server)
			if err != nil {
				t.Error(err)
				return
			}
			ways[w] = c
			go r.down(c, from)
		}
		_, _ = ways[w].Write([]byte(text))
	}
}

func (r *relay) down(c net.Conn, to netip.AddrPort) {
	b := make([]byte, maxDatagram)
	for {
		n, err := c.Read(b)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // nobody listens there any more
		}
		if text := r.pass(true, b[:n]); text != "" {
			_, _ = r.conn.WriteToUDPAddrPort([]byte(text), to)
		}
	}
}

func unaltered(_ bool, text string) string { return text }

// asOldServer is what IPC::Locker's server makes of the extension: nothing.
func asOldServer(fromServer bool, text string) string {
	f := strings.Fields(text)
	if !fromServer && len(f) > 3 && f[3] == "10" {
		return strings.Join([]string{f[0], f[1], f[2], "2"}, " ") + "\n"
	}
	return text
}

// withoutPushes loses them all.
func withoutPushes(fromServer bool, text string) string {
	if fromServer && strings.HasPrefix(text, "UNKN") {
		return ""
	}
	return text
}

// asVeryOldServer answers whatever it is asked, also that it does not know.
func asVeryOldServer(fromServer bool, text string) string {
	f := strings.Fields(text)
	switch {
	case !fromServer:
		return strings.Join([]string{f[0], f[1], f[2], "7"}, " ") + "\n"
	case f[2] == "1":
		return "UNKN " + f[1] + " na " + f[3]
	}
	return text
}

// awaiting starts a wait for the death of a child, and returns when the server has
// been asked.
func awaiting(t *testing.T, c *child, r *relay) <-chan error {
	t.Helper()
	done := make(chan error, 1)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		done <- clientOf(r.port()).AwaitDeath(ctx, "127.0.0.1", c.pid())
	}()
	t.Cleanup(func() {
		cancel()
		<-ended
	})
	eventually(t, "a question", func() bool { return len(r.seen()) > 0 })
	return done
}

func told(t *testing.T, done <-chan error) time.Duration {
	t.Helper()
	began := time.Now()
	select {
	case err := <-done:
		if err != nil {
			t.Fatal(err)
		}
	case <-time.After(time.Minute):
		t.Fatal("no news")
	}
	return time.Since(began)
}

// promised waits until the client has been promised a push.
func promised(t *testing.T, s *Server, r *relay) {
	t.Helper()
	eventually(t, "a promise", func() bool {
		return slices.ContainsFunc(r.seen(), func(l string) bool { return strings.HasPrefix(l, ">EXIS") }) && len(r.seen()) > 1
	})
	wantTable(t, s, 1, 1)
}

func TestAwaitDeathIsPushed(t *testing.T) {
	s := serve(t, "127.0.0.1", ServerConfig{})
	r := newRelay(t, s, unaltered)
	c := start(t, "cat")
	pid, birth := fmt.Sprint(c.pid()), birthOf(c)
	done := awaiting(t, c, r)
	promised(t, s, r)
	c.zombie()
	if took := told(t, done); took > 900*time.Millisecond {
		t.Errorf("it took %v: somebody polls", took)
	}
	want := []string{
		"PIDR " + pid + " 127.0.0.1 10\n",
		">EXIS " + pid + " 1 127.0.0.1 " + birth,
		">UNKN " + pid + " na 127.0.0.1",
		"PIDR " + pid + " 127.0.0.1 10 " + birth + "\n",
		">EXIS " + pid + " 0 127.0.0.1",
	}
	got := r.seen()
	got = append(got[:2:2], got[len(got)-3:]...) // a slow machine may have seen renewals
	if !slices.Equal(got, want) {
		t.Errorf("over the wire went %q, want %q", got, want)
	}
	wantTable(t, s, 0, 0)
}

// One that has ended, with a server that knows it at once.
func TestAwaitDeathOfTheDead(t *testing.T) {
	s := serve(t, "127.0.0.1", ServerConfig{})
	r := newRelay(t, s, unaltered)
	c := start(t, "cat")
	c.zombie()
	told(t, awaiting(t, c, r))
	if n := len(r.seen()); n != 2 {
		t.Errorf("%d datagrams", n)
	}
}

// While the server promises, one socket serves for all questions, and the
// subscription stays one.
func TestAwaitDeathRenews(t *testing.T) {
	s := serve(t, "127.0.0.1", ServerConfig{})
	r := newRelay(t, s, unaltered)
	c := start(t, "cat")
	done := awaiting(t, c, r)
	eventually(t, "a renewal", func() bool { return len(r.seen()) >= 6 })
	wantTable(t, s, 1, 1)
	c.zombie()
	if took := told(t, done); took > 900*time.Millisecond {
		t.Errorf("it took %v: somebody polls", took)
	}
	if n := s.Stats().Pushed; n != 1 {
		t.Errorf("%d pushes", n)
	}
}

// Another server, which was asked nothing before, is taken for one that was.
func TestAwaitDeathRenewsWithAnotherServer(t *testing.T) {
	first, second := serve(t, "127.0.0.1", ServerConfig{}), serve(t, "127.0.0.1", ServerConfig{})
	r := newRelay(t, first, unaltered)
	c := start(t, "cat")
	done := awaiting(t, c, r)
	promised(t, first, r)
	r.divert(second)
	eventually(t, "a promise of the second", func() bool { n, _ := subscribed(second); return n == 1 })
	c.zombie()
	if took := told(t, done); took > 900*time.Millisecond {
		t.Errorf("it took %v: somebody polls", took)
	}
	eventually(t, "the count of the push", func() bool { return second.Stats().Pushed == 1 })
}

// Whatever the server or the network does not do, asking once a second does.
func TestAwaitDeathIsPolled(t *testing.T) {
	for name, alter := range map[string]func(bool, string) string{
		"old server":         asOldServer,
		"very old server":    asVeryOldServer,
		"pushes lost":        withoutPushes,
		"another server":     withoutPushes, // as if it was started anew
		"another old server": asOldServer,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := serve(t, "127.0.0.1", ServerConfig{})
			r := newRelay(t, s, alter)
			c := start(t, "cat")
			done := awaiting(t, c, r)
			eventually(t, "a second question", func() bool {
				n := 0
				for _, l := range r.seen() {
					if strings.HasPrefix(l, "PIDR") {
						n++
					}
				}
				return n >= 2
			})
			if strings.HasPrefix(name, "another") {
				r.divert(serve(t, "127.0.0.1", ServerConfig{}))
			}
			c.zombie()
			began := time.Now()
			told(t, done)
			if took := time.Since(began); took > 15*time.Second {
				t.Errorf("it took %v", took)
			}
			if n := len(r.seen()); n > 40 {
				t.Errorf("%d datagrams: %q", n, r.seen())
			}
		})
	}
}

// A process that has the number later is another one, also for a server that was
// started in between and saw neither end.
func TestAwaitDeathOfAnEarlierOne(t *testing.T) {
	s := serve(t, "127.0.0.1", ServerConfig{})
	c := start(t, "cat")
	earlier := c.lookup()
	earlier.Start--
	births := strings.NewReplacer(birthOf(c), earlier.birth())
	r := newRelay(t, s, func(fromServer bool, text string) string {
		if fromServer { // as if the promise had been for it
			return births.Replace(text)
		}
		return text
	})
	if took := told(t, awaiting(t, c, r)); took < 900*time.Millisecond {
		t.Errorf("it took %v, though nothing was pushed", took)
	}
}

// Whoever floods the client with pushes does not make it ask more often.
func TestAwaitDeathMindsNoForgedPushes(t *testing.T) {
	s := serve(t, "127.0.0.1", ServerConfig{})
	c := start(t, "cat")
	r := newRelay(t, s, func(fromServer bool, text string) string {
		f := strings.Fields(text)
		if !fromServer {
			return text
		}
		// In place of the promise.
		return "UNKN " + f[1] + " na " + f[3]
	})
	done := awaiting(t, c, r)
	eventually(t, "three questions", func() bool { return len(r.seen()) >= 6 })
	select {
	case err := <-done:
		t.Fatalf("it ends with %v", err)
	default:
	}
	if n := s.Stats().Asked; n > 4 {
		t.Errorf("asked %d times in two seconds", n)
	}
}

func TestBirthOfOurselves(t *testing.T) {
	p, err := Lookup(int32(os.Getpid()))
	if err != nil {
		t.Fatal(err)
	}
	if p.birth() == "" || p.bornAnew([]byte(p.birth())) {
		t.Errorf("birth %q", p.birth())
	}
}
